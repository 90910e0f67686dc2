"""The reward table of Absolute Zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

FORMAT_PENALTY = -1.0
WRONG_PENALTY = -0.5


def propose_reward(solved: Sequence[bool] | None, compat: Literal["paper", "reference"]) -> float:
    """Reward of a proposal. `solved`: which of its solutions were correct; None where it is no valid task.

    1 - r for a mean solve rate 0 < r < 1: hard but possible tasks pay most. For r in {0, 1} the task teaches nothing: 0
    in the paper, -0.5 in the reference implementation. No valid task: -1.
    """
    if solved is None:
        return FORMAT_PENALTY
    rate = sum(solved) / len(solved)
    if rate in (0.0, 1.0):
        return 0.0 if compat == "paper" else WRONG_PENALTY
    return 1.0 - rate


def solve_reward(formatted: bool, correct: bool) -> float:
    """Reward of a solution: 1 correct, -0.5 well-formatted but wrong, -1 where the format is broken."""
    if not formatted:
        return FORMAT_PENALTY
    return 1.0 if correct else WRONG_PENALTY
