"""The state of a run as its training process reports it: typed, and turned into words in one place, `describe`."""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from launch.run.durations import NOTHING_MEASURED, Durations, Measured
from learner.phase import Phase

_LOG = logging.getLogger(__name__)


_OF_A_STEP = (Phase.TRAINING, Phase.PUBLISHING, Phase.RECORDING)
_OF_EVERY_STEP = (Phase.WAITING_FOR_BATCH, Phase.TRAINING, Phase.PUBLISHING, Phase.RECORDING, Phase.VALIDATING)


class Progress:
    """The state that the training process updates as it runs; another thread may ask it to stop."""

    def __init__(self, before: Durations = NOTHING_MEASURED) -> None:
        """`before`: durations that the run's earlier attempts have measured."""
        self.phase = Phase.STARTING
        self.step: int | None = None
        self.last: dict[str, float] = {}
        """The metrics of the newest step."""
        self.stop = ""
        """Why the run is to stop before its next step; empty while it goes on."""
        self.save_from: float | None = None
        """Time of `time.monotonic` at which a run that stops has to begin to save; None: it has all the time."""
        self.ends_at: float | None = None
        """Unix time at which the run stops by itself; None: no time ends it."""
        self.measured = Measured(before)
        self._step_since: float | None = None
        self.cpu_s: defaultdict[Phase, float] = defaultdict(float)
        """CPU seconds of the thread that trains, by phase."""
        self._since = time.monotonic()
        self._cpu_since = time.thread_time()

    def enter(self, phase: Phase, step: int | None = None) -> None:
        """Note that `phase` begins; `step`: the step it works on, where it works on one. One thread calls this."""
        now = time.thread_time()
        self.cpu_s[self.phase] += max(0.0, now - self._cpu_since)
        self._cpu_since = now
        self.phase, self.step, self._since = phase, step, time.monotonic()
        if phase is Phase.TRAINING:
            self._step_since = self._since
        elif phase not in _OF_A_STEP and self._step_since is not None:
            if phase is not Phase.DRAINING:  # which ends a step that was given up, too
                self.measured.step(self._since - self._step_since)
            self._step_since = None
        # Those of every step are many; a step's end is logged by `Recorder`.
        level = logging.DEBUG if phase in _OF_EVERY_STEP else logging.INFO
        _LOG.log(level, "phase %s%s", phase.value, "" if step is None else f", step {step}")

    def ask_to_stop(self, why: str, save_in_s: float | None = None) -> None:
        """Stop before the next step; `save_in_s`: seconds until the run has to begin to save, None: any time."""
        if save_in_s is not None:
            self.save_from = time.monotonic() + save_in_s
        self.stop = why  # last, because the loop looks at it first

    def limit(self, minutes: float | None) -> None:
        """Let the run stop by itself after `minutes`, unless its end is known already; None: no time ends it."""
        if self.ends_at is None and minutes:
            self.ends_at = time.time() + 60 * minutes

    def is_hurried(self) -> bool:
        """Whether the run stops and has to be saved by a deadline."""
        return self.save_from is not None

    def left_s(self) -> float:
        """Seconds until a run that stops has to begin to save; infinite without a deadline, 0 where it is late."""
        return math.inf if self.save_from is None else max(0.0, self.save_from - time.monotonic())

    def gives_up_step(self) -> bool:
        """Whether the step under way cannot end before the run has to begin to save, by the measured step time."""
        if self.save_from is None or self._step_since is None:
            return False
        step_s = self.measured.durations.step_s or 0.0
        ends = max(time.monotonic(), self._step_since + step_s)
        return ends > self.save_from

    @property
    def phase_s(self) -> float:
        """Seconds since the phase began."""
        return time.monotonic() - self._since

    def fields(self) -> dict[str, Any]:
        """The fields of `TrainingStatus`, as they are now."""
        return {
            "phase": self.phase,
            "step": self.step,
            "phase_s": self.phase_s,
            "last": self.last,
            "stop": self.stop,
            "durations": self.measured.durations,
            "ends_at": self.ends_at,
        }


