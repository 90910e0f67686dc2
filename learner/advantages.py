"""Advantages: from rewards to what the policy gradient is weighted with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from learner.settings import AdvantageSettings
from learner.trajectory import Cell, Trajectory


def advantages(trajectories: Sequence[Trajectory], settings: AdvantageSettings) -> np.ndarray:
    """One advantage a trajectory, float32 [B].

    `trr++` (Task-Relative REINFORCE++, Absolute Zero): A = (R - mean_cell) / std_cell over the trajectories of the same
    (kind, role) cell. `weighting = token` takes mean and deviation over response tokens, so that a long response counts
    as often as it has tokens. A cell of one trajectory, or whose rewards are all equal, says nothing about which response
    was better: its advantages are 0. `reinforce`: A = R.
    """
    rewards = np.array([t.reward for t in trajectories], dtype=np.float64)
    if settings.estimator == "reinforce":
        return rewards.astype(np.float32)
    result = np.zeros(len(rewards))
    cells: dict[Cell, list[int]] = {}
    for index, trajectory in enumerate(trajectories):
        cells.setdefault(trajectory.cell, []).append(index)
    for members in cells.values():
        values = rewards[members]
        if settings.weighting == "token":
            weights = np.array([len(trajectories[i].response_ids) for i in members], dtype=np.float64)
        else:
            weights = np.ones(len(members))
        mean = np.average(values, weights=weights)
        std = np.sqrt(np.average((values - mean) ** 2, weights=weights))
        if std > 1e-6:
            result[members] = (values - mean) / std
    return result.astype(np.float32)
