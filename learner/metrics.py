"""What a batch says about the policy: rates, rewards and ages, as one flat map of numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from learner.trajectory import Role, Status, Trajectory


def describe_batch(batch: Sequence[Trajectory], version: int) -> dict[str, float]:
    """Numbers of a batch that was trained at `version`. A rate whose cell is empty is absent, never 0.

    `valid_rate/<kind>`: proposals that became tasks. `solve_rate/<kind>`: correct solutions, replayed tasks included;
    `solve_rate_fresh/<kind>`: of this batch's own proposals only. Ages are in versions: `age = version - oldest`, which is
    `age_generation` (newest - oldest: weights that changed under the rollout) plus `age_queue` (version - newest).
    """
    numbers: dict[str, float] = {}
    groups: dict[str, list[float]] = defaultdict(list)
    for t in batch:
        kind, role = t.cell
        groups[f"reward/{t.cell.name}"].append(t.reward)
        groups[f"response_tokens/{t.cell.name}"].append(len(t.response_ids))
        groups[f"truncated/{t.cell.name}"].append(t.status is Status.TRUNCATED)
        if role is Role.PROPOSE:
            groups[f"valid_rate/{kind}"].append(t.reward_parts.get("valid", 0.0))
        else:
            correct = t.reward_parts.get("correct", 0.0)
            groups[f"solve_rate/{kind}"].append(correct)
            if not t.reward_parts.get("replayed"):
                groups[f"solve_rate_fresh/{kind}"].append(correct)
    numbers |= {name: float(np.mean(values)) for name, values in sorted(groups.items())}
    ages = np.array([version - t.oldest_version for t in batch])
    within = np.array([t.newest_version - t.oldest_version for t in batch])
    numbers |= {
        "age_mean": float(ages.mean()),
        "age_max": float(ages.max()),
        "age_generation": float(within.mean()),
        "age_queue": float((ages - within).mean()),
        "spanning": float(np.mean([len(t.versions) > 1 for t in batch])),
        "batch_size": len(batch),
        "reward_mean": float(np.mean([t.reward for t in batch])),
    }
    return numbers
