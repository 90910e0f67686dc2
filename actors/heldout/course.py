"""The held-out measurements over the course of a run, as one actor makes them: before, beside and after its play."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

from actors.settings import SelfPlaySettings
from learner.lineage import split_label

_LOG = logging.getLogger(__name__)


class Measure(Protocol):
    """A measurement on held-out tasks; `actors.heldout.measure.Heldout` says more."""

    measured: int
    """The version that was measured last; -1: none."""

    async def maybe_run(self, version: int, alone: bool = False) -> dict[str, float] | None:
        """Numbers for the heartbeat, or None where nothing is due at this version. `alone`: nothing else uses the
        engine."""

    async def run_last(self, version: int) -> dict[str, float] | None:
        """The same, for the last version of a run; None where it was measured, or nothing is."""

    def hurry(self) -> int | None:
        """A measurement that goes on takes the whole engine; returns its version."""

    def undo(self, version: int) -> None:
        """The learner goes on from `version`: later ones are measured anew."""


class Course:
    """Starts the measurements that are due, one at a time, and has the numbers of the newest."""

    def __init__(self, heldout: Measure | None) -> None:
        """`heldout`: None for an actor that measures nothing."""
        self._heldout = heldout
        self._measured: dict[str, float] = {}
        self._failures = 0
        self._loaded = -1
        """Label of the version that the engine loaded last."""
        self._life = 0
        """The learner's life whose weights the engine runs."""
        self.running: asyncio.Task[None] | None = None
        """The measurement that goes on, or the last one."""

    def numbers(self) -> dict[str, float]:
        """The numbers of a heartbeat: `heldout/...` of the newest measurement, and `heldout_failures`."""
        return {"heldout_failures": float(self._failures), **self._measured}

    async def base(self, settings: SelfPlaySettings) -> None:
        """Measure the initial model before anything is trained, unless this run has a measurement. Given up after
        `selfplay.heldout_wait_s`, because the learner waits."""
        if self._heldout is None or self._heldout.measured >= 0 or not settings.heldout_wait_s:
            return
        wait_s = settings.heldout_wait_s
        try:
            async with asyncio.timeout(wait_s):
                await self._run(partial(self._heldout.maybe_run, 0, alone=True), 0)
        except TimeoutError:
            self._failures += 1
            _LOG.warning("the initial model is not measured: it takes longer than selfplay.heldout_wait_s = %g", wait_s)

    def goes_on_from(self, version: int) -> None:
        """The learner is at `version`: a resumed run takes later ones anew."""
        try:
            if self._heldout is not None:
                self._heldout.undo(version)
        except OSError as error:  # as for a measurement that failed
            _LOG.warning("held-out measurements after version %d could not be moved away: %s", version, error)

    def loaded(self, label: int) -> None:
        """The engine runs the version of this label: measure it beside the episodes, where that is due, unless the last
        measurement still goes on."""
        self._loaded = label
        version, life = split_label(label)
        if life != self._life:  # a restart of the learner undid what was measured of later versions
            self._life, self._measured = life, {}
            self.goes_on_from(version)
        if self._heldout is not None and (self.running is None or self.running.done()):
            self.running = asyncio.create_task(self._run(partial(self._heldout.maybe_run, version), version))

    def last(self, label: int) -> None:
        """Measure the last version, unless the engine runs another. A measurement of an earlier one that still goes on
        is given up: the engine no longer runs that version."""
        version = split_label(label)[0]
        if self._heldout is None or label != self._loaded or self._heldout.hurry() == version:
            return
        former, run = self.running, partial(self._heldout.run_last, version)

        async def measure() -> None:
            if former is not None:
                former.cancel()
                await asyncio.gather(former, return_exceptions=True)
            await self._run(run, version)

        self.running = asyncio.create_task(measure())

    async def _run(self, run: Callable[[], Awaitable[dict[str, float] | None]], version: int) -> None:
        life = self._life
        try:
            measured = await run()
            if measured and life == self._life:
                self._measured = measured
        except Exception as error:  # a measurement that failed is no reason to stop playing
            self._failures += 1
            _LOG.warning("the held-out measurement at version %d failed: %s: %s", version, type(error).__name__, error)
