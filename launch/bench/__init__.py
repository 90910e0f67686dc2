"""`azr bench`: measure a part of azr on this machine, beside a peer or a limit that is measured in the same run.

Open the file of a subject, such as `executor.py`, for what is measured, `report.py` for what comes out.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launch.bench.report import Report

PATHS = (
    "cached", "new", "batch10", "batch50", "error", "timeout", "bare", "workers", "python", "bubblewrap", "pebble", "mix",
)  # fmt: skip
"""What `--only` chooses from. F, the fork that the rest is compared with, is always measured."""

_EXECUTOR = """\
Measures executions a second and latency of the sandbox by path, in turns with what it is compared with: F, the fork, exit
and wait of a process with the sandbox's modules loaded; a fresh `python -I` for each; bubblewrap, where installed; and a
warm pebble pool that runs programs in process without isolation, the public reference's way. Then recorded self-play work
(`mix`), judged here and in the reference's way.

A ratio is the median over the runs, with the least and the greatest. Run it on a machine that does nothing else.
"""

_EXECUTOR_EPILOG = """\
paths:
  cached, new           one execution of a program seen before, or never seen before
  batch10, batch50      10 or 50 inputs of one program, counted in inputs
  error, timeout        a program that raises; one that never ends, by how much the limit is overshot
  bare                  the same server with every layer of the wall switched off, for hardened_over_bare
  workers               many callers on all workers, and on one of them
  python, bubblewrap    a fresh interpreter for every execution, and the same in namespaces of its own
  pebble                the public reference's way, one execution after another (pip install 'azr[bench]')
  mix                   recorded self-play work: validations with two runs, verifications of all three kinds

examples:
  azr bench executor                                 everything, one to two minutes
  azr bench executor --only cached new --runs 3      two paths and F
  azr bench executor --json executor.json            the same findings as JSON too
  azr bench executor --only mix --mix runs/NAME/executor_work.rollout0.jsonl     your own run's work (executor.record_work)
  azr bench executor --endurance 100000              does rate or memory drift?
"""

_BUFFER = """\
Measures the task buffer: requests a second and latency of add, references, replay and record at a thousand, a hundred thousand
and a million tasks, and of the same draw in the naive way, ORDER BY RANDOM(). The buffers lie in the folder for temporary files
while they are measured (about half a GiB a million tasks).
"""

_BUFFER_EPILOG = """\
examples:
  azr bench buffer                                   up to a million tasks, about a minute
  azr bench buffer --tasks 100000                    a few seconds
  azr bench buffer --tasks 10000000 --folder /data   ten million: minutes, and 5 GiB of disk
  azr bench buffer --json buffer.json                the same findings as JSON too
"""

_WEIGHTS = """\
Measures the weight broadcast from learner to engines: a whole update, in buckets and under names, in turns with a raw broadcast of
as many bytes over the same group and with a safetensors file saved and loaded. Then a vLLM engine takes updates while it generates,
and each phase is timed apart.
"""

_WEIGHTS_EPILOG = """\
examples:
  azr bench weights                                  about two minutes; most of it starts the engine
  azr bench weights --no-engine --receivers 2        the transport alone, to two processes
  azr bench weights --json weights.json              the same findings as JSON too
"""

_STREAM = """\
Measures the stream from an actor to the learner, at 200, 2,000 and 8,000 tokens a trajectory: what a run does (grants, checks, gate,
acknowledgements), in turns with the same frames over bare ZeroMQ, a Ray queue and a multiprocessing queue.
"""

_STREAM_EPILOG = """\
examples:
  azr bench stream                                   one to two minutes
  azr bench stream --json stream.json                the same findings as JSON too
"""

_LEARNER = """\
Measures the learner: whole optimizer steps on a recorded self-play batch, in turns with transformers and torch.optim on the same
batch and threads; peak memory of both; the transformer layers at 2,048 packed rows beside the machine's bfloat16 matrix peak; and
what packing and shared prompts compute. A ratio is the median over the runs. Run it on a machine that does nothing else.
"""

_LEARNER_EPILOG = """\
examples:
  azr bench learner                                  SmolLM2-135M on all cores: five to ten minutes
  azr bench learner --runs 1                         a first look
  azr bench learner --json learner.json              the same findings as JSON too
