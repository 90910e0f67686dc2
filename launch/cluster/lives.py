"""Decides when a rollout actor is started, killed or asked to leave: a state machine without Ray and without a clock.

    from       when                                           to
    WAITING    it is due and wanted                           STARTING
    STARTING   it is seen among the learner's members         JOINED
    STARTING   it is surplus: killed, as it holds nothing     DISCARDED
    JOINED     it is surplus: asked to leave                  LEAVING
    any        the learner has another endpoint: killed       MOVING, or DISCARDED where surplus
    any        its process ended                              WAITING, due at once or after a wait

An actor has one `ActorLife` for the whole run; each process of it is the next incarnation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from launch.cluster.budget import FailureBudget
from launch.run.status import RunStatus
from learner.phase import Phase

ENDING_S = 60.0
"""Seconds after which an actor that the learner told to stop is restarted, if the learner still runs."""


class State(StrEnum):
    """The states of a rollout actor."""

    WAITING = "waiting"
    """No process. The next one is due at `start_at`, if the actor is wanted."""
    STARTING = "starting"
    """The process runs and has not been seen among the learner's members."""
    JOINED = "joined"
    """The process has been seen among the learner's members."""
    LEAVING = "leaving"
    """Surplus; asked to end when it holds no slots."""
    DISCARDED = "discarded"
    """Surplus before it joined, so it held nothing and was killed; its end is awaited."""
    MOVING = "moving"
    """Killed, to be restarted at the learner's new endpoint; its end is awaited."""


@dataclass
class ActorLife:
    """One rollout actor over the whole run: its state, its process, its budget of failures."""

    index: int
    incarnation: int
    """The number of its newest process. Before the first start: one less than the number of the first."""
    budget: FailureBudget
    state: State = State.WAITING
    start_at: float = 0.0
    """While WAITING: the time from which it may be started, in seconds of the caller's clock."""
    seen_at: float = 0.0
    """Time at which it was last among the learner's members with weights loaded, or else its process was started."""
    endpoint: str = ""
    """The learner's endpoint that its process was given."""
    handle: Any = None
    """Ray's handle of its process; None without one."""
    run: Any = None
    """Ray's reference to the result of `RolloutActor.run`; None without a process."""

    @property
    def name(self) -> str:
        """Its actor id on the stream."""
        return f"rollout{self.index}"

    @property
    def has_process(self) -> bool:
        """Whether it has a process, or the end of one has not been noticed."""
        return self.state is not State.WAITING

    def started(self, handle: Any, run: Any, endpoint: str, now: float) -> None:
        """Note that its next process was started."""
        self.incarnation += 1
        self.state, self.seen_at = State.STARTING, now
        self.handle, self.run, self.endpoint = handle, run, endpoint


class Reason(StrEnum):
    """Why a process is killed."""

    SURPLUS = "surplus"
    """There are more actors than wanted, and this one holds no slots."""
    MOVED = "moved"
    """The learner listens at another endpoint."""
    SILENT = "silent"
    """For too long it has not been among the learner's members with weights loaded."""


@dataclass(frozen=True)
class Start:
    """Start its next process."""


@dataclass(frozen=True)
class Kill:
    """Kill its process."""

    reason: Reason
    silent_s: float = 0.0
    """Seconds since `ActorLife.seen_at`."""


@dataclass(frozen=True)
class Retire:
    """Ask the learner to grant it nothing more, so that it ends when it holds no slots."""


@dataclass(frozen=True)
class Wait:
    """Do nothing."""


Decision = Start | Kill | Retire | Wait


@dataclass(frozen=True)
class Situation:
    """Everything outside of an actor's own life that a decision depends on."""

    wanted: int
    """Number of actors wanted; an actor with this index or a higher one is surplus."""
    status: RunStatus
    """The learner's newest status."""
    members: frozenset[str] = field(init=False)
    """Those of the status, to be looked up by each of many actors."""
    endpoint: str
    """The learner's present endpoint."""
    learner_is_up: bool
    """False from the death of a learner rank until all ranks have been restarted."""
    watchdog_s: float
    """Seconds that an actor may be away from the learner's members."""
    start_timeout_s: float
    """Additional seconds for an actor that has not joined yet."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", frozenset(self.status.members))


def decide(life: ActorLife, situation: Situation, now: float) -> Decision:
    """Decide about one actor at `now`.

    The caller carries the decision out, calls `carried_out`, and asks again later.
    """
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
        # Repeated on every call, because the learner that was asked first may have been restarted.
        return Kill(Reason.SURPLUS) if life.state is State.STARTING else Retire()
    status = situation.status
    if status.phase is not Phase.WAITING_FOR_BATCH and life.name in situation.members:
        # Connected. The learner gives weights between steps only, so a missing load is not the actor's fault.
        return Wait()
    silent_s = now - life.seen_at
    longest_s = situation.watchdog_s + (situation.start_timeout_s if life.state is State.STARTING else 0.0)
    return Kill(Reason.SILENT, silent_s) if silent_s > longest_s else Wait()


def carried_out(life: ActorLife, decision: Decision, now: float) -> None:
    """Note that a decision was carried out. A start is noted by `ActorLife.started` instead."""
    match decision:
        case Kill(Reason.SURPLUS):
            life.state = State.DISCARDED
        case Kill(Reason.MOVED):
            life.state = State.MOVING
        case Kill(Reason.SILENT):
            life.seen_at = now  # its end will be an ordinary failure; until then it is not killed again
        case Retire():
            life.state = State.LEAVING


def observe(lives: Iterable[ActorLife], status: RunStatus, now: float) -> None:
    """Note which actors are connected. An actor that does not load the weights counts as not connected."""
    members, loaded = frozenset(status.members), frozenset(status.loaded)
    for life in lives:
        if not life.has_process:
            continue
        connected = life.name in members
        just_joined = connected and life.state is State.STARTING
        if just_joined:
            life.state = State.JOINED
        if status.phase is Phase.STARTING:
            seen = True  # the learner accepts nobody yet
        elif status.phase is Phase.WAITING_FOR_ACTORS:
            seen = connected  # it publishes no weights yet
        else:
            seen = just_joined or life.name in loaded
        if seen:
            life.seen_at = now


class Ending(StrEnum):
    """The meaning of the end of an actor's process."""

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
    """Note that its process ended (`failed`: with an error), and set when the next one is due."""
    before, life.state = life.state, State.WAITING
    life.handle = life.run = None
    life.start_at = now
    if before in (State.LEAVING, State.DISCARDED):
        return Ending.LEFT
    if not failed:
        if learner_is_up:  # the learner is about to end as well, so a restart would be for nothing
            life.start_at = now + ENDING_S
        return Ending.STOPPED
    if before is State.MOVING:
        return Ending.MOVED
    wait_s = life.budget.failed(now)
    if wait_s is None:
        return Ending.EXHAUSTED
    life.start_at = now + wait_s
    return Ending.FAILED
