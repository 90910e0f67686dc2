"""The staleness study: how old may data be? Arms are values of `learner.max_staleness` and corrections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from launch.config import Config, load
from launch.study.definition import Arm, StudyError
from learner.settings import LossSettings

KEYS = {
    "learner.max_staleness": "--staleness",
    "learner.loss.correction": "--corrections",
}
"""The settings that the arms differ in, and the option that gives each."""
CORRECTIONS: tuple[str, ...] = get_args(LossSettings.model_fields["correction"].annotation)


def arms(bounds: Sequence[int], corrections: Sequence[str]) -> tuple[Arm, ...]:
    """The arms; the baseline of each is the one with the same correction and `max_staleness` 0. Raises StudyError."""
    if unknown := [name for name in corrections if name not in CORRECTIONS]:
        raise StudyError(f"--corrections {','.join(unknown)}: there are {', '.join(CORRECTIONS)}")
    if 0 not in bounds:
        raise StudyError(
            f"--staleness {','.join(map(str, bounds))} has no 0, which all others are compared with: add it"
        )
    if len(bounds) < 2 or len(set(bounds)) < len(bounds):
        raise StudyError(f"--staleness {','.join(map(str, bounds))}: give 0 and at least one other bound, each once")
    return tuple(
        Arm(
            name=f"{correction}-K{bound}",
            overrides=(f"learner.max_staleness={bound}", f"learner.loss.correction={correction}"),
            baseline=f"{correction}-K0" if bound else None,
        )
        for correction in corrections
        for bound in sorted(bounds)
    )


def question(recipe: str, bounds: Sequence[int], corrections: Sequence[str]) -> str:
    """The question, in words."""
    values = ", ".join(str(bound) for bound in sorted(bounds) if bound)
    with_ = " and ".join(corrections)
    return (
        f"Does {recipe} learn as well with learner.max_staleness = {values} as with 0 (synchronous), with "
        f"learner.loss.correction = {with_}?"
    )


def default_corrections(recipe: str, overrides: Sequence[str]) -> tuple[str, ...]:
    """The recipe's own correction. Raises ConfigError."""
    config: Config = load(recipe, overrides)
    return (config.learner.loss.correction,)
