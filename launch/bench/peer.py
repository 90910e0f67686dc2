"""azr beside TRL: one GRPO step on the same model, prompts, token counts and cores, in turns.

Both sides are processes of their own that stay loaded: `peer_ours.py`, and `peer_trl.py` in TRL's own environment
(`peer_environment.py`). The one whose turn it is not sleeps. What a step has to do is in `peer_work.py`, which also
checks that either side did it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from executor.cpus import allowed_cpus
from executor.user_error import UserError
from launch import models
from launch.bench import peer_environment
from launch.bench.learner_side import SHIPPED
from launch.bench.options import add_model, positive
from launch.bench.peer_trl import SETTINGS
from launch.bench.peer_work import Work, missing_work, not_trained, recorded
from launch.bench.peers import LineProcess, PeerError
from launch.bench.report import Goal, Report, Samples, Slice, TableOfFigures, by_run, describe_versions, progress

GOAL = Goal(4.0)
RECIPE = "smollm2-cpu"
"""The recipe whose learner and engine settings azr's side has."""
LR = 4e-5
"""The recipe's learning rate, on both sides: a smaller one changes no weight in bfloat16."""
TIMEOUT_S = 600.0
"""Seconds that loading, or one request, may take."""
LOG_LINES = 15
"""Lines of TRL's output that come with an error."""
PHASES = ("generate", "train")
TURNS = ("azr", "TRL", "asynchronous", "TRL", "azr")
"""Of one run; `asynchronous` is azr's other way."""
RUNS = 2
MENDED: dict[str, tuple[Any, str]] = {"use_vllm": (True, "with its weight update mended for a CPU (`--mended`)")}
"""TRL's settings with `--mended`, on top of `SETTINGS`."""

DESCRIPTION = """\
Measures one GRPO step of azr and of TRL side by side, in turns: new weights into the engine, responses to recorded
self-play prompts, one optimizer step on all of them. Model, prompts, token counts, cores and optimizer are the same,
and the rewards cost nothing on either side. TRL is installed into an environment of its own at the first call (minutes,
2.3 GiB). Run it on a machine that does nothing else.
"""

EXAMPLES = """\
exit code 1: a side did other work than was asked for, or did not train.

examples:
  azr bench peer                                     six to nine minutes, besides the installation
  azr bench peer --tokens 128 --prompts 4            longer responses
  azr bench peer --mended                            TRL with vLLM, whose weight update is mended for a CPU
  azr bench peer --env /scratch/trl --install        only make TRL's environment, in that folder
"""

# Ready before it imports torch and vLLM, which takes long on a busy machine.
_OURS = (
    "print('{}', flush=True); import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from launch.bench import peer_ours; peer_ours.main()"
)


class PeerWorkError(UserError):
    """A side that did other work than was asked for, or did not train; the message says which."""

    exit_code = 1


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    runs: int = RUNS
    threads: int = 0
    """Threads of each side; 0 takes every core that this process may use."""
    model: str = "smollm2-135m-instruct"
    prompts: int = 6
    responses: int = 8
    tokens: int = 32
    overlapped: int = 2
    """Steps of an asynchronous turn."""
    mended: bool = False
    """TRL generates with vLLM, whose weight update is mended."""
    env: Path = field(default_factory=peer_environment.default_folder)
    install: bool = False
    """Only make the environment."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `azr bench peer`."""
    parser.add_argument("--threads", type=positive(int), default=0, help="of each side (default: all cores)")
    add_model(parser)
    for name, default, about in (
        ("prompts", Options.prompts, "prompts in a step"),
        ("responses", Options.responses, "responses to each prompt"),
        ("tokens", Options.tokens, "tokens of each response"),
    ):
        parser.add_argument(
            f"--{name}", type=positive(int), default=default, metavar="N", help=f"{about} (default %(default)s)"
        )
    parser.add_argument("--mended", action="store_true", help="TRL with vLLM, which it cannot drive on a CPU by itself")
    parser.add_argument(
        "--env", type=Path, default=peer_environment.default_folder(), metavar="FOLDER",
        help="of TRL's environment, made if it is missing (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--install", action="store_true", help="make TRL's environment, and measure nothing")


