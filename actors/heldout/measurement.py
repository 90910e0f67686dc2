"""One measurement on the held-out tasks: what was solved and answered, as metrics and as a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from actors.heldout.intervals import Estimate, Solved, difference, rate
from actors.kinds.registry import names
from actors.settings import SelfPlaySettings
from executor.settings_table import first_error
from executor.user_error import UserError


class MeasurementError(UserError):
    """A file that is no measurement, or two that cannot be compared; the message says why."""


@dataclass(frozen=True)
class TaskResult:
    """What one policy answered to one task, a sample each."""

    kind: str
    difficulty: int
    program: str
    """The normalised program, which tells tasks of one program from others."""
    correct: tuple[bool, ...]
    answers: tuple[str | None, ...]
    """None: a reply that could not be read."""
    copied: tuple[bool, ...] = ()
    """Whether the answer is what the task shows (`TaskKind.is_copy`); empty for kinds that have no such answer."""

    @property
    def share(self) -> float:
        """The share of its samples that are correct."""
        return sum(self.correct) / len(self.correct)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one policy solved of the held-out tasks."""

    set: int
    """The number of the set (`tasks.SET`)."""
    digest: str
    """That of the tasks that were asked (`tasks.digest`)."""
    version: int
    newest: int
    """The newest version that sampled a token: above `version` where new weights came in meanwhile."""
    samples: int
    """Solutions a task."""
    temperature: float
    seconds: float
    tokens: int
    """Response tokens."""
    skipped: tuple[str, ...]
    """Tasks that do not fit a prompt; they are in no rate."""
    results: Mapping[str, TaskResult]
    """By the name of the task."""
    prompt_settings: Mapping[str, Any] = field(default_factory=dict)
    """See `prompt_settings`. Empty in files that were made before these were recorded."""

    def rate(self, kind: str | None = None, difficulty: int | None = None) -> Estimate | None:
        """The share solved: of one kind or difficulty, or the mean over kinds; None where there is no such task."""
        chosen = [
            Solved(one.program, one.kind, one.share)
            for one in self.results.values()
            if kind in (None, one.kind) and difficulty in (None, one.difficulty)
        ]
        return rate(chosen) if chosen else None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that were measured."""
        found = {one.kind for one in self.results.values()}
        return tuple(kind for kind in names() if kind in found)

    @property
    def difficulties(self) -> tuple[int, ...]:
        """The difficulties that were measured."""
        return tuple(sorted({one.difficulty for one in self.results.values()}))

    def numbers(self) -> dict[str, float]:
        """The metrics `heldout/...` (docs/metrics.md)."""
        rates: dict[str, Estimate | None] = {kind: self.rate(kind) for kind in self.kinds} | {"mean": self.rate()}
        found: dict[str, float] = {}
        for name, estimate in rates.items():
            if estimate is not None:
                found |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        for number in self.difficulties:
            if (estimate := self.rate(difficulty=number)) is not None:
                found[f"difficulty_{number}"] = estimate.value
        for kind in self.kinds:
            of_kind = [one for one in self.results.values() if one.kind == kind]
            answers = [answer for one in of_kind for answer in one.answers if answer is not None]
            copied = [
                copied
                for one in of_kind
                for copied, answer in zip(one.copied, one.answers, strict=False)
                if answer is not None
            ]
            if answers:
                found[f"{kind}_distinct_answers"] = len(set(answers)) / len(answers)
            if copied:
                found[f"{kind}_copies"] = sum(copied) / len(copied)
        found |= {
            "set": self.set,
            "tasks": len(self.results) + len(self.skipped),
            "skipped": len(self.skipped),
            "samples": self.samples,
            "temperature": self.temperature,
            "time_s": self.seconds,
            "tokens": self.tokens,
            "version": self.version,
            "version_newest": self.newest,
        }
        return {f"heldout/{name}": float(value) for name, value in found.items()}

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measurement:
        """The inverse of `to_json`, of data that may have been JSON text. Raises ValueError."""
        found = _ADAPTER.validate_python(data)
        if not found.results:
            raise ValueError("it has no task")
        for name, one in found.results.items():
            if one.kind not in names():
                raise ValueError(f"the task {name} is of the kind {one.kind}, and there are {', '.join(names())}")
            if not one.correct:
                raise ValueError(f"the task {name} has no solution")
        return found


_ADAPTER = TypeAdapter(Measurement)


def read_measurement(path: Path) -> Measurement:
    """The measurement in a file. Raises MeasurementError."""
    try:
        return Measurement.from_json(json.loads(path.read_text()))
    except OSError as error:
        raise MeasurementError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        why = str(error)
        if isinstance(error, ValidationError):
            where, what = first_error(error)
            why = f"{where}: {what.lower()}"
        raise MeasurementError(
            f"{path} is no measurement on held-out tasks, as `azr eval --json` writes ({why})"
        ) from None


def prompt_settings(settings: SelfPlaySettings, num_tasks: int) -> dict[str, Any]:
    """The settings that shape the prompts of the held-out tasks and bound the replies, by name. Examples come from the
    first `num_tasks` tasks, as many as fit."""
    found = {name: getattr(settings, name) for name in ("prompt_format", "max_solve_tokens", "examples")}
    if settings.examples:
        found |= {"max_prompt_tokens": settings.max_prompt_tokens, "heldout_tasks": num_tasks}
    return found


def differing_settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The values of `prompt_settings` that differ, of those that both measurements have, by name."""
    return {name: (before[name], after[name]) for name in before if name in after and before[name] != after[name]}


def not_recorded(before: Measurement, after: Measurement) -> str:
    """The sentence for measurements whose prompts cannot be compared, since a file does not record their settings;
    empty where both do."""
    lacking = [name for name, one in (("first", before), ("second", after)) if not one.prompt_settings]
    if not lacking:
        return ""
    which = "both measurements were" if len(lacking) == 2 else f"the {lacking[0]} measurement was"
    return f"{which} made before prompt settings were recorded: equal prompts are assumed, not checked"


def gain(before: Measurement, after: Measurement, kind: str | None = None) -> Estimate | None:
    """The difference of the shares solved, `after` - `before`, on the tasks that both have: paired by task.

    `kind`: of one kind; None: the mean over kinds. None where they have no such task in common. Raises MeasurementError
    where the tasks are of different sets, or their prompts, limits of replies or temperatures differ.
    """
    if before.set != after.set:
        raise MeasurementError(
            f"measurements on set {before.set} and set {after.set} of the held-out tasks cannot be compared (measure "
            "both with one version of azr: azr eval)"
        )
    if before.temperature != after.temperature:
        raise MeasurementError(
            f"measurements at temperature {before.temperature:g} and {after.temperature:g} cannot be compared "
            f"(measure one anew: azr eval TARGET --temperature {after.temperature:g})"
        )
    for name, (early, late) in differing_settings(before.prompt_settings, after.prompt_settings).items():
        raise MeasurementError(
            f"measurements with selfplay.{name} = {early} and {late} cannot be compared (measure one anew: azr eval "
            f"TARGET --set selfplay.{name}={late})"
        )
    both = [(before.results[name], one) for name, one in after.results.items() if name in before.results]
    paired = [
        Solved(late.program, late.kind, late.share - early.share) for early, late in both if kind in (None, late.kind)
    ]
    return difference(paired) if paired else None