"""


def register(commands: Any) -> None:
    """Add `bench` to argparse's subcommands, the object that `add_subparsers` gave."""
    bench = commands.add_parser("bench", help="measure a part of azr on this machine")
    subjects = bench.add_subparsers(required=True, metavar="WHAT")

    def subject(
        name: str, run: Callable[[argparse.Namespace], int], about: str, text: str, epilog: str, runs: int = 5
    ) -> argparse.ArgumentParser:
        """A subject, with the options that all have."""
        raw = argparse.RawDescriptionHelpFormatter
        parser: argparse.ArgumentParser = subjects.add_parser(
            name, help=about, description=text, epilog=epilog, formatter_class=raw
        )
        parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings there, too")
        parser.add_argument("--runs", type=_positive(int), default=runs, help="repetitions (default %(default)s)")
        parser.set_defaults(run=lambda arguments: _checked(run, arguments))
        return parser

    executor = subject(
        "executor",
        _executor,
        "the sandbox: executions a second, latency, recorded self-play work",
        _EXECUTOR,
        _EXECUTOR_EPILOG,
    )
    executor.add_argument(
        "--seconds",
        type=_positive(float),
        default=0.5,
        metavar="S",
        help="a path's time in each run (default %(default)s)",
    )
    executor.add_argument(
        "--workers", type=_workers, default=2, metavar="N", help="sandboxes, and processes of the reference (default 2)"
    )
    executor.add_argument("--mix", type=Path, metavar="FILE", help="recorded work in place of the one that ships")
    executor.add_argument(
        "--only", nargs="+", choices=PATHS, metavar="PATH", help="these paths (default: all; see below)"
    )
    executor.add_argument(
        "--endurance", type=_positive(int), metavar="N", help="N executions instead; rate and memory at every tenth"
    )

    buffer = subject(
        "buffer",
        _buffer,
        "the task buffer: requests a second, latency, by the number of tasks",
        _BUFFER,
        _BUFFER_EPILOG,
        runs=3,
    )
    buffer.add_argument(
        "--tasks", type=_tasks, default=1_000_000, metavar="N", help="the largest buffer (default %(default)s)"
    )
    buffer.add_argument(
        "--seconds",
        type=_positive(float),
        default=0.1,
        metavar="S",
        help="a request's time at one size, twice in each run (default %(default)s)",
    )
    buffer.add_argument("--folder", type=Path, metavar="DIR", help="where the buffers lie while they are measured")

    weights = subject(
        "weights",
        _weights,
        "the weight broadcast: its rate beside a raw broadcast and a file, and what an engine pauses for it",
        _WEIGHTS,
        _WEIGHTS_EPILOG,
    )
    weights.add_argument("--model", default="smollm2-135m-instruct", metavar="NAME", help="a folder, or a known name")
    weights.add_argument(
        "--receivers", type=_positive(int), default=1, metavar="N", help="processes that receive (default %(default)s)"
    )
    weights.add_argument(
        "--no-engine", action="store_true", help="leave the vLLM engine out: seconds in place of minutes"
    )

    stream = subject(
        "stream",
        _stream,
        "the stream: trajectories and bytes a second, latency, beside bare ZeroMQ and two queues",
        _STREAM,
        _STREAM_EPILOG,
    )
    stream.add_argument(
        "--seconds",
        type=_positive(float),
        default=0.5,
        metavar="S",
        help="a way's time at one length, twice in each run (default %(default)s)",
    )

    learner = subject(
        "learner",
        _learner,
        "the learner: tokens a second and memory beside transformers, share of the machine's peak, packing",
        _LEARNER,
        _LEARNER_EPILOG,
    )
    learner.add_argument("--threads", type=_positive(int), default=0, help="of each side (default: all cores)")
    learner.add_argument("--model", default="smollm2-135m-instruct", metavar="NAME", help="a folder, or a known name")
    learner.add_argument(
        "--token-budget", type=_positive(int), default=4096, metavar="N", help="of a micro-batch (default %(default)s)"
    )


