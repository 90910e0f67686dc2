"""The ledger: where everything that was granted is.

  L1  granted = trained + dropped + returned + queued + in flight, in every cell, at every moment

What ended (trained, dropped, returned) is counted as it happens, what is alive (queued, in flight) is counted from the
slots themselves whenever the ledger is asked for; so a slot that was lost, or counted twice, shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from learner.trajectory import Cell


class DropReason(StrEnum):
    """Reason why a slot's trajectory will never be trained."""

    ACTOR_LOST = "actor_lost"
    RETIRED = "retired"
    """Still in flight when a retired actor was removed."""
    GRANT_LOST = "grant_lost"
    """The actor is alive and does not have it: the grant was lost with a connection."""
    LEARNER_RESTART = "learner_restart"
    ROLLOUT_FAILED = "rollout_failed"
    STALE = "stale"
    """Came too late for `on_stale = drop`."""


@dataclass(slots=True)
class CellCounts:
    """Counts of one cell's slots by state. `queued` and `in_flight` are counted from the slots, the rest as events."""

    granted: int = 0
    trained: int = 0
    returned: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    queued: int = 0
    in_flight: int = 0
    stale_trained: int = 0
    """Slots among `trained` whose age was above the bound; `on_stale = train` alone permits them."""

    @property
    def conserved(self) -> bool:
        """Whether L1 holds in this cell."""
        return self.granted == self.ended + self.queued + self.in_flight

    @property
    def ended(self) -> int:
        """Number of slots that were trained, returned or dropped."""
        return self.trained + self.returned + self.dropped.total()

    def events(self) -> dict[str, Any]:
        """Return the counts of events, as plain data."""
        return {
            "granted": self.granted,
            "trained": self.trained,
            "returned": self.returned,
            "dropped": dict(self.dropped),
            "stale_trained": self.stale_trained,
        }

    @classmethod
    def of(cls, events: Mapping[str, Any]) -> Self:
        """The inverse of `events`."""
        return cls(**{**events, "dropped": Counter(events["dropped"])})


def conserved(ledger: Mapping[Cell, CellCounts]) -> bool:
    """Whether L1 holds in every cell."""
    return all(counts.conserved for counts in ledger.values())


def totals(ledger: Mapping[Cell, CellCounts]) -> dict[str, int]:
    """Return the ledger summed over cells: `granted`, `trained`, `dropped`, `returned`, `queued`, `in_flight`."""
    return {
        "granted": sum(c.granted for c in ledger.values()),
        "trained": sum(c.trained for c in ledger.values()),
        "dropped": sum(c.dropped.total() for c in ledger.values()),
        "returned": sum(c.returned for c in ledger.values()),
        "queued": sum(c.queued for c in ledger.values()),
        "in_flight": sum(c.in_flight for c in ledger.values()),
    }


def describe_ledger(ledger: Mapping[Cell, CellCounts]) -> dict[str, float]:
    """Return the ledger as metrics.

    `ledger/<state>` is the sum over cells, `ledger/<state>/<kind>/<role>` one cell, `ledger/dropped_<reason>` the sum
    of one reason (absent where it is 0). States are those of `totals`, and `stale_trained`.
    """
    numbers = {f"ledger/{state}": float(count) for state, count in totals(ledger).items()}
    numbers["ledger/stale_trained"] = float(sum(c.stale_trained for c in ledger.values()))
    for cell, counts in ledger.items():
        one = totals({cell: counts}) | {"stale_trained": counts.stale_trained}
        numbers |= {f"ledger/{state}/{cell.name}": float(count) for state, count in one.items()}
    reasons = sum((c.dropped for c in ledger.values()), Counter[str]())
    return numbers | {f"ledger/dropped_{reason}": float(count) for reason, count in sorted(reasons.items())}


def verdict(ledger: Mapping[Cell, CellCounts]) -> str:
    """Return the line that ends a run: `ledger: conserved (...)` or `ledger: VIOLATED (...)`."""
    sums = totals(ledger)
    detail = " + ".join(f"{sums[key]} {key}" for key in ("trained", "dropped", "returned", "queued", "in_flight"))
    if conserved(ledger):
        return f"ledger: conserved ({sums['granted']} granted = {detail})"
    broken = ", ".join(cell.name for cell, counts in ledger.items() if not counts.conserved)
    return f"ledger: VIOLATED in {broken} ({sums['granted']} granted, but {detail})"
