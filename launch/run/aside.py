"""Moves recorded data out of the way, so that a run can take steps again: nothing that was recorded is deleted.

Killed at any point, either can be done again: each record is written or moved to its new place before it leaves the old
one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from launch.run.folder import RunFolder
from learner.disk import matches, sync


def undo_steps(folder: RunFolder, after: int) -> Path | None:
    """Move the rows and trajectories of steps above `after` to `attempts/NNN/aside.K/`; returns that folder.

    Lines of `metrics.jsonl` that are no rows, such as one that a kill cut short, move too. None: there was nothing to
    move.
    """
    lines = folder.metrics.read_bytes().splitlines(keepends=True) if folder.metrics.exists() else []
    kept: list[bytes] = []
    undone: list[bytes] = []
    for line in lines:
        step = _step(line)
        (undone if step is None or step > after else kept).append(line)
    batches = [path for path, step in _batches(folder) if step > after]
    if not undone and not batches:
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
    if batches:
        (aside / folder.trajectories.name).mkdir()
        for path in batches:
            path.rename(aside / folder.trajectories.name / path.name)
    return aside


def set_aside_all(folder: RunFolder) -> Path:
    """Move every step, trajectory and checkpoint of the run to `attempts/NNN/aside.K/`, and return that folder.

    The task buffer is left to `launch.run.task_buffer.set_aside`, which closes its log first.
    """
    aside = (folder.newest_attempt() or folder.new_attempt()).new_aside()
    link = folder.path / "hf"
    for path in (folder.metrics, folder.totals, folder.trajectories, folder.tensorboard, folder.checkpoints, link):
        if path.is_symlink() or path.exists():
            path.rename(aside / path.name)
    return aside


def last_step(folder: RunFolder) -> int:
    """The newest step that is recorded, in metrics or trajectories; 0 if none is."""
    lines = folder.metrics.read_bytes().splitlines(keepends=True) if folder.metrics.exists() else []
    steps = [step for line in lines if (step := _step(line)) is not None]
    return max(steps + [step for _, step in _batches(folder)], default=0)


def _step(line: bytes) -> int | None:
    """The step of a row of `metrics.jsonl`; None for a line that is no whole row."""
    if not line.endswith(b"\n"):
        return None
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if type(step) is int else None


def _batches(folder: RunFolder) -> Iterator[tuple[Path, int]]:
    """Each file with the trajectories of a step, and the step. Files of other names, such as a copy, are left alone."""
    for path in matches(folder.trajectories, r"step_[0-9]{8,}\.jsonl"):
        yield path, int(path.stem.removeprefix("step_"))
