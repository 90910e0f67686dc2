"""The description of a metric, and the catalogue of all metrics that a program may record.

Each package lists its own metrics: `learner/metrics/entries.py`, `learner/stream/reports.py` (what actors report),
`learner/sft/metric_catalogue.py`, `actors/metric_catalogue.py` and `launch/metric_catalogue.py`, which puts them
together. The recorder looks up every name that it writes, and docs/metrics.md is written from the same entries. A
recorded name that is not listed is written all the same, with an `UnlistedMetric` warning; the tests turn that warning
into an error.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum


class UnlistedMetric(UserWarning):
    """A metric was recorded or reported under a name that is not in the catalogue."""


class Kind(StrEnum):
    """The behaviour of a metric's values over time."""

    COUNTER = "counter"
    """Counts events since the run began, and never falls."""
    GAUGE = "gauge"
    """The value of one moment or of one step; may rise and fall."""
    SHARE = "share"
    """Part of a whole, from 0 to 1."""
    DURATION = "duration"
    """Time spent, in seconds or actor-seconds."""


class Combine(StrEnum):
    """The way in which the values of several actors become one."""

    SUM = "sum"
    """Added up; counters with those of actors that have left."""
    MEAN = "mean"
    """Mean over the connected actors."""
    MAX = "max"
    """Largest of the connected actors."""
    NEWEST = "newest"
    """The values of the actor whose `<group>/version` is highest; they stay when that actor leaves."""


class Whose(StrEnum):
    """The part of a run whose work, or whose time, a metric tells of."""

    RUN = "run"
    LEARNER = "learner"
    ACTORS = "actors"
    BUFFER = "task buffer"


SECONDS = "s"
ACTOR_SECONDS = "actor-s"
"""Seconds of actors, added up: two actors that wait for one second wait for two actor-seconds."""

_PLACEHOLDERS = {
    "kind": r"[a-z][A-Za-z0-9_-]{0,39}",
    "role": r"(?:propose|solve)",
    "cell": r"[a-z][A-Za-z0-9_-]{0,39}/(?:propose|solve)",
    "n": r"\d+",
}
"""Parts of a name that stand for many values; any other placeholder is one word."""
_MAX_NAMES = 10_000
"""Names that a catalogue remembers: a bound on what a faulty actor can make the learner keep."""
_WORD = r"[A-Za-z0-9_.-]+"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric, or a family of metrics whose names have one pattern."""

    name: str
    """Name, with placeholders in braces: `valid_rate/{kind}`."""
    kind: Kind
    whose: Whose
    meaning: str
    unit: str = ""
    combined: tuple[Combine, ...] = ()
    """Ways to combine the values that several actors report. If there is more than one, each has a name of its own with
    the way as its last part: `kv_usage/mean`."""
    healthy: str = ""
    """The values of a run that is well, in words; empty where there is no such range."""

    @property
    def recorded(self) -> tuple[str, ...]:
        """The names under which it is recorded."""
        ways = [way for way in self.combined if way not in (Combine.SUM, Combine.NEWEST)]
        return tuple(f"{self.name}/{way}" for way in ways) if ways else (self.name,)


@dataclass(frozen=True, slots=True)
class Entries:
    """Makes the entries of one owner, whose values are combined in one way."""

    whose: Whose
    combined: tuple[Combine, ...] = ()

    def counter(self, name: str, meaning: str, unit: str = "", healthy: str = "") -> Metric:
        """Return the entry of a counter."""
        return self._entry(Kind.COUNTER, name, unit, meaning, healthy)

    def gauge(self, name: str, unit: str, meaning: str, healthy: str = "") -> Metric:
        """Return the entry of a gauge."""
        return self._entry(Kind.GAUGE, name, unit, meaning, healthy)

    def share(self, name: str, meaning: str, healthy: str = "") -> Metric:
        """Return the entry of a share, which has no unit."""
        return self._entry(Kind.SHARE, name, "", meaning, healthy)

    def seconds(self, name: str, meaning: str, healthy: str = "") -> Metric:
        """Return the entry of a duration in seconds."""
        return self._entry(Kind.DURATION, name, SECONDS, meaning, healthy)

    def _entry(self, kind: Kind, name: str, unit: str, meaning: str, healthy: str) -> Metric:
        return Metric(
            name=name,
            kind=kind,
            whose=self.whose,
            meaning=meaning,
            unit=unit,
            combined=self.combined,
            healthy=healthy,
        )


@dataclass(frozen=True, slots=True)
class Section:
    """Metrics that are shown together."""

    title: str
    about: str
    metrics: tuple[Metric, ...]


class Catalogue:
    """Finds the metric that a name belongs to."""

    def __init__(self, sections: Iterable[Section], by_reported_name: bool = False) -> None:
        """`by_reported_name`: find metrics by the name that one actor reports, in place of those that are recorded."""
        self.sections = tuple(sections)
        names = ((name, m) for m in self for name in ((m.name,) if by_reported_name else m.recorded))
        self._patterns = [(_pattern(name), metric) for name, metric in names]
        self._found: dict[str, Metric | None] = {}
        self._warned: set[str] = set()

    def __iter__(self) -> Iterator[Metric]:
        """Every metric, in the order of the sections."""
        for section in self.sections:
            yield from section.metrics

    def find(self, name: str) -> Metric | None:
        """The metric that is recorded under `name`; None where it is not listed."""
        if name in self._found:
            return self._found[name]
        metric = next((metric for pattern, metric in self._patterns if pattern.fullmatch(name)), None)
        if len(self._found) < _MAX_NAMES:
            self._found[name] = metric
        return metric

    def check(self, names: Iterable[str]) -> None:
        """Warn of each name that is not listed, once (`UnlistedMetric`)."""
        unlisted = sorted({name for name in names if self.find(name) is None} - self._warned)
        if unlisted and len(self._warned) < _MAX_NAMES:
            self._warned.update(unlisted)
            text = ", ".join(repr(name[:80]) for name in unlisted)
            warnings.warn(f"metrics that are in no catalogue (learner/metrics/catalogue.py): {text}", UnlistedMetric, 2)


def _pattern(name: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", name)  # text and placeholders in turn
    return re.compile(
        "".join(_PLACEHOLDERS.get(part, _WORD) if index % 2 else re.escape(part) for index, part in enumerate(parts))
    )
