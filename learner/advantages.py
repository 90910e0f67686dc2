"""Advantages: turns the rewards of a batch into weights of the policy gradient."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from learner.settings import AdvantageSettings
from learner.trajectory import Trajectory

SMALLEST_STD = 1e-6
"""Standard deviation below which rewards count as equal. Dividing by less would turn rounding errors into full-size
advantages."""


def advantages(trajectories: Sequence[Trajectory], settings: AdvantageSettings) -> np.ndarray:
    """Compute one advantage per trajectory, float32 [B]; [0] for an empty batch.

    `reinforce`: A = R. The others compare a reward R with those of its peers, A = (R - mean) / std with the
    population's standard deviation, and differ in who the peers are:

    - `trr++` (Task-Relative REINFORCE++, Absolute Zero): the trajectories of the same (kind, role) cell.
    - `reinforce++` (REINFORCE++): the whole batch.
    - `group` (GRPO): the responses to the same prompt in the same cell. For solvers that is one task; for proposers,
    one
      draw of references. Without `group_std`, A = R - mean (Dr. GRPO).

    Mean and standard deviation are over sequences or, with `weighting = "token"`, over response tokens, so that a
    response counts as often as it has tokens.

    Without anything to compare the advantage is 0, never NaN and never the reward itself: for a trajectory without
    peers, and for peers with equal rewards (a deviation below `SMALLEST_STD`). An empty cell therefore leaves the
    others as they are, and a proposer whose prompts all differ (`selfplay.proposals_per_prompt = 1`) learns nothing
    from `group`.
    """
    rewards = np.array([t.reward for t in trajectories], dtype=np.float64)
    if settings.estimator == "reinforce":
        return rewards.astype(np.float32)
    peers: dict[Hashable, list[int]] = {}
    for index, trajectory in enumerate(trajectories):
        peers.setdefault(_peer_group(trajectory, settings.estimator), []).append(index)
    divide = settings.estimator != "group" or settings.group_std
    result = np.zeros(len(rewards))
    for members in peers.values():
        values = rewards[members]
        weights = np.ones(len(members))
        if settings.weighting == "token":
            weights = np.array([len(trajectories[i].response_ids) for i in members], dtype=np.float64)
        centred = values - np.average(values, weights=weights)
        std = np.sqrt(np.average(centred**2, weights=weights))
        if std > SMALLEST_STD:
            result[members] = centred / std if divide else centred
    return result.astype(np.float32)


def _peer_group(trajectory: Trajectory, estimator: str) -> Hashable:
    """The key of a trajectory's peer group: trajectories with equal keys are compared with each other."""
    match estimator:
        case "reinforce++":
            return None
        case "group":
            return trajectory.cell, trajectory.prompt_ids.tobytes()
        case _:
            return trajectory.cell
