"""The parts of the suite, each in a process of its own that is stopped at its limit.

Only the standard library is needed.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from tests.gpu.parts import ROOT, Part
from tests.gpu.result import Result, result_of

AT_ONCE = 4
"""Tests that run at the same time on a GPU: their models share its memory."""
AT_ONCE_DRY = 2
DRY_PATIENCE = 10
"""Times the limit of a part that it may take in a dry run, on a machine that is busy with other work."""
ABORT_S = 3.0
"""Seconds in which the processes of a part that is stopped say where they stood."""


class Suite:
    """A run of some parts in a folder for temporary files."""

    def __init__(self, parts: Sequence[Part], folder: Path, dry: bool, packages: Path) -> None:
        """`packages`: a folder that parts import from before all others."""
        self.parts = parts
        self.results: list[Result] = []
        """In the order in which the parts ended."""
        self._folder = folder
        self._dry = dry
        self._environment = environment(dry, packages)
        self._running: set[subprocess.Popen[bytes]] = set()
        self._ended = False

    def run(self) -> None:
        """Run all parts: tests some at a time, then benchmarks one by one. A KeyboardInterrupt stops those that run."""
        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))  # stopped processes abort: no gigabytes of memory images
        try:
            with ThreadPoolExecutor(AT_ONCE_DRY if self._dry else AT_ONCE) as pool:
                try:
                    list(pool.map(self._run, [part for part in self.parts if not part.bench]))
                except BaseException:
                    self._stop_all()
                    raise
            for part in self.parts:
                if part.bench:
                    self._run(part)
        finally:
            self._stop_all()

    def _run(self, part: Part) -> None:
        if self._ended:
            return
        folder = self._folder / part.name
        folder.mkdir()
        findings, log = folder / "findings", folder / "log"
        limit_s = part.limit_s * (DRY_PATIENCE if self._dry else 1)
        began = time.monotonic()
        with log.open("wb") as out:
            process = subprocess.Popen(
                part.command(findings, folder, self._dry), cwd=ROOT, env=self._environment,
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self._running.add(process)
        if self._ended:  # meanwhile
            _stop(process)
        try:
            code: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _stop(process)
            self._running.discard(process)
        if self._ended:
            return
        seconds = time.monotonic() - began
        result = result_of(part, code, seconds, limit_s, findings, log.read_text(errors="replace"))
        self.results.append(result)
        print(f"{result.name}: {result.status} in {seconds:.0f} s  {result.counts()}".rstrip(), flush=True)
        shutil.rmtree(folder / "tmp", ignore_errors=True)  # models and checkpoints

    def _stop_all(self) -> None:
        self._ended = True
        for process in list(self._running):
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started: those that still run first say where they stand, in their log."""
    if process.poll() is None:
        members = _group(process.pid)
        for pid in members:  # one after another: they share a log, and would write into each other's lines
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGABRT)  # Python's fault handler writes the stack of every thread
                os.kill(pid, signal.SIGCONT)  # also of a process that a test has stopped
            end = time.monotonic() + ABORT_S / len(members)
            while _runs(pid) and time.monotonic() < end:
                time.sleep(0.01)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _group(leader: int) -> list[int]:
    """The processes of a group, its leader first."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(ProcessLookupError):
            if os.getpgid(int(folder.name)) == leader:
                found.append(int(folder.name))
    return sorted(found, key=lambda pid: (pid != leader, pid))


def _runs(pid: int) -> bool:
    """Whether a process has not ended yet; one that nobody has waited for has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def environment(dry: bool, packages: Path) -> dict[str, str]:
    """The environment of every part."""
    found = {name: value for name, value in os.environ.items() if name not in ("PYTEST_ADDOPTS", "PYTHONHOME")}
    before = os.environ.get("PYTHONPATH")
    found["PYTHONPATH"] = os.pathsep.join([str(packages), str(ROOT), *([before] if before else [])])
    found |= {
        "HF_HUB_OFFLINE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONUNBUFFERED": "1",
        # Several parts compile kernels at the same time.
        "TORCHINDUCTOR_COMPILE_THREADS": "4",
    }
    if dry:
        # As in tests/conftest.py: tiny models, on cores that other tests use, too.
        found |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    return found
