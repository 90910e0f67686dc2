"""The life of a rollout actor as a state machine. Pure: no Ray, no clock; what happens to an actor is decided here alone.

    WAITING --start--> STARTING --the learner has it among its members--> JOINED --surplus--> LEAVING
       ^                  |                                                 |                    |
       |                  +--surplus--> DISCARDED --ended--+                |                    |
       |                  +--the learner has moved--> MOVING <--------------+                    |
       |                                                 |                                       |
       +---------ended: at once, after a wait that grows with its failures, or when wanted again-+

An actor has one `ActorLife` for the whole run; each process of it is the next incarnation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from launch.cluster.budget import FailureBudget
from launch.run.status import RunStatus
from learner.phase import Phase

ENDING_S = 60.0
"""An actor that was told to stop starts again after this many seconds, should the learner go on."""


class State(StrEnum):
    """Where an actor is in its life."""

    WAITING = "waiting"
    """It has no process; it starts at `start_at`, if it is wanted."""
    STARTING = "starting"
    """Its process runs; the learner has not had it among its members."""
    JOINED = "joined"
    """The learner has had this process among its members."""
    LEAVING = "leaving"
    """It is surplus, and was asked to end when it holds no slots."""
    DISCARDED = "discarded"
    """It was surplus before it joined, so its process was killed."""
    MOVING = "moving"
    """Its process was killed, to start again where the learner listens now."""


@dataclass
class ActorLife:
    """One rollout actor."""

    index: int
    incarnation: int
    """The number of its newest process; of its first process minus one before that starts."""
    budget: FailureBudget
    state: State = State.WAITING
    start_at: float = 0.0
    """While WAITING: when to start it, in seconds of the caller's clock."""
    seen_at: float = 0.0
    """When the learner last had it among its members with its weights loaded; or when its process started."""
    endpoint: str = ""
    """The learner's endpoint that its process was given."""
    handle: Any = None
    """Stands for its process."""
    run: Any = None
    """Stands for the result of its process's `run`."""

    @property
    def name(self) -> str:
        """As the learner knows it."""
        return f"rollout{self.index}"

    @property
    def has_process(self) -> bool:
        """Whether a process of it runs."""
        return self.state is not State.WAITING

    def started(self, handle: Any, run: Any, endpoint: str, now: float) -> None:
        """Note its next process."""
        self.incarnation += 1
        self.state, self.seen_at = State.STARTING, now
        self.handle, self.run, self.endpoint = handle, run, endpoint


class Reason(StrEnum):
    """Why a process is killed."""

    SURPLUS = "surplus"
    """There are more actors than wanted, and it holds nothing yet."""
    MOVED = "moved"
    """The learner listens at another endpoint."""
    SILENT = "silent"
    """For too long the learner has not had it among its members, or it has not loaded the learner's weights."""


@dataclass(frozen=True)
class Start:
    """Start its next process."""


@dataclass(frozen=True)
class Kill:
    """Kill its process."""

    reason: Reason
    silent_s: float = 0.0
    """Seconds since the learner last had it, with its weights."""


@dataclass(frozen=True)
class Retire:
    """Ask the learner to grant it nothing more, so that it ends when it holds no slots."""


@dataclass(frozen=True)
class Wait:
    """Do nothing."""


Decision = Start | Kill | Retire | Wait


@dataclass(frozen=True)
class Situation:
    """What decisions depend on beside the actor's own life."""

    wanted: int
    """Number of actors wanted: those with a lower index."""
    status: RunStatus
    """The learner's newest status."""
    endpoint: str
    """Where the learner listens."""
    learner_is_up: bool
    """False from a learner's end until its ranks have been started again."""
    watchdog_s: float
    """Longest silence of an actor."""
    start_timeout_s: float
    """Additional seconds for an actor that has not joined."""


def decide(life: ActorLife, situation: Situation, now: float) -> Decision:
    """What to do about one actor at `now`; asked again and again. The caller carries it out and calls `carried_out`."""
    surplus = life.index >= situation.wanted
    if life.state is State.WAITING:
        return Start() if not surplus and now >= life.start_at else Wait()
    if life.state in (State.MOVING, State.DISCARDED):
        return Wait()  # for its end
    if life.endpoint != situation.endpoint:
        return Kill(Reason.SURPLUS if surplus else Reason.MOVED)
    if not situation.learner_is_up:
        return Wait()
    if surplus:
        # Again and again: the learner that was asked first may have been started again since.
        return Kill(Reason.SURPLUS) if life.state is State.STARTING else Retire()
    status = situation.status
    if status.phase is not Phase.WAITING_FOR_BATCH and life.name in status.members:
        return (
            Wait()
        )  # connected; the learner gives weights between steps only, so a missing load is not the actor's fault
    silent_s = now - life.seen_at
    longest_s = situation.watchdog_s + (situation.start_timeout_s if life.state is State.STARTING else 0.0)
    return Kill(Reason.SILENT, silent_s) if silent_s > longest_s else Wait()


def carried_out(life: ActorLife, decision: Decision, now: float) -> None:
    """Note that the decision was carried out (a start is noted by `ActorLife.started`)."""
    match decision:
        case Kill(Reason.SURPLUS):
            life.state = State.DISCARDED
        case Kill(Reason.MOVED):
            life.state = State.MOVING
        case Kill(Reason.SILENT):
            life.seen_at = now  # its run ends with an error, and it starts again as after any other failure
        case Retire():
            life.state = State.LEAVING


def observe(lives: Iterable[ActorLife], status: RunStatus, now: float) -> None:
    """Note which actors the learner has. One that does not load the weights counts as not connected."""
    for life in lives:
        if not life.has_process:
            continue
        connected = life.name in status.members
        just_joined = connected and life.state is State.STARTING
        if just_joined:
            life.state = State.JOINED
        if status.phase is Phase.STARTING:
            seen = True  # the learner accepts nobody yet
        elif status.phase is Phase.WAITING_FOR_ACTORS:
            seen = connected  # it publishes no weights yet
        else:
            seen = just_joined or life.name in status.loaded
        if seen:
            life.seen_at = now


class Ending(StrEnum):
    """What the end of an actor's process means."""

    LEFT = "left"
    """It was surplus and is gone."""
    MOVED = "moved"
    """It was killed to start at the learner's new endpoint."""
    STOPPED = "stopped"
    """The learner told it to stop."""
    FAILED = "failed"
    """It failed, and starts again at `start_at`."""
    EXHAUSTED = "exhausted"
    """It failed, and its budget of failures is spent."""


def ended(life: ActorLife, failed: bool, learner_is_up: bool, now: float) -> Ending:
    """Note that its process ended, `failed` with an error, and when the next one starts."""
    before, life.state = life.state, State.WAITING
    life.handle = life.run = None
    life.start_at = now
    if before in (State.LEAVING, State.DISCARDED):
        return Ending.LEFT
    if not failed:
        if learner_is_up:  # it said shutdown, and is about to end
            life.start_at = now + ENDING_S
        return Ending.STOPPED
    if before is State.MOVING:
        return Ending.MOVED
    wait_s = life.budget.failed(now)
    if wait_s is None:
        return Ending.EXHAUSTED
    life.start_at = now + wait_s
    return Ending.FAILED
