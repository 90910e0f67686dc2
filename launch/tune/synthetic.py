"""Workloads without a run: lengths of a lognormal distribution, as responses of reasoning models have them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from launch.tune.calibration import Group

GROUPS = 64
"""Groups of each cell."""


def lognormal_groups(
    prompt: int, median: float, sigma: float, longest: int, valid_rate: float | None, size: int = 8, seed: int = 0
) -> tuple[Group, ...]:
    """`GROUPS` groups of `size` responses to prompts of `prompt` tokens.

    `median`, `sigma`: of the lognormal distribution, in tokens and in natural logarithms; its mean is median x
    exp(sigma**2 / 2). `longest`: the limit on a response. `valid_rate`: of proposals; None for solutions.
    """
    rng = random.Random(seed)

    def response() -> int:
        return min(longest, max(1, round(rng.lognormvariate(math.log(median), sigma))))

    return tuple(
        Group(
            version=0,
            prompt=prompt,
            responses=tuple(response() for _ in range(size)),
            valid=() if valid_rate is None else tuple(rng.random() < valid_rate for _ in range(size)),
        )
        for _ in range(GROUPS)
    )


def lognormal_workload(
    kinds: Sequence[str], prompt: int, median: float, sigma: float, longest: int, valid_rate: float, seed: int = 0
) -> dict[str, tuple[Group, ...]]:
    """The same lengths in every cell of `kinds`."""
    found = {}
    for index, kind in enumerate(kinds):
        found[f"{kind}/propose"] = lognormal_groups(prompt, median, sigma, longest, valid_rate, seed=seed + 2 * index)
        found[f"{kind}/solve"] = lognormal_groups(prompt, median, sigma, longest, None, seed=seed + 2 * index + 1)
    return found
