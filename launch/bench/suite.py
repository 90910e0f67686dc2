"""`azr bench all`: every benchmark with short settings, each in a process of its own, one JSON each in a folder."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from executor.user_error import UserError
from launch.bench import peer_environment

HALF_BATCHES = [
    "smollm2-cpu-small",
    "learner.batch.propose={deduction=6,abduction=6,induction=4}",
    "learner.batch.solve={deduction=12,abduction=12,induction=8}",
]
"""About half of what the recipe's step trains on: a step of the recipe takes half a minute where cores have no AMX."""
SHORT: dict[str, list[str]] = {
    "executor": ["--runs", "2", "--seconds", "0.3"],
    "buffer": ["--runs", "2", "--tasks", "100000"],
    "stream": ["--runs", "2", "--seconds", "0.3"],
    "weights": ["--runs", "1"],
    "learner": ["--runs", "1", "--sequences", "48"],
    "e2e": [*HALF_BATCHES, "--runs", "1", "--steps", "2", "--staleness", "0,1"],
    "peer": ["--runs", "1", "--prompts", "2", "--tokens", "16"],
}
"""Options by benchmark. Together they take about ten minutes on two cores."""
TIMEOUT_S = 600.0
"""Seconds that one benchmark may take."""

DESCRIPTION = """\
Runs every benchmark with short settings, one after another, and writes NAME.json and NAME.txt (what it printed) for
each into a folder: about ten minutes on two cores. `peer` is left out until TRL is installed (azr bench peer
--install). `azr bench compare` compares two such folders. Run it on a machine that does nothing else; for figures to
quote, run a benchmark by itself, with its own settings.
"""

EXAMPLES = """\
exit codes:
  0   every benchmark was measured
  1   one failed, or found what must not be; the last lines name it

examples:
  azr bench all bench-today                          all of them
  azr bench all bench-today --only stream buffer     two of them
  azr bench compare docs/baselines/NAME bench-today
"""


class SuiteFolderError(UserError):
    """A folder for results that cannot be used."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `azr bench all`."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES  # read late, as the options are
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the results go; it is made if it is missing")
    parser.add_argument("--only", nargs="+", choices=sorted(SHORT), metavar="NAME", help="these (default: all)")


def run(arguments: argparse.Namespace) -> int:
    """Run as the command line says; returns the exit code. Raises UserError."""
    return run_all(arguments.folder, arguments.only or available())


def available() -> list[str]:
    """The benchmarks that need no installation first."""
    ready = peer_environment.is_complete(peer_environment.default_folder())
    return [name for name in SHORT if name != "peer" or ready]


def run_all(folder: Path, names: Sequence[str]) -> int:
    """Run the benchmarks `names`, in the order of `SHORT`; returns the exit code, 130 where one was interrupted."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SuiteFolderError(f"{folder} cannot be made: {error.strerror}. Name another folder") from None
    failed = []
    for name in (name for name in SHORT if name in names):
        print(f"{name}: azr bench {name} {' '.join(SHORT[name])}", flush=True)
        began = time.monotonic()
        code = _run_one(folder, name)
        print(f"{name}: {time.monotonic() - began:.0f} s" + (f", exit code {code}" if code else ""), flush=True)
        if code == 130:
            return code
        if code:
            failed.append(name)
    for name in failed:
        print(f"FAILED: {name}; what it printed: {folder / f'{name}.txt'}")
    return int(bool(failed))


def _run_one(folder: Path, name: str) -> int:
    """Run one benchmark in a process of its own; returns its exit code."""
    result = folder / f"{name}.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", "launch.cli", "bench", name, "--json", str(result), *SHORT[name]]
    with (folder / f"{name}.txt").open("w") as printed:
        process = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT)
        try:
            return process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            printed.write(f"\nended after {TIMEOUT_S:.0f} s\n")
            return 1
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(30.0)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