def _positive(kind: type[int] | type[float]) -> Any:
    def read(text: str) -> float:
        value = kind(text)
        if not 0 < value < 1e9:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    read.__name__ = kind.__name__
    return read


def _workers(text: str) -> int:
    value = int(text)
    if not 2 <= value <= 512:
        raise argparse.ArgumentTypeError("at least 2, since determinism is checked across two sandboxes, at most 512")
    return value


_workers.__name__ = "int"


def _tasks(text: str) -> int:
    value = int(text)
    if not 1000 <= value <= 100_000_000:
        raise argparse.ArgumentTypeError("at least 1000 tasks, at most 100 million")
    return value


_tasks.__name__ = "int"


def _checked(run: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """Run a subject, if its findings can be written."""
    if arguments.json and not arguments.json.absolute().parent.is_dir():
        return _no_folder(arguments.json, arguments.json.parent)
    from launch.bench.peers import PeerError

    try:
        return run(arguments)
    except PeerError as error:
        print(f"azr: nothing was measured: {error}", file=sys.stderr)
        return 1


def _no_folder(path: Path, folder: Path) -> int:
    print(f"azr: {path}: there is no folder {folder}; make it first", file=sys.stderr)
    return 2


def _executor(arguments: argparse.Namespace) -> int:
    from executor.sandbox import InfrastructureError
    from launch.bench import endurance, executor, mix

    try:
        if arguments.endurance:
            report = endurance.run(arguments.endurance, arguments.workers)
        else:
            only = frozenset(arguments.only or PATHS)
            options = executor.Options(arguments.runs, arguments.seconds, arguments.workers, only, arguments.mix)
            report = executor.run(options)
    except mix.MixError as error:
        print(f"azr: {error}", file=sys.stderr)
        return 2
    except InfrastructureError as error:
        print(f"azr: nothing was measured: {error}", file=sys.stderr)
        return 1
    return _give(report, arguments.json)


def _buffer(arguments: argparse.Namespace) -> int:
    import sqlite3

    from launch.bench import buffer

    if arguments.folder and not arguments.folder.is_dir():
        return _no_folder(arguments.folder, arguments.folder)
    try:
        report = buffer.run(buffer.Options(arguments.tasks, arguments.runs, arguments.seconds, arguments.folder))
    except (OSError, sqlite3.Error) as error:
        print(f"azr: nothing was measured: {error}", file=sys.stderr)
        return 1
    return _give(report, arguments.json)


def _weights(arguments: argparse.Namespace) -> int:
    # As in a run, and before torch is loaded: a thread that spins at a barrier takes the core from the one that sends.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from launch.bench import weights

    options = weights.Options(arguments.model, arguments.runs, arguments.receivers, engine=not arguments.no_engine)
    return _give(weights.run(options), arguments.json)


def _stream(arguments: argparse.Namespace) -> int:
    from launch.bench import stream

    return _give(stream.run(stream.Options(arguments.runs, arguments.seconds)), arguments.json)


def _learner(arguments: argparse.Namespace) -> int:
    from launch.bench import learner
    from launch.models import ModelError

    options = learner.Options(arguments.runs, arguments.threads, arguments.model, arguments.token_budget)
    try:
        return _give(learner.run(options), arguments.json)
    except ModelError as error:
        print(f"azr: {error}", file=sys.stderr)
        return 2


def _give(report: Report, file: Path | None) -> int:
    """Show the findings and write them; returns the exit code."""
    from rich.console import Console

    # Elsewhere than on a terminal, wide enough for a whole row.
    report.show(Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120))
    if file:
        try:
            report.write(file)
        except OSError as error:
            print(f"azr: the findings could not be written: {error}", file=sys.stderr)
            return 1
    return 130 if "interrupted" in report.notes else 0
