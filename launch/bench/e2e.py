"""A whole run measured: learner, actors, sandboxes, stream and weights, as `azr train` runs them.

`e2e_modes.py` leads one run through the modes, `e2e_figures.py` turns its metrics into the report. The run is the
recipe's, with these changes: no checkpoints, held-out measurements and recorded trajectories; each role on cores of its
own; a learning rate of nearly 0; and a task buffer that starts with tasks. So the policy, and with it the length and
validity of what it writes, is the same in every mode, and prompts do not grow with the buffer, while every computation
is that of training.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executor.user_error import UserError
from launch.arguments import add_overrides, overrides_of
from launch.bench.e2e_figures import Figures
from launch.bench.e2e_modes import Modes
from launch.bench.options import between, positive
from launch.bench.report import Report, describe_versions
from launch.run.interrupts import SAVED, listening

if TYPE_CHECKING:
    from launch.config import Config
    from launch.run.interrupts import Interrupts

RUNS = 2
STILL_LR = "1e-12"
"""A learning rate that changes no weight in bfloat16."""
PEAK_TIMEOUT_S = 240.0
SEEDS = Path(__file__).parents[1] / "tune" / "traces" / "seeds.jsonl"
"""Tasks that the buffer starts with: those of the trials of `azr tune`."""

DESCRIPTION = """\
Measures a whole run: tokens a second generated, trained and useful, trajectories and executions a second, ages, and
each phase of weight synchronisation; where every second of the learner and of the actors went, and every token. One
run goes through several values of learner.max_staleness, again and again, the second time backwards; its engines start
once. The slower stage alone, measured in the synchronous steps, gives the ideal speed.

Learner and actors get cores of their own (learner.cpus, actors.cpus) unless the recipe or --no-pin says otherwise. The
learning rate is nearly 0 unless --learn is given: so all modes have the same work. Run it on a machine that does
nothing else.
"""

EXAMPLES = """\
columns:
  useful                trained tokens that move the policy: with an advantage other than 0, and not clipped
  slower stage alone    the greater of T_gen and T_train, for the work of that mode's batches. In synchronous steps
                        T_gen is the wait for the batch, T_train the rest
  contended ideal       the same with what a pass and a token cost while the other side works, too: what cores share
                        (memory, caches, two threads of one core) is not the schedule's
  FLOP share            the learner's operations over those that its cores can do: of the time of training steps, and
                        of all time

exit code 1: a ledger does not close. More than 2% of a process's seconds are in none of its parts, or a token is in no
place.

examples:
  azr bench e2e                                      smollm2-cpu-small, 10 to 30 minutes
  azr bench e2e smollm2-cpu --steps 6 --runs 3       the batches of the paper's method
  azr bench e2e my-recipe.toml actors.num_actors=4 --staleness 0,2,8
  azr bench e2e --json e2e.json --folder bench-run   the findings as JSON too, and the run folder
  azr bench e2e smollm2-cpu run.mode=rehearse        without a model: engines and learner only take time
"""


class E2eError(UserError):
    """A run that could not be measured; the message says why."""

    exit_code = 1


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    recipe: str = "smollm2-cpu-small"
    overrides: tuple[str, ...] = ()
    staleness: tuple[int, ...] = (0, 1, 2, 4)
    runs: int = RUNS
    steps: int = 4
    """Least steps that count, in each mode of each repetition (`steps_counted`)."""
    pin: bool = True
    learn: bool = False
    folder: Path | None = None
    """Where the run folder is made and kept; None: it is removed."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `azr bench e2e`."""
    parser.add_argument(
        "recipe", nargs="?", default=Options.recipe, help="a TOML file, or a recipe that ships (default %(default)s)"
    )
    add_overrides(parser, "settings on top, right after the recipe")
    parser.add_argument(
        "--staleness", type=_bounds, default=Options.staleness, metavar="K,K,...", help="modes (default 0,1,2,4)"
    )
    parser.add_argument(
        "--steps",
        type=positive(int),
        default=Options.steps,
        metavar="N",
        help="of a mode in a run, at least (default 4)",
    )
    parser.add_argument("--no-pin", action="store_true", help="let learner and actors share all cores")
    parser.add_argument("--learn", action="store_true", help="keep the recipe's learning rate")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="keep the run folder there")


def _bounds(text: str) -> tuple[int, ...]:
    bound = between(0, 64, "a bound is a whole number from 0 to 64")
    return tuple(sorted({bound(part) for part in text.split(",")}))


def measure(arguments: argparse.Namespace) -> Report:
    """Measure as the command line says. Raises UserError."""
    return run(
        Options(
            recipe=arguments.recipe,
            overrides=tuple(overrides_of(arguments)),
            staleness=arguments.staleness,
            runs=arguments.runs,
            steps=arguments.steps,
            pin=not arguments.no_pin,
            learn=arguments.learn,
            folder=arguments.folder,
        )
    )


