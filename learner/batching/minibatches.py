"""Mini-batches: how one batch is split for several optimizer steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from learner.trajectory import Cell, Trajectory


def split_batch(batch: Sequence[Trajectory], num_parts: int) -> list[list[int]]:
    """Split `batch` into `num_parts` parts: ascending indices, every trajectory in one. Deterministic.

    Each part has an equal share of every cell, to one trajectory, and of the batch as a whole, to one. Trajectories of one
    prompt are neighbours in the cut, so that in every cell at most `num_parts - 1` prompts are in two parts: their rows are
    computed twice. Parts that would be empty are left out: a batch of fewer trajectories gives fewer parts.
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
