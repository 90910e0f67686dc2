"""Splitting a batch into mini-batches, one optimizer step each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from learner.trajectory import Cell, Trajectory


def split_batch(batch: Sequence[Trajectory], num_parts: int) -> list[list[int]]:
    """Split `batch` into at most `num_parts` parts and return the indices of each, ascending. Deterministic.

    Every trajectory is in one part. Parts differ by at most one trajectory in every cell, and by at most one in all.
    Trajectories with one prompt stay together as far as possible: in every cell at most `num_parts - 1` prompts are
    split, and their rows are computed twice. A batch of fewer than `num_parts` trajectories gives fewer parts.
    """
    by_cell: dict[Cell, dict[bytes, list[int]]] = {}
    for index, trajectory in enumerate(batch):
        by_cell.setdefault(trajectory.cell, {}).setdefault(trajectory.prompt_ids.tobytes(), []).append(index)
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    turn = 0
    for prompts in by_cell.values():
        members = [index for same in prompts.values() for index in same]
        sizes = np.full(num_parts, len(members) // num_parts)
        # What is left over goes to the parts by turns: to the first ones, six cells would fill the first parts up.
        left_over = len(members) % num_parts
        sizes[(turn + np.arange(left_over)) % num_parts] += 1
        turn = (turn + left_over) % num_parts
        start = 0
        for part, size in zip(parts, sizes.tolist(), strict=True):
            part += members[start : start + size]
            start += size
    return [sorted(part) for part in parts if part]