def run(options: Options) -> Report:
    """Measure and report. Raises UserError."""
    with listening() as interrupts, _folder(options.folder) as folder:  # listening before threads are started
        config = configure(options, folder)
        versions = describe_versions(("azr", "torch", "megatron-core", "vllm", "ray"))
        report = Report("e2e", _settings(options, config), versions)
        peak = _peak_flops(config) if config.run.mode == "async" else None
        modes = Modes(options.staleness, options.runs, options.steps, _say)
        rows = _drive(config, modes, interrupts)
        if not modes.done:
            report.notes["interrupted"] = f"after {len(modes.blocks)} of {len(options.staleness) * options.runs} modes"
        peak_flops = peak["alone"] * config.learner.parallel.world_size if peak else None
        figures = Figures(rows, modes.blocks, peak_flops)
        if not figures.runs:
            raise E2eError("it ended before every mode was measured once")
        figures.report(report)
        if peak:
            report.notes["peak"] = f"a learner rank can do {peak['alone'] / 1e9:,.0f} GFLOP/s in bfloat16 products"
            if "beside" in peak:
                report.notes["peak"] += f", and {peak['beside'] / 1e9:,.0f} while the actors' cores do the same"
        return report


def configure(options: Options, folder: Path) -> Config:
    """The recipe with the benchmark's changes. Raises UserError."""
    from launch.config import load

    forced = [
        f"run.dir={folder}",
        "run.name=e2e",
        "run.max_minutes=100000",
        "run.max_tokens=none",
        "run.record_trajectories=false",
        "run.verify_weights=false",
        "selfplay.heldout_every=0",
        "learner.steps=1000000",
        "learner.checkpoint_every=0",
        "learner.checkpoint_minutes=0",
        f"learner.max_staleness={options.staleness[0]}",
        *([] if options.learn else [f"learner.optimizer.lr={STILL_LR}"]),
    ]
    config = load(options.recipe, [*options.overrides, *forced])
    if config.run.mode == "serial":
        raise E2eError("run.mode = serial has no actors that could work beside the learner; take run.mode=async")
    if config.run.mode == "async" and config.selfplay.seed_tasks is None:
        forced.append(f"selfplay.seed_tasks={SEEDS}")
        config = load(options.recipe, [*options.overrides, *forced])
    cores = sorted(os.sched_getaffinity(0))
    if options.pin and len(cores) > 1 and not (config.learner.cpus or config.actors.cpus or _has_gpu()):
        half = len(cores) // 2
        pins = [f"actors.cpus={cores[:half]}", f"learner.cpus={cores[half:]}"]
        config = load(options.recipe, [*options.overrides, *forced, *pins])
    return config


def _settings(options: Options, config: Config) -> dict[str, Any]:
    return {
        "recipe": options.recipe,
        "overrides": list(options.overrides),
        "staleness": list(options.staleness),
        "runs": options.runs,
        "steps": options.steps,
        "learn": options.learn,
        "actors": config.actors.num_actors,
        "actor_cpus": list(config.actors.cpus),
        "learner_cpus": list(config.learner.cpus),
    }


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="azr-bench-") as path:
        yield Path(path)


def _drive(config: Config, modes: Modes, interrupts: Interrupts) -> list[dict[str, float]]:
    """Run until the modes are measured; returns the rows of metrics."""
    from launch.cluster import driver
    from launch.logs import close_log, log_to_file
    from launch.run.attempt import Start, begin, find_origin
    from launch.run.console import Console
    from launch.run.folder import RunFolder, end_at_once
    from launch.run.owner import owned
    from launch.workloads.choose import workload_of

    class Quiet(Console):
        """Says on standard error what went wrong, and nothing else."""

        def say(self, text: str) -> None:
            if text.startswith("FAILED"):
                _say(text)

    console, workload = Quiet(config), workload_of(config)
    folder = RunFolder(config.folder)
    with owned(folder, console.say):
        origin = find_origin(config, folder, Start())
        workload.check(config, console.say)
        begin(config, folder, origin)
        log_to_file(folder.logs / "driver.0.log", "driver.0", config.run.log_level)
        interrupts.last_acts.append(lambda why: end_at_once(folder, why))
        _say("starting a run (about a minute on a CPU)")
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # the run's summary
                code = driver.run(config, folder, False, console, workload, modes.watch, interrupts)
        finally:
            close_log()
        if code not in (0, SAVED):
            raise E2eError(f"the run failed (exit code {code}); its logs: {folder.logs}")
        return [dict(row) for row in folder.read_metrics()]


def _peak_flops(config: Config) -> dict[str, float]:
    """Operations a second that a learner rank can do, measured in a process of its own on the learner's cores: `alone`
    and, where the actors have other cores, `beside` them."""
    import json

    from launch.models import prepare

    order = {
        "model": str(prepare(config.model.path)),
        "cpus": list(config.learner.cpus),
        "threads": config.learner.threads,
        "beside": [] if set(config.actors.cpus) & set(config.learner.cpus) else list(config.actors.cpus),
    }
    _say("measuring the machine's peak")
    command = [sys.executable, "-W", "ignore", "-m", "launch.bench.e2e_peak", json.dumps(order, allow_nan=False)]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=PEAK_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise E2eError(
            f"the machine's peak was not measured within {PEAK_TIMEOUT_S:.0f} s: other work keeps its cores busy"
        ) from None
    if found.returncode:
        raise E2eError(f"the machine's peak could not be measured: {found.stderr.strip().splitlines()[-1:]}")
    peak: dict[str, float] = json.loads(found.stdout)
    return peak


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
