"""Seconds of the engine's steps, by what they compute. Pure: the scheduler says when a step begins and ends.

A step may compute prompts and sample tokens at once. Its time is shared between `prefill` and `decode` by the rows that
each had in it. With vLLM's asynchronous scheduling steps overlap, and each moment counts once.
"""

from __future__ import annotations

from dataclasses import dataclass

STEP_TIMES = "azr_step_times"
"""The name under which the seconds travel from the scheduler's process to the actor's."""


@dataclass
class StepTimes:
    """Seconds since the engine started."""

    prefill: float = 0.0
    decode: float = 0.0
    between: float = 0.0
    """From the end of a step to the beginning of the next, while requests were there and the engine was not paused."""
    _mark: float | None = None
    """Up to when the time is counted; None while there is nothing to do."""
    _in_flight: int = 0

    def begin(self, now: float) -> None:
        """A step is about to be planned."""
        if not self._in_flight:
            if self._mark is not None:
                self.between += now - self._mark
            self._mark = now
        self._in_flight += 1

    def end(self, now: float, prefill_rows: int, decode_rows: int, more: bool) -> None:
        """A step's outputs are processed. `more`: requests are left, and the engine is not paused. A step without rows
        only tells the workers which requests have ended; its time counts nowhere."""
        rows = prefill_rows + decode_rows
        if rows and self._mark is not None:
            spent = now - self._mark
            self.prefill += spent * prefill_rows / rows
            self.decode += spent * decode_rows / rows
        self._in_flight -= 1
        self._mark = now if more or self._in_flight else None

    def pause(self) -> None:
        """The engine pauses: no time is counted until the next step."""
        if not self._in_flight:
            self._mark = None

    def to_json(self) -> dict[str, float]:
        """The seconds by part, as plain data."""
        return {"prefill": self.prefill, "decode": self.decode, "between": self.between}
