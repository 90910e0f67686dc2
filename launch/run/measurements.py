"""The held-out measurements of a run: their files, and the wait for that of its last version."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol, TypeVar

from actors.heldout.measurement import Measurement, MeasurementError, read_measurement
from launch.config import Config
from launch.json_lines import to_json
from launch.run.folder import RunFolder
from launch.run.interrupts import INTERRUPTED
from launch.run.status import Progress
from launch.whole_file import write_text
from learner.disk import matches
from learner.phase import Phase
from learner.stream.member import Member

_LOG = logging.getLogger(__name__)
T = TypeVar("T")

MEASURING_ACTOR = 0
"""Index of the rollout actor that measures. All actors run the same weights, so one is enough."""
_POLL_S = 0.5


class MeasuringStream(Protocol):
    """The learner's end of the stream, as far as a measurement needs it."""

    def pause(self) -> None:
        """Grant nothing more."""

    def measure(self, version: int) -> None:
        """Ask for a measurement of the version of this label."""

    def members(self) -> list[Member]:
        """The connected actors."""

    def stats(self) -> dict[str, float]:
        """What the actors reported, combined."""


def files(folder: RunFolder) -> dict[int, Path]:
    """Version -> the file of its measurement, ascending."""
    found = matches(folder.heldout, r"version_[0-9]{8,}\.json")
    return dict(sorted((int(path.stem.removeprefix("version_")), path) for path in found))


def keep_in(folder: RunFolder) -> Callable[[Measurement], None]:
    """A function that writes each measurement to `heldout/version_NNNNNNNN.json` in the run's folder."""

    def keep(measurement: Measurement) -> None:
        folder.check_owner()
        folder.heldout.mkdir(exist_ok=True)
        write_text(folder.heldout / f"version_{measurement.version:08d}.json", to_json(measurement.to_json()) + "\n")

    return keep


def newest(folder: RunFolder) -> int:
    """The newest version that was measured in this run; -1: none."""
    return max(files(folder), default=-1)


def both_ends(folder: RunFolder) -> tuple[Measurement, Measurement] | None:
    """The measurements of the first and of the last version; None where there are not two. One that cannot be read
    counts as none."""
    found = []
    for path in files(folder).values():
        try:
            found.append(read_measurement(path))
        except MeasurementError as error:
            _LOG.warning("%s", error)
    return (found[0], found[-1]) if len(found) > 1 else None


def measures_base(config: Config, folder: RunFolder) -> bool:
    """Whether the run measures the initial model before its first step."""
    return _measures(config) and newest(folder) < 0


def _measures(config: Config) -> bool:
    """Whether the run waits for the measurements of its first and last version."""
    settings = config.selfplay
    return settings.heldout_every > 0 and settings.heldout_wait_s > 0 and config.run.mode != "rehearse"


def lacks_last(config: Config, folder: RunFolder, version: int) -> bool:
    """Whether the run measures its last version, `version`, and has not done so."""
    return _measures(config) and newest(folder) < version


def last_is_due(config: Config, folder: RunFolder, progress: Progress, version: int) -> bool:
    """Whether the run, which is saved, is to measure its last version before it ends. A run that a signal, or the end
    of its time on the machine, stops has no time for that: a resume makes up for it."""
    return progress.stop != INTERRUPTED and lacks_last(config, folder, version)


def await_last(
    stream: MeasuringStream, version: int, label: int, wait_s: float, progress: Progress
) -> dict[str, float]:
    """Have the last version measured, and return its metrics. Empty where that takes longer than `wait_s` seconds, it
    fails, no actor could do it, or a signal comes."""
    progress.enter(Phase.MEASURING)
    stream.pause()
    failures = stream.stats().get("heldout_failures", 0.0)
    stream.measure(label)
    deadline = time.monotonic() + wait_s
    while progress.stop != INTERRUPTED:
        if found := reported(stream, version):
            return found
        able = [m for m in stream.members() if m.holder.actor_id == f"rollout{MEASURING_ACTOR}"]
        if not any(member.loaded_version == version for member in able):
            return _given_up("its actor is gone")
        if stream.stats().get("heldout_failures", 0.0) > failures:
            return _given_up("it failed; the actor's log says why")
        if time.monotonic() > deadline:
            return _given_up(f"it takes longer than selfplay.heldout_wait_s = {wait_s:g}")
        time.sleep(_POLL_S)
    return _given_up("the run was interrupted")


def reported(stream: MeasuringStream, version: int) -> dict[str, float]:
    """The metrics of the measurement of this version, as far as an actor has reported it; else empty."""
    numbers = stream.stats()
    if numbers.get("heldout/version") != version:
        return {}
    return {name: value for name, value in numbers.items() if name.startswith("heldout/")}


async def bounded(run: Coroutine[Any, Any, T], wait_s: float, progress: Progress) -> T | None:
    """`await_last` for serial mode: the result of `run`, or None, also where it fails: the run is saved."""
    progress.enter(Phase.MEASURING)
    task = asyncio.ensure_future(run)
    deadline = time.monotonic() + wait_s
    while progress.stop != INTERRUPTED and time.monotonic() < deadline:
        if (await asyncio.wait({task}, timeout=_POLL_S))[0]:
            if (error := task.exception()) is None:
                return task.result()
            _given_up(f"{type(error).__name__}: {error}")
            return None
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    _given_up("the run was interrupted" if progress.stop == INTERRUPTED else "it took too long")
    return None


def _given_up(why: str) -> dict[str, float]:
    _LOG.warning("the last version is not measured on the held-out tasks: %s", why)
    return {}
