"""The reward table of Absolute Zero: one pure function from what was found to named terms, whose sum is the reward.

| role | found | term | reward |
| --- | --- | --- | --- |
| proposal | no valid task | invalid | -1 |
| | the buffer has it, `novelty = reject` | duplicate | -0.5 |
| | mean solve rate 0 < r < 1 | difficulty | 1 - r |
| | r in {0, 1} | difficulty | 0 (paper), -0.5 (reference) |
| | the buffer has it, `novelty = penalise` | duplicate | -duplicate_penalty; the two together >= -0.5 |
| | intrinsic measures, each in 0..1 | their names | weight x measure |
| solution | correct | correct | 1 |
| | well-formed but wrong | wrong | -0.5 |
| | cannot be read | format | -1 |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from actors.settings import IntrinsicSettings, SelfPlaySettings

INVALID = -1.0
WRONG = -0.5

COMPLEXITY_SCALE = 10.0
"""Cognitive complexity that counts half. A loop with a two-sided branch in it has about 5."""
HALSTEAD_SCALE = 1000.0
"""Halstead effort that counts half. `return x` has 13, a condition around one operation about 400, a loop with a branch
2,800."""


@dataclass(frozen=True)
class Proposed:
    """The findings on a proposal, which its reward depends on."""

    solved: Sequence[bool] | None
    """Which of its solutions were correct; None where it is no valid task."""
    duplicate: bool = False
    """The buffer had it already."""
    measures: Mapping[str, float] = field(default_factory=dict)
    """Intrinsic measures, 0..1, by the names of `IntrinsicSettings`."""


@dataclass(frozen=True)
class Solved:
    """The findings on a solution, which its reward depends on."""

    formatted: bool
    correct: bool


def reward_terms(found: Proposed | Solved, settings: SelfPlaySettings) -> dict[str, float]:
    """The terms of the reward, by name; see the module's table. Their sum is the reward."""
    if isinstance(found, Solved):
        if not found.formatted:
            return {"format": INVALID}
        return {"correct": 1.0} if found.correct else {"wrong": WRONG}
    if found.duplicate and settings.novelty == "reject":
        return {"duplicate": WRONG}
    if found.solved is None:
        return {"invalid": INVALID}
    terms = {"difficulty": _difficulty(found.solved, settings)}
    if found.duplicate and settings.novelty == "penalise":
        terms["duplicate"] = -min(settings.duplicate_penalty, terms["difficulty"] - WRONG)
    for name in IntrinsicSettings.model_fields:
        weight: float = getattr(settings.intrinsic, name)
        if weight and name in found.measures:
            terms[name] = weight * found.measures[name]
    return terms


def _difficulty(solved: Sequence[bool], settings: SelfPlaySettings) -> float:
    """Hard but possible tasks pay most; what all or none solve teaches nothing."""
    rate = sum(solved) / len(solved)
    if rate in (0.0, 1.0):
        return 0.0 if settings.compat == "paper" else WRONG
    return 1.0 - rate


def saturating(value: float, scale: float) -> float:
    """0 at 0, one half at `scale`, towards 1 beyond: no size of program pays without bound."""
    return value / (value + scale)


def distance(one: str, other: str) -> float:
    """Edit distance of two strings, divided by the longer's length: 0 for equal, 1 for nothing in common.

    Levenshtein's distance by Myers' bit vectors as Hyyro (2003) gives them: one big-integer step a character, so 2,000
    characters take milliseconds.
    """
    if not one or not other:
        return float(one != other)
    places: dict[str, int] = {}
    for index, character in enumerate(one):
        places[character] = places.get(character, 0) | 1 << index
    mask, last = (1 << len(one)) - 1, 1 << (len(one) - 1)
    up, down, score = mask, 0, len(one)
    for character in other:
        matches = places.get(character, 0)
        vertical = matches | down
        horizontal = (((matches & up) + up) ^ up) | matches
        rise = down | ~(horizontal | up) & mask
        fall = up & horizontal
        score += bool(rise & last) - bool(fall & last)
        rise = (rise << 1 | 1) & mask
        fall = fall << 1 & mask
        up = fall | ~(vertical | rise) & mask
        down = rise & vertical
    return score / max(len(one), len(other))
