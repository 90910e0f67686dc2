"""`tests/gpu/run`: the command line, what is printed, and the report as JSON.

    {"dry": bool, "commit": text or null, "machine": {...}, "seconds": number, "ok": bool,
     "parts": [{"name", "status", "seconds", "limit_s", "tests": [finding of findings.py], "figures": {name: value},
                "report": what `azr bench` wrote, or null, "log_excerpt": text}],
     "mfu_1_5b", "mfu_7b_slice", "rows_over_transformers", "tokens_over_transformers": number or null}

`status` is passed, failed, skipped (all of its tests were), or timed out. Only the standard library is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.gpu.parts import PARTS, ROOT, Part
from tests.gpu.result import table
from tests.gpu.suite import Suite, environment
from tests.gpu.wheels import WheelError, install, register_azr

KEYS = ("mfu_1_5b", "mfu_7b_slice", "rows_over_transformers", "tokens_over_transformers")
"""Figures of the benchmark that stand at the top of the report."""
FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130

FACTS = """
import json, torch, transformers
facts = {"torch": torch.__version__, "transformers": transformers.__version__, "gpus": torch.cuda.device_count()}
if facts["gpus"]:
    found = torch.cuda.get_device_properties(0)
    facts |= {"gpu": found.name, "gpu_gib": round(found.total_memory / 2**30, 1), "cuda": torch.version.cuda}
    facts |= {"nccl": ".".join(map(str, torch.cuda.nccl.version())), "capability": f"{found.major}.{found.minor}"}
print(json.dumps(facts))
"""

DESCRIPTION = """\
Tests and measures azr on this machine's GPU: one command, one table, one JSON, in under six minutes. Every part is a
process of its own with a time limit of its own; one that fails or hangs does not stop the others. Tests run some at a
time, benchmarks alone after them.
"""

EPILOG = """\
parts:
{parts}

A machine without a package index: run tests/gpu/pack where there is one, and bring build/gpu-wheels here with the tree.
They are installed into a temporary folder; the packages of this machine stay as they are.

exit codes: 0 all parts passed or were skipped, 1 a part failed or timed out, 2 the command or the machine is not fit
for it, 130 Ctrl-C.

examples:
  tests/gpu/run                                      everything, with the Python that has torch
  tests/gpu/run --json gpu.json                      the findings as JSON too, failures with the end of their logs
  tests/gpu/run --only weights executor              two parts
  tests/gpu/run --dry                                the same code on a CPU, with tiny shapes, in a minute or two
"""


def machine(variables: dict[str, str]) -> dict[str, Any]:
    """Facts about this machine, as torch sees it. Raises WheelError where torch cannot be imported."""
    done = subprocess.run([sys.executable, "-c", FACTS], env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WheelError(f"torch and transformers cannot be imported here:\n{done.stderr.strip()[-2000:]}")
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    cpus = len(os.sched_getaffinity(0))
    return facts | {"python": platform.python_version(), "kernel": platform.release(), "cpus": cpus}


@contextmanager
def _signals_as_interrupts() -> Iterator[None]:
    """Both SIGINT, which a shell's background jobs would ignore, and SIGTERM end the run: no process is left behind."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `tests/gpu/run`; returns the exit code."""
    listed = "\n".join(f"  {part.name:14}  {part.about} (at most {part.limit_s:.0f} s)" for part in PARTS)
    parser = argparse.ArgumentParser(
        prog="tests/gpu/run",
        description=DESCRIPTION,
        epilog=EPILOG.format(parts=listed),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dry", action="store_true", help="the same code on a CPU, with tiny shapes")
    parser.add_argument(
        "--only", nargs="+", choices=[part.name for part in PARTS], metavar="PART", help="these parts (default: all)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings there, too")
    arguments = parser.parse_args(argv)
    if arguments.json and not arguments.json.absolute().parent.is_dir():
        parser.error(f"--json {arguments.json}: there is no folder {arguments.json.parent}")
    chosen = chosen_parts(arguments.only or (), arguments.dry)
    with tempfile.TemporaryDirectory(prefix="azr-gpu-") as folder, _signals_as_interrupts():
        return _main(chosen, Path(folder), arguments.dry, arguments.json)


def chosen_parts(names: Sequence[str], dry: bool) -> list[Part]:
    """Return the parts `names`; by default all, in a dry run without those that another one covers."""
    return [part for part in PARTS if part.name in names or not names and not (dry and part.dry_within)]


def _main(parts: Sequence[Part], folder: Path, dry: bool, file: Path | None) -> int:
    began = time.monotonic()
    packages = folder / "packages"
    try:
        installed = install(packages)
        register_azr(packages)
        suite = Suite(parts, folder, dry, packages)
        facts = machine(environment(dry, packages))
    except WheelError as error:
        print(f"tests/gpu/run: {error}", file=sys.stderr)
        return WRONG_USE
    if not facts["gpus"] and not dry:
        torch = f"torch {facts['torch']} of {sys.executable}"
        print(f"tests/gpu/run: {torch} sees no GPU; --dry runs the same code on the CPU", file=sys.stderr)
        return WRONG_USE
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    if installed:
        print(f"for this run alone, from build/gpu-wheels: {', '.join(installed)}", flush=True)
    interrupted = False
    try:
        suite.run()
    except KeyboardInterrupt:
        interrupted = True
    order = [part.name for part in parts]
    results = sorted(suite.results, key=lambda result: order.index(result.name))
    seconds = time.monotonic() - began
    ok = not interrupted and all(result.ok for result in results)
    print(table(results))
    print(f"{seconds:.0f} s together{', interrupted' if interrupted else ''}")
    if file:
        figures = {name: value for result in results for name, value in result.figures.items() if name in KEYS}
        report = {"dry": dry, "commit": _commit(), "machine": facts, "seconds": seconds, "ok": ok}
        report |= {"parts": [asdict(result) for result in results], **dict.fromkeys(KEYS), **figures}
        file.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    return INTERRUPTED if interrupted else 0 if ok else FAILED


def _commit() -> str | None:
    """The commit that is checked out, if this is a checkout."""
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None