def measure(arguments: argparse.Namespace) -> Report:
    """Measure as the command line says. Raises UserError."""
    names = ("runs", "threads", "model", "prompts", "responses", "tokens", "mended", "env", "install")
    return run(Options(**{name: getattr(arguments, name) for name in names}))


def run(options: Options) -> Report:
    """Measure. Ctrl-C ends it with the runs that are complete. Raises UserError."""
    from transformers import AutoTokenizer

    python = peer_environment.prepare(options.env, _say)
    threads = options.threads or allowed_cpus()
    report = Report(
        "peer",
        settings={
            "runs": options.runs, "threads": threads, "model": options.model, "prompts": options.prompts,
            "responses": options.responses, "tokens": options.tokens, "mended": options.mended, "lr": LR,
        },
        versions=describe_versions(("azr", "torch", "megatron-core", "vllm")),
    )  # fmt: skip
    if options.install:
        report.notes["installed"] = f"TRL's environment is complete: {options.env}"
        return report
    model_dir = models.prepare(options.model)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    work = recorded(SHIPPED, options.prompts, options.responses, options.tokens, tokenizer)
    order = {"op": "load", "model_dir": str(model_dir), "threads": threads, "lr": LR}
    with _sides(order, work, python, options) as (ours, theirs, versions):
        report.versions |= {f"peer: {name}": version for name, version in versions.items()}
        turns = Turns(work, ours, theirs, options.overlapped)
        try:
            with progress(2 + len(TURNS) * options.runs) as say:
                turns.measure(options.runs, say)
        except KeyboardInterrupt:
            report.notes["interrupted"] = f"stopped after {turns.runs} of {options.runs} runs"
    turns.report(report)
    report.tables.append(_settings_table(options))
    return report


class Turns:
    """Steps of both sides in turns, and what they come to."""

    def __init__(self, work: Work, ours: LineProcess, theirs: LineProcess, overlapped: int) -> None:
        self._work = work
        self._ours, self._theirs = ours, theirs
        self._overlapped = overlapped
        paths = [f"{phase}, {side}" for phase in (*PHASES, "both") for side in ("azr", "TRL")]
        self._samples = {path: Samples(path, "tokens") for path in (*paths, "asynchronous, azr")}
        self._ages: list[float] = []
        self._rows = 0
        self.runs = 0
        """Those that are complete."""

    def measure(self, runs: int, say: Callable[[str], None]) -> None:
        """Take turns. Raises PeerError, PeerWorkError."""
        for name, side in (("azr", self._ours), ("TRL", self._theirs)):
            say(f"first step of {name}")  # it allocates
            self._asked(name, side)
        for number in range(1, runs + 1):
            for turn in TURNS:
                say(f"run {number} of {runs}: {turn}")
                if turn == "asynchronous":
                    self._overlap()
                else:
                    self._step(turn, self._ours if turn == "azr" else self._theirs)
            for samples in self._samples.values():
                samples.end_run()
            self.runs += 1

    def _asked(self, name: str, side: LineProcess) -> dict[str, Any]:
        step = side.ask({"op": "step"}, TIMEOUT_S)
        self._check(name, step)
        return step

    def _step(self, name: str, side: LineProcess) -> None:
        step = self._asked(name, side)
        self._rows = step.get("rows", self._rows)
        for phase, key in (*((phase, f"{phase}_s") for phase in PHASES), ("both", "seconds")):
            self._samples[f"{phase}, {name}"].add(Slice(self._work.response_tokens, step[key], [step[key]]))

    def _overlap(self) -> None:
        answer = self._ours.ask({"op": "async", "steps": self._overlapped}, TIMEOUT_S)
        for step in answer["steps"]:
            self._check("azr, asynchronous", step)
        if answer["oldest"] > 1:
            raise PeerWorkError(f"azr trained on a response that is {answer['oldest']} versions old")
        self._ages.append(answer["mean_age"])
        seconds = answer["seconds"]
        tokens = self._work.response_tokens * self._overlapped
        self._samples["asynchronous, azr"].add(Slice(tokens, seconds, [seconds / self._overlapped]))

    def _check(self, name: str, step: dict[str, Any]) -> None:
        if wrong := missing_work(self._work, step["done"]) or not_trained(step):
            raise PeerWorkError(f"a step of {name}: {wrong}")

    def report(self, report: Report) -> None:
        """Add rows and ratios."""
        work = self._work
        if not self.runs:
            for key in ("over_trl", *(f"{phase}_over_trl" for phase in PHASES)):
                report.notes[key] = "no run was complete"
            return
        rates = {path: samples.rates for path, samples in self._samples.items()}
        report.rows += [samples.row() for samples in self._samples.values()]
        synchronous = by_run(rates["both, azr"], rates["both, TRL"])
        overlapped = by_run(rates["asynchronous, azr"], rates["both, TRL"])
        better = max(synchronous, overlapped, key=statistics.median)
        report.ratio("over_trl", better, GOAL)
        report.ratio("synchronous_over_trl", synchronous)
        report.ratio("asynchronous_over_trl", overlapped)
        for phase in PHASES:
            report.ratio(f"{phase}_over_trl", by_run(rates[f"{phase}, azr"], rates[f"{phase}, TRL"]))
        report.notes["work"] = (
            f"{len(work.prompts)} prompts of {sum(map(len, work.prompts)) / len(work.prompts):.0f} tokens on average, "
            f"{work.responses} responses each of {work.tokens} tokens: {work.response_tokens:,} response tokens a "
            f"step, which the rates count; {self._rows:,} rows computed here, "
            f"{sum(work.responses * (len(p) + work.tokens) for p in work.prompts):,} there without padding"
        )
        report.notes["ages"] = f"mean age of what azr trains on asynchronously: {statistics.mean(self._ages):.2f}"
        behind = [key for key, ratio in report.ratios.items() if ratio.median < 1]
        report.notes["where azr loses"] = (
            ", ".join(f"{key} {report.ratios[key].median:.3g}" for key in behind) or "nowhere in this run"
        )


