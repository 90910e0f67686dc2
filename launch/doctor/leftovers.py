"""The section of `azr doctor` about what killed runs left outside of their folders, and how to remove it."""

from __future__ import annotations

import os
import re
import shlex
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from actors.worker_memory import MARK
from launch.doctor.report import Check, CheckState, Section
from launch.run.scratch import is_used, scratch_base

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PROCESSES = ("ray::", "raylet", "gcs_server", "VLLM::")


def leftovers(
    temporary: Path | None = None, shared: Path = Path("/dev/shm"), processes: Path = Path("/proc")
) -> Section:
    """The section about what this user's killed runs left; no check can fail.

    Looks in the folder of temporary files, in that of shared memory, and among the processes, unless others are given.
    """
    temporary = temporary or Path(tempfile.gettempdir())
    checks = [*_scratch(), *_sockets(temporary, processes), *_shared_memory(shared, processes), *_orphans()]
    nothing = Check("nothing", CheckState.INFO, "killed runs have left nothing behind")
    return Section("leftovers of killed runs", tuple(checks) or (nothing,))


def _scratch() -> Iterator[Check]:
    """Scratch folders whose driver is gone; files beside them are sockets of earlier versions of azr."""
    base = scratch_base()
    stale = [path for path in sorted(base.glob("*")) if not is_used(path)] if base.is_dir() else []
    for path in stale[:5]:
        owner = path / "owner"
        run = owner.read_text().strip() if owner.is_file() else ""
        yield _found("scratch folder", f"of {run or 'an earlier version of azr'}", f"rm -r {shlex.quote(str(path))}")
    if len(stale) > 5:
        yield _found(
            "scratch folders", f"{len(stale) - 5} more in {base}", f"rm -r {shlex.quote(str(base))}, if no run goes on"
        )


def _sockets(temporary: Path, processes: Path) -> Iterator[Check]:
    """VLLM's sockets that no process has bound."""
    try:
        bound = {line.split()[-1] for line in (processes / "net" / "unix").read_text().splitlines()}
    except OSError:
        return
    stale = [path for path in _mine(temporary) if _UUID.fullmatch(path.name) and str(path) not in bound]
    stale = [path for path in stale if stat.S_ISSOCK(path.lstat().st_mode)]
    if stale:
        names = f"{shlex.quote(str(temporary))}/????????-????-????-????-????????????"
        yield _found("sockets", f"{len(stale)} of vLLM in {temporary}", f"rm {names}, if no vLLM runs")


def _shared_memory(shared: Path, processes: Path) -> Iterator[Check]:
    """Semaphores and shared memory of Python's multiprocessing and of vLLM's workers that no process has mapped."""
    found = [path for path in _mine(shared) if path.name.startswith(("sem.mp-", "psm_")) or MARK in path.name]
    if not found:
        return
    mapped = "".join(_maps(processes))
    stale = sorted(path for path in found if str(path) not in mapped)
    if stale:
        paths = " ".join(shlex.quote(str(path)) for path in stale[:20])
        yield _found("shared memory", f"{len(stale)} objects that no process uses", f"rm {paths}")


def _orphans() -> Iterator[Check]:
    """Processes of Ray and vLLM whose parent has died."""
    for process in psutil.process_iter(["pid", "ppid", "name", "cmdline", "uids"]):
        info = process.info
        title = " ".join(info["cmdline"] or ()) or info["name"] or ""
        if (
            info["ppid"] == 1
            and info["uids"]
            and info["uids"].real == os.getuid()
            and _is_ours(title, info["name"] or "")
        ):
            yield _found("process", f"{info['pid']}, {title[:60]}, outlived its run", f"kill -9 {info['pid']}")


def _is_ours(title: str, name: str) -> bool:
    return title.startswith(_PROCESSES) or name.startswith(_PROCESSES)


def _maps(processes: Path) -> Iterator[str]:
    for path in processes.glob("[0-9]*/maps"):
        try:
            yield path.read_text(errors="replace")
        except OSError:  # it has ended, or is of another user
            continue


def _mine(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.lstat().st_uid == os.getuid()]
    except OSError:
        return []


def _found(name: str, what: str, command: str) -> Check:
    return Check(name, CheckState.INFO, f"{what}. To remove it: {command}")
