"""A control group per sandbox: it limits the memory and the number of processes of a sandbox as a whole.

It is an extra layer, for a sandbox that has evaded its other limits: those of one execution are set in the child.
Version 2 needs a delegated group (`systemd-run --user --scope -p Delegate=yes`), version 1 a writable hierarchy (root
in many containers).
"""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path

PROCESSES = 64
"""Processes and threads that one sandbox may have. An honest one has three: keeper, fork server and child."""

_ROOT = Path("/sys/fs/cgroup")
_PREFIX = "azr-sandbox-"
_count = itertools.count()


class Cgroup:
    """The folders of one group, one a hierarchy."""

    def __init__(self, folders: list[Path]) -> None:
        self.folders = folders

    @classmethod
    def create(cls, memory_bytes: int) -> Cgroup:
        """A new group with at most `memory_bytes` of memory and PROCESSES processes. Raises OSError with the reason."""
        name = f"{_PREFIX}{os.getpid()}-{next(_count)}"
        group = cls([])
        try:
            for parent, files in _parents(memory_bytes):
                _sweep(parent)
                folder = parent / name
                folder.mkdir()
                group.folders.append(folder)
                for file, value in files.items():
                    (folder / file).write_text(str(value))
        except OSError as error:
            group.remove()
            raise OSError(error.errno, f"cannot make a control group: {error.strerror} ({error.filename})") from None
        return group

    def remove(self) -> None:
        """Remove the group. Its processes must have ended."""
        for folder in self.folders:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _parents(memory_bytes: int) -> list[tuple[Path, dict[str, int]]]:
    """The folders to make the group in, each with the contents of its files."""
    own = dict(_own_groups())
    if "pids" in own and "memory" in own:
        return [
            (_ROOT / "pids" / own["pids"], {"pids.max": PROCESSES}),
            (_ROOT / "memory" / own["memory"], {"memory.limit_in_bytes": memory_bytes}),
        ]
    if "" not in own:
        raise OSError(2, "this system has no control groups that azr knows")
    parent = _ROOT / own[""]
    enabled = (parent / "cgroup.subtree_control").read_text().split()
    if not {"pids", "memory"} <= set(enabled):
        (parent / "cgroup.subtree_control").write_text("+pids +memory")
    return [(parent, {"pids.max": PROCESSES, "memory.max": memory_bytes})]


def _own_groups() -> list[tuple[str, str]]:
    """(controller, path below its root) of this process; the controller of version 2 is ""."""
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        found += [(controller, path.lstrip("/")) for controller in controllers.split(",")]
    return found


def _sweep(parent: Path) -> None:
    """Remove the groups of supervisors that were killed before they could do so."""
    for folder in parent.glob(_PREFIX + "*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if not Path("/proc", pid).exists():
            with contextlib.suppress(OSError):
                folder.rmdir()