def _settings_table(options: Options) -> TableOfFigures:
    """TRL's settings and the reasons for them."""
    settings = SETTINGS | (MENDED if options.mended else {})
    rows = [[name, str(value), reason] for name, (value, reason) in settings.items()]
    return TableOfFigures("TRL's settings", ("setting", "value", "reason"), rows)


@contextmanager
def _sides(
    order: dict[str, Any], work: Work, python: Path, options: Options
) -> Iterator[tuple[LineProcess, LineProcess, dict[str, str]]]:
    """Both sides, loaded, and the versions of TRL's environment. Raises PeerError."""
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    # TRL is one process and nothing runs beside it: its threads may wait as they do by default, which is faster.
    theirs_own = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    offline = {
        "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1", "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": str(order["threads"]), "TORCH_COMPILE_DISABLE": "1",
    }  # fmt: skip
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="azr-bench-"))
        _say("loading azr")
        command = [sys.executable, "-W", "ignore", "-c", _OURS, json.dumps(sys.path, allow_nan=False)]
        ours = stack.enter_context(LineProcess("azr", command, environment))
        ours.ask(order | {"recipe": RECIPE, "work": work.to_json()}, TIMEOUT_S)
        _say("loading TRL")
        script, log = Path(__file__).with_name("peer_trl.py"), Path(folder) / "trl.log"
        theirs = stack.enter_context(LineProcess("TRL", [str(python), "-I", str(script)], theirs_own | offline))
        settings = {name: value for name, (value, _) in MENDED.items()} if options.mended else {}
        try:
            load = order | work.to_json() | {"folder": folder, "log": str(log), "settings": settings}
            yield ours, theirs, theirs.ask(load, TIMEOUT_S)["versions"]
        except PeerError as error:
            if not str(error).startswith("TRL"):
                raise
            last = log.read_text(errors="replace").splitlines()[-LOG_LINES:] if log.exists() else []
            raise PeerError("\n".join([str(error), "The last lines that TRL wrote:", *last])) from None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