@dataclass(frozen=True, kw_only=True)
class TrainingStatus:
    """The state of a training process at one moment; plain data that Ray carries to the driver."""

    phase: Phase = Phase.STARTING
    step: int | None = None
    """The step that `phase` works on, where it works on one."""
    phase_s: float = 0.0
    """Seconds since the phase began."""
    last: Mapping[str, float] = field(default_factory=dict)
    """The metrics of the newest step, as `metrics.jsonl` has them; empty before the first."""
    stop: str = ""
    """Why the run is to stop early; empty while it goes on."""
    durations: Durations = NOTHING_MEASURED
    """Of its steps and checkpoints."""
    ends_at: float | None = None
    """Unix time at which the run stops by itself (`run.max_minutes`); None: no time ends it."""


@dataclass(frozen=True, kw_only=True)
class RunStatus(TrainingStatus):
    """The state of a self-play run."""

    live: Mapping[str, float] = field(default_factory=dict)
    """The metrics that rollout actors reported last, combined over the actors."""
    ledger: Mapping[str, int] = field(default_factory=dict)
    """Slots by state, summed over the cells."""
    members: tuple[str, ...] = ()
    """Rollout actors that are connected to the stream."""
    loaded: tuple[str, ...] = ()
    """The members whose engines run weights of this learner."""
    waiting_for: str = ""
    """Which slots of which actors the batch waits for; filled once the phase has lasted `supervision.watchdog_s`."""
    generate_tokens_per_s: float = 0.0
    """Tokens that all engines generated per second, over the last seconds."""
    seeding: tuple[int, int] | None = None
    """While the task buffer is filled before the first step: (triplets it has, triplets wanted)."""


@dataclass(frozen=True, kw_only=True)
class SftStatus(TrainingStatus):
    """The state of a fine-tuning run."""

    num_steps: int = 0
    """Steps of the whole run."""
    validation: Mapping[str, float] = field(default_factory=dict)
    """The metrics of the newest step that measured the validation loss; empty before the first."""


def describe(status: TrainingStatus) -> str:
    """The phase in words that follow "the learner has been"."""
    words = _WORDS[status.phase]
    if status.step is not None:
        words += f" {status.step}"
    if status.phase is Phase.WAITING_FOR_ACTORS and isinstance(status, RunStatus) and status.seeding is not None:
        have, wanted = status.seeding
        words += f", which propose the first tasks: {10 * (10 * have // wanted)}% of {wanted} triplets"
    return words


def has_unsaved_work(status: TrainingStatus) -> bool:
    """Whether a stop has to wait for a step or a checkpoint."""
    return status.phase in _WORKING or (status.phase in _BETWEEN and bool(status.last))


_WORKING = (Phase.WAITING_FOR_BATCH, *_OF_A_STEP, Phase.SAVING, Phase.DRAINING, Phase.MEASURING, Phase.DONE)
"""Phases in which trajectories come in, or a step is taken or saved."""
_BETWEEN = (Phase.VALIDATING,)
"""Phases between two steps: the steps of this attempt, if there are any, may not be saved."""
_WORDS = {
    Phase.STARTING: "starting",
    Phase.WAITING_FOR_ACTORS: "waiting for rollout actors",
    Phase.WAITING_FOR_BATCH: "waiting for a batch",
    Phase.TRAINING: "training step",
    Phase.PUBLISHING: "publishing weights",
    Phase.RECORDING: "recording the step, with the task buffer's metrics",
    Phase.VALIDATING: "measuring the validation loss",
    Phase.SAVING: "saving",
    Phase.DRAINING: "waiting for what is in flight",
    Phase.MEASURING: "measuring the last version on the held-out tasks",
    Phase.DONE: "done",
    Phase.RESTARTING: "ended; it starts again from the last checkpoint",
}
