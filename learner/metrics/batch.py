"""The metrics of training in a batch: advantages by cell, and ages. Those of self-play: `actors/metrics.py`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from learner.trajectory import Trajectory


def describe_advantages(batch: Sequence[Trajectory], advantages: np.ndarray) -> dict[str, float]:
    """`advantage_mean/<cell>` and `advantage_std/<cell>`, over sequences. `advantages`: [B], aligned with `batch`."""
    groups: dict[str, list[float]] = defaultdict(list)
    for trajectory, advantage in zip(batch, advantages.tolist(), strict=True):
        groups[trajectory.cell.name].append(advantage)
    means = {f"advantage_mean/{name}": float(np.mean(values)) for name, values in groups.items()}
    return means | {f"advantage_std/{name}": float(np.std(values)) for name, values in groups.items()}


def describe_ages(batch: Sequence[Trajectory], version: int, arrivals: Mapping[int, int]) -> dict[str, float]:
    """Return the ages of a batch that was trained at `version`. `arrivals`: slot -> the version that the learner had
    made when the trajectory came in (`Gate.arrivals`).

    In versions, a trajectory's age = version - oldest = generation + queue + publish:

        age/generation   newest - oldest    the weights that changed while it was sampled
        age/queue        arrival - newest   from its last token to the learner: versions that the engine had not loaded,
                                            and the judging (a proposal waits for its solutions)
        age/publish      version - arrival  the wait for the rest of its batch, and for the batches before

    with oldest and newest of its tokens. `age_mean`, `age_max` and the three means are over trajectories.
    """
    oldest = np.array([t.oldest_version for t in batch])
    newest = np.array([t.newest_version for t in batch])
    arrival = np.array([arrivals[t.slot] for t in batch])
    ages = version - oldest
    return {
        "age_mean": float(ages.mean()),
        "age_max": float(ages.max()),
        "age/generation": float((newest - oldest).mean()),
        "age/queue": float((arrival - newest).mean()),
        "age/publish": float((version - arrival).mean()),
        "spanning": float(np.mean([len(t.versions) > 1 for t in batch])),
    }
