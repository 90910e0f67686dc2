"""`azr tune`: predicts throughput and age of a recipe with a simulator, explains them, and recommends settings."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executor.user_error import UserError
from launch.arguments import new_command, whole

if TYPE_CHECKING:
    from launch.tune.calibration import Calibration

_DESCRIPTION = (
    "Predict how fast a recipe trains and how old its data are, say which side is the limit, and recommend settings."
)

_EXAMPLES = """\
A simulator plays the run: the gate, turns, queue and concurrency controller are those of a real run; engines, learner
and publications take the time that a calibration says. The calibration comes from runs that were really made, on the
hardware and with the model that you mean to use.

  1. Make two or three short runs of your recipe (8 steps): one synchronous, one asynchronous.
  2. azr tune calibrate RUN... --out here.json
  3. azr tune RECIPE --calibration here.json

What is varied: the split of devices between engines and learner, learner.max_staleness, the engines' concurrency. Batch
quotas and the shape of episodes change what is learned, and are varied only with --vary.

examples:
  azr train smollm2-cpu run.name=sync learner.max_staleness=0 learner.steps=8
  azr train smollm2-cpu run.name=async learner.max_staleness=1 learner.steps=8
  azr tune calibrate runs/sync runs/async --out here.json
  azr tune smollm2-cpu --calibration here.json                       the Pareto table, and a recommendation
  azr tune smollm2-cpu --calibration here.json --out tuned.toml      and the recommended recipe: azr train tuned.toml
  azr tune smollm2-cpu --calibration here.json --vary split staleness quotas
  azr tune --live runs/smollm2-cpu                                   advice for a run that goes on, from its counters
  azr tune qwen2.5-7b-8gpu --calibration h100-7b --scale 8..1024     on paper: what is the limit with many devices?
  azr tune --validate                                                predictions beside runs that were really made

reading the table: age is in versions (0 is on-policy); h/Mtoken is device-hours for a million trained tokens. Each row
is a candidate that no other beats in throughput, age and cost. docs/tuning.md says what the simulator leaves out, and
how well its predictions held.
"""


class TuneError(UserError):
    """A command line that asks for nothing that can be done; the message says what to write."""


def register(commands: Any) -> None:
    """Add `azr tune` to argparse's subcommands."""
    tune = new_command(
        commands, "tune", "predict a recipe's speed and age, and recommend staleness and split", _DESCRIPTION, _EXAMPLES
    )
    tune.add_argument(
        "words",
        nargs="*",
        metavar="RECIPE [KEY=VALUE...] | calibrate RUN...",
        help="a recipe with settings on top; or the word calibrate and run folders",
    )
    tune.add_argument("--calibration", metavar="FILE", help="a calibration (`azr tune calibrate` makes one)")
    tune.add_argument(
        "--out", type=Path, metavar="FILE", help="write the recommended recipe, or the calibration, there"
    )
    tune.add_argument("--json", type=Path, metavar="FILE", help="write the findings there, too")
    tune.add_argument(
        "--vary",
        nargs="+",
        choices=("split", "staleness", "concurrency", "quotas", "episodes"),
        default=["split", "staleness", "concurrency"],
        help="what to vary (default: split staleness concurrency)",
    )
    tune.add_argument(
        "--steps", type=whole(1), metavar="N", help="counted steps of a simulation (default: by batch size)"
    )
    tune.add_argument("--live", type=Path, metavar="RUN", help="advice for the run in that folder, from its counters")
    tune.add_argument(
        "--validate", action="store_true", help="predict the recorded trials, and compare: how good are predictions?"
    )
    tune.add_argument(
        "--measure",
        nargs="*",
        metavar="TRIAL",
        help="really run the trials that have no trace yet, or those named (minutes each); then --validate",
    )
    tune.add_argument(
        "--scale",
        metavar="N..M",
        help="the recipe on N, 2N ... M devices: what becomes the limit?",
    )
    tune.add_argument("--traces", type=Path, metavar="FOLDER", help="the folder of traces (default: those that ship)")
    tune.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    words = arguments.words
    if arguments.validate or arguments.measure is not None:
        return _validate(arguments)
    if arguments.live:
        return _live(arguments.live)
    if words and words[0] == "calibrate":
        return _calibrate([Path(word) for word in words[1:]], arguments.out)
    if not words:
        raise TuneError("azr tune needs a recipe and a calibration, `calibrate RUN...`, or --live RUN; see --help")
    if arguments.scale:
        return _scale(words[0], words[1:], arguments)
    return _search(words[0], words[1:], arguments)


