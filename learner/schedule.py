"""Says when a checkpoint is due: after a number of steps, or of minutes, since the one before."""

from __future__ import annotations

import time
from collections.abc import Callable

from learner.ranks import Ranks


class CheckpointSchedule:
    """Decides on rank 0 for all ranks, since the ranks' clocks differ."""

    def __init__(
        self,
        every_steps: int,
        every_minutes: float,
        ranks: Ranks,
        step: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """0 turns `every_steps` or `every_minutes` off. `step`: the newest one that is saved, or that the run began
        with; its time is now. `clock`: seconds."""
        self._every_steps = every_steps
        self._every_s = 60 * every_minutes
        self._ranks = ranks
        self._clock = clock
        self.saved = step
        """The newest step that is saved."""
        self._saved_at = clock()

    def due(self, step: int) -> bool:
        """Whether to save now, after `step`. Collective where minutes count."""
        if self._every_steps and step % self._every_steps == 0:
            return True
        if not self._every_s:
            return False
        return bool(self._ranks.share(lambda: self._clock() - self._saved_at >= self._every_s))

    def mark_saved(self, step: int) -> None:
        """Note that the save of `step` begins."""
        self.saved, self._saved_at = step, self._clock()
