"""Checkpoints: a folder appears whole under its final name, or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from learner.ranks import Ranks
from learner.trajectory import Trajectory, dumps, loads


class Checkpoints:
    """The folder `checkpoints/` of a run: `step_00000012/` and so on, the newest `keep` of them."""

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory = directory
        self._keep = keep

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        found = sorted(self.directory.glob("step_????????"))
        return found[-1] if found else None

    def save(self, version: int, ranks: Ranks, write: Callable[[Path], None]) -> Path:
        """Every rank writes its part through `write(folder)`; rank 0 then gives the folder its name. Collective."""
        final = self.directory / f"step_{version:08d}"
        partial = self.directory / f".partial_{version:08d}"
        if ranks.is_main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        ranks.barrier()  # nobody writes before the folder is there
        write(partial)
        ranks.barrier()
        if ranks.is_main:
            for file in partial.rglob("*"):
                if file.is_file():
                    _sync(file)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            _sync(self.directory)
            for old in sorted(self.directory.glob("step_????????"))[: -self._keep]:
                shutil.rmtree(old)
        return final


def write_stream_state(directory: Path, gate_state: dict[str, Any], queued: Sequence[Trajectory]) -> None:
    """The ledger and the trajectories that wait."""
    (directory / "gate.json").write_text(json.dumps(gate_state))
    (directory / "queue.msgpack").write_bytes(dumps(queued))


def read_stream_state(directory: Path) -> tuple[dict[str, Any], list[Trajectory]]:
    """The inverse of `write_stream_state`."""
    return json.loads((directory / "gate.json").read_text()), loads((directory / "queue.msgpack").read_bytes())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
