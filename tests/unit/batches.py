"""Trajectories for tests of what is counted of a batch."""

from __future__ import annotations

import numpy as np

from learner.trajectory import Cell, Role, Status, Trajectory, VersionSpan


def make(
    kind: str,
    role: Role,
    reward: float,
    parts: dict[str, float],
    versions: tuple[tuple[int, int, int], ...] = ((5, 0, 2),),
    status: Status = Status.STOPPED,
    outcome: str = "",
    prompt: int = 1,
    first: int = 0,
) -> Trajectory:
    """`prompt`: the only token of the prompt; `first`: the response's first token, the others are 0."""
    spans = tuple(VersionSpan(*span) for span in versions)
    tokens = np.zeros(spans[-1].end, np.int32)
    tokens[0] = first
    return Trajectory(
        "run", "a", 0, 0, "e", Cell(kind, role), np.array([prompt], np.int32), tokens,
        np.zeros(len(tokens), np.float32), spans, reward, parts, status, outcome,
    )  # fmt: skip