def _scale(recipe: str, overrides: list[str], arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from launch.config import load
    from launch.tune.scale import ADVICE, scale, sizes
    from launch.tune.scenario import Scenario

    calibration = _calibration(arguments.calibration)
    found = scale(Scenario.of(load(recipe, overrides), calibration), calibration, sizes(arguments.scale))
    table = Table(box=None, pad_edge=False, header_style="bold")
    headings = ("devices", "actors", "train", "batch", "s/step", "traj./s", "tokens/s", "socket", "buffer", "broadcast")
    for heading in (*headings, "limit"):
        table.add_column(heading, justify="right", no_wrap=True)
    for size in found:
        table.add_row(
            f"{size.devices:,}", f"{size.actors:,}", f"{size.training:,}", f"{size.batch:,}",
            f"{size.step_s:.1f}" + ("" if size.simulated else "*"), f"{size.trajectories_per_s:,.0f}",
            f"{size.tokens_per_s:,.0f}", f"{size.socket:.0%}", f"{size.buffer:.0%}", f"{size.broadcast:.0%}",
            size.limit or "",
        )  # fmt: skip
    Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120).print(table)
    print("Busy share of the learner's socket thread and of the task buffer; share of a step that weights take.")
    if not all(size.simulated for size in found):
        print("* by the closed form, times what the simulation took over it at the largest simulated size.")
    for limit in dict.fromkeys(size.limit for size in found if size.limit):
        first = next(size for size in found if size.limit == limit)
        print(f"From {first.devices:,} devices on the {limit} is the limit: {ADVICE[limit]}.")
    return 0


def _calibrate(paths: list[Path], out: Path | None) -> int:
    from launch.tune.calibrate import calibrate
    from launch.tune.calibration import save_calibration
    from launch.tune.records import read_runs

    if not paths or out is None:
        raise TuneError("azr tune calibrate needs run folders and a file: azr tune calibrate RUN... --out FILE")
    calibration = calibrate(read_runs(paths), out.stem)
    save_calibration(calibration, out)
    for name, figure in calibration.figures().items():
        print(f"{name:32} {figure.value:10.4g} +- {figure.error:8.2g} {figure.unit:20} {figure.source}")
    print(f"written: {out}. Next: azr tune RECIPE --calibration {out}")
    return 0


def _validate(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from launch.tune.trials import FOLDER, TRIALS
    from launch.tune.validate import validate

    folder = (arguments.traces or FOLDER).absolute()
    if arguments.measure is not None:
        names = [trial.name for trial in TRIALS]
        unknown = [name for name in arguments.measure if name not in names]
        if unknown:
            raise TuneError(f"no trial is called {', '.join(unknown)}; there are {', '.join(names)}")
        for trial in TRIALS:
            if not arguments.measure or trial.name in arguments.measure:
                trial.measure(folder, Path("runs/tune").absolute())
    if not arguments.validate:
        return 0
    found = validate(folder)
    found.show(Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120))
    if arguments.json:
        found.write(arguments.json)
    return 0


def _live(path: Path) -> int:
    from launch.tune.live import look
    from launch.tune.records import RunRecord

    for sentence in look(RunRecord(path)).sentences:
        print(sentence)
    return 0


def _search(recipe: str, overrides: list[str], arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from launch.config import load
    from launch.tune.report import find
    from launch.tune.scenario import Scenario
    from launch.tune.search import Searcher

    calibration = _calibration(arguments.calibration)
    if arguments.steps is not None and arguments.steps < 1:
        raise TuneError(f"--steps {arguments.steps}: a simulation counts one step or more")
    scenario = Scenario.of(load(recipe, overrides), calibration)
    with Console(stderr=True).status("simulating") as status:
        searcher = Searcher(calibration, arguments.steps, progress=lambda text: status.update(f"simulating {text}"))
        findings = find(recipe, overrides, scenario, calibration, searcher, tuple(arguments.vary))
    findings.show(Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120))
    if arguments.out:
        findings.write_recipe(arguments.out)
        print(f"written: {arguments.out}. Next: azr train {arguments.out}")
    if arguments.json:
        findings.write_json(arguments.json)
    return 0


def _calibration(name: str | None) -> Calibration:
    from launch.tune.calibration import load_calibration

    if name is None:
        raise TuneError(
            "a prediction needs a calibration of this hardware and model: --calibration FILE. Make one from short "
            "runs: azr tune calibrate RUN... --out FILE"
        )
    return load_calibration(Path(name))
