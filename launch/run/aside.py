"""Moves recorded data out of the way, so that a run can take steps again: nothing that was recorded is deleted.

Killed at any point, either can be done again: each record is written or moved to its new place before it leaves the old
one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from launch.run.folder import RunFolder
from learner.disk import matches, sync


def undo_steps(folder: RunFolder, after: int) -> Path | None:
    """Move the rows, trajectories and held-out measurements of steps above `after` to `attempts/NNN/aside.K/`; returns
    that folder.

    Lines of `metrics.jsonl` that are no rows, such as one that a kill cut short, move too. None: there was nothing to
    move.
    """
    lines = folder.metrics.read_bytes().splitlines(keepends=True) if folder.metrics.exists() else []
    kept: list[bytes] = []
    undone: list[bytes] = []
    for line in lines:
        step = _step(line)
        (undone if step is None or step > after else kept).append(line)
    batches = [path for path, step in _numbered(folder.trajectories, "step_", ".jsonl") if step > after]
    measured = [path for path, step in _numbered(folder.heldout, "version_", ".json") if step > after]
    if not undone and not batches and not measured:
        return None
    aside = (folder.newest_attempt() or folder.new_attempt()).new_aside()
    if undone:
        copy = aside / folder.metrics.name
        copy.write_bytes(b"".join(undone))
        sync(copy)
        fresh = folder.metrics.with_suffix(".partial")
        fresh.write_bytes(b"".join(kept))
        sync(fresh)
        fresh.rename(folder.metrics)
    _move([*batches, *measured], aside)
    return aside


def undo_measurements(folder: RunFolder, after: int) -> Path | None:
    """Move the held-out measurements of versions above `after` as `undo_steps` does.

    For the actor that measures: one that was under way when the learner started again is kept after `undo_steps`.
    """
    measured = [path for path, version in _numbered(folder.heldout, "version_", ".json") if version > after]
    if not measured:
        return None
    aside = (folder.newest_attempt() or folder.new_attempt()).new_aside()
    _move(measured, aside)
    return aside


def set_aside_all(folder: RunFolder) -> Path:
    """Move every step, trajectory and checkpoint of the run to `attempts/NNN/aside.K/`, and return that folder.

    The task buffer is left to `launch.run.task_buffer.set_aside`, which closes its log first.
    """
    aside = (folder.newest_attempt() or folder.new_attempt()).new_aside()
    link = folder.path / "hf"
    records = (folder.metrics, folder.totals, folder.trajectories, folder.heldout, folder.tensorboard)
    for path in (*records, folder.checkpoints, link):
        if path.is_symlink() or path.exists():
            path.rename(aside / path.name)
    return aside


def last_step(folder: RunFolder) -> int:
    """The newest step that is recorded, in metrics or trajectories; 0 if none is."""
    lines = folder.metrics.read_bytes().splitlines(keepends=True) if folder.metrics.exists() else []
    steps = [step for line in lines if (step := _step(line)) is not None]
    return max(steps + [step for _, step in _numbered(folder.trajectories, "step_", ".jsonl")], default=0)


def _move(paths: Iterable[Path], aside: Path) -> None:
    """Move files to folders in `aside` that are named as theirs."""
    for path in paths:
        place = aside / path.parent.name
        place.mkdir(exist_ok=True)
        path.rename(place / path.name)


def _step(line: bytes) -> int | None:
    """The step of a row of `metrics.jsonl`; None for a line that is no whole row."""
    if not line.endswith(b"\n"):
        return None
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if type(step) is int else None


def _numbered(folder: Path, prefix: str, suffix: str) -> Iterator[tuple[Path, int]]:
    """Each file of a step or version, and its number. Files of other names, such as a copy, are left alone."""
    for path in matches(folder, rf"{prefix}[0-9]{{8,}}{re.escape(suffix)}"):
        yield path, int(path.stem.removeprefix(prefix))
