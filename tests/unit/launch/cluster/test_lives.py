"""The life of a rollout actor: decisions one by one, and any course of events as a property test."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from launch.cluster import lives
from launch.cluster.budget import FailureBudget
from launch.cluster.lives import (
    ENDING_S,
    ActorLife,
    Ending,
    Kill,
    Reason,
    Retire,
    Situation,
    Start,
    State,
    Wait,
    decide,
    ended,
    observe,
)
from launch.run.status import RunStatus
from learner.phase import Phase
from tests.examples import examples

HERE, THERE = "tcp://10.0.0.1:5", "tcp://10.0.0.2:5"
WATCHDOG_S, START_S = 900.0, 600.0
IDLE = RunStatus(phase=Phase.WAITING_FOR_BATCH)
QUIET = Situation(1, IDLE, HERE, learner_is_up=True, watchdog_s=WATCHDOG_S, start_timeout_s=START_S)


def life(state: State = State.JOINED, *, index: int = 0, seen_at: float = 0.0, most: int = 3) -> ActorLife:
    actor = ActorLife(index, -1, FailureBudget(most, 3600.0))
    actor.started("process", "run", HERE, seen_at)
    actor.state = state
    return actor


# -- one decision ------------------------------------------------------------------------------------------------


def test_it_starts_when_it_is_due_and_wanted() -> None:
    actor = ActorLife(0, -1, FailureBudget(3, 3600.0), start_at=10.0)
    assert decide(actor, QUIET, 9.9) == Wait()
    assert decide(actor, QUIET, 10.0) == Start()
    assert decide(actor, replace(QUIET, wanted=0), 10.0) == Wait()


@pytest.mark.parametrize(
    ("state", "decision"),
    [
        (State.STARTING, Kill(Reason.SURPLUS)),
        (State.JOINED, Retire()),
        (State.LEAVING, Retire()),
        (State.DISCARDED, Wait()),
        (State.MOVING, Wait()),
    ],
)
def test_a_surplus_actor_is_asked_to_leave_and_killed_only_if_it_holds_nothing(
    state: State, decision: lives.Decision
) -> None:
    assert decide(life(state), replace(QUIET, wanted=0), 1.0) == decision


@pytest.mark.parametrize("wanted", [0, 1])
def test_an_actor_that_talks_to_a_former_endpoint_is_killed_whether_or_not_it_is_wanted(wanted: int) -> None:
    reason = Reason.MOVED if wanted else Reason.SURPLUS
    assert decide(life(), replace(QUIET, wanted=wanted, endpoint=THERE), 1.0) == Kill(reason)


def test_nobody_is_blamed_while_there_is_no_learner() -> None:
    down = replace(QUIET, learner_is_up=False)
    assert decide(life(), down, 1e9) == Wait()
    assert decide(life(), replace(down, wanted=0), 1.0) == Wait(), "nobody is there to retire it"


@pytest.mark.parametrize(("state", "longest_s"), [(State.JOINED, WATCHDOG_S), (State.STARTING, WATCHDOG_S + START_S)])
def test_silence_is_borne_for_so_long(state: State, longest_s: float) -> None:
    assert decide(life(state), QUIET, longest_s) == Wait()
    assert decide(life(state), QUIET, longest_s + 1) == Kill(Reason.SILENT, longest_s + 1)


@pytest.mark.parametrize("phase", list(Phase))
def test_a_member_without_weights_is_blamed_only_while_the_learner_could_give_them(phase: Phase) -> None:
    situation = replace(QUIET, status=RunStatus(phase=phase, members=("rollout0",)))
    blamed = decide(life(), situation, 1e6) != Wait()
    assert blamed is (phase is Phase.WAITING_FOR_BATCH)


@pytest.mark.parametrize("phase", list(Phase))
def test_an_actor_that_is_no_member_is_blamed_in_every_phase(phase: Phase) -> None:
    situation = replace(QUIET, status=RunStatus(phase=phase, members=("rollout1",)))
    assert decide(life(), situation, 1e6) == Kill(Reason.SILENT, 1e6)


def test_a_silent_actor_is_killed_once_and_then_given_time_to_end() -> None:
    actor, now = life(), 2 * WATCHDOG_S
    lives.carried_out(actor, decide(actor, QUIET, now), now)
    assert decide(actor, QUIET, now + WATCHDOG_S) == Wait()
    assert decide(actor, QUIET, now + WATCHDOG_S + 1) == Kill(Reason.SILENT, WATCHDOG_S + 1)


# -- what the learner says ---------------------------------------------------------------------------------------


def test_an_actor_that_has_just_joined_has_time_to_load() -> None:
    actor = life(State.STARTING)
    for now in (1000.0, 1001.0):
        observe([actor], replace(IDLE, members=("rollout0",)), now)
    assert (actor.state, actor.seen_at) == (State.JOINED, 1000.0)


def test_an_actor_without_a_process_is_not_seen() -> None:
    actor = life(State.WAITING)
    observe([actor], replace(IDLE, members=("rollout0",), loaded=("rollout0",)), 5.0)
    assert (actor.state, actor.seen_at) == (State.WAITING, 0.0)


# -- the end of a process ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "failed", "learner_is_up", "ending", "starts_after_s"),
    [
        (State.JOINED, False, True, Ending.STOPPED, ENDING_S),
        (State.JOINED, False, False, Ending.STOPPED, 0.0),
        (State.STARTING, True, True, Ending.FAILED, 2.0),
        (State.JOINED, True, False, Ending.FAILED, 2.0),
        (State.MOVING, True, True, Ending.MOVED, 0.0),
        (State.MOVING, False, True, Ending.STOPPED, ENDING_S),
        (State.LEAVING, False, True, Ending.LEFT, 0.0),
        (State.LEAVING, True, True, Ending.LEFT, 0.0),
        (State.DISCARDED, True, True, Ending.LEFT, 0.0),
    ],
)
def test_what_an_end_means(
    state: State, failed: bool, learner_is_up: bool, ending: Ending, starts_after_s: float
) -> None:
    actor = life(state)
    assert ended(actor, failed, learner_is_up, 100.0) is ending
    assert (actor.state, actor.start_at) == (State.WAITING, 100.0 + starts_after_s)
    assert actor.budget.total == (ending is Ending.FAILED)


def test_a_spent_budget_is_said() -> None:
    actor = life(most=0)
    assert ended(actor, True, True, 100.0) is Ending.EXHAUSTED


# -- any course of events ----------------------------------------------------------------------------------------


class Course(RuleBasedStateMachine):
    """One actor, a learner that comes, goes, moves and says anything, and an operator who scales up and down."""

    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        self.actor = ActorLife(0, -1, FailureBudget(10**6, 1e12))
        self.situation = QUIET
        self.failures = 0
        self.killed = False
        """Whether the process that runs has been killed: then it ends, with an error, and does nothing else."""

    @rule(seconds=st.sampled_from([0.5, 30.0, 1000.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(wanted=st.integers(0, 1))
    def scale(self, wanted: int) -> None:
        self.situation = replace(self.situation, wanted=wanted)

    @rule(up=st.booleans(), endpoint=st.sampled_from([HERE, THERE]))
    def learner(self, up: bool, endpoint: str) -> None:
        self.situation = replace(self.situation, learner_is_up=up, endpoint=endpoint)

    @rule(phase=st.sampled_from(Phase), member=st.booleans(), loaded=st.booleans())
    def status(self, phase: Phase, member: bool, loaded: bool) -> None:
        names = ("rollout0",) if member else ()
        status = RunStatus(phase=phase, members=names, loaded=names if loaded else ())
        self.situation = replace(self.situation, status=status)
        observe([self.actor], status, self.now)

    @rule()
    def act(self) -> None:
        actor, before = self.actor, replace(self.actor)
        decision = decide(actor, self.situation, self.now)
        match decision:
            case Start():
                assert not before.has_process and self.situation.wanted == 1
                actor.started("process", "run", self.situation.endpoint, self.now)
                assert actor.incarnation == before.incarnation + 1
                self.killed = False
            case Kill(reason, silent_s):
                assert before.has_process
                self.killed = True
                if reason is Reason.SILENT:
                    assert self.situation.learner_is_up and silent_s > WATCHDOG_S
                if reason is Reason.SURPLUS:
                    assert self.situation.wanted == 0
                    assert before.state is State.STARTING or before.endpoint != self.situation.endpoint
            case Retire():
                assert before.state in (State.JOINED, State.LEAVING) and self.situation.wanted == 0
        lives.carried_out(actor, decision, self.now)

    @precondition(lambda self: self.actor.has_process)
    @rule(failed=st.booleans())
    def process_ends(self, failed: bool) -> None:
        failed = failed or self.killed
        deliberate = self.actor.state in (State.MOVING, State.DISCARDED, State.LEAVING)
        ending = ended(self.actor, failed, self.situation.learner_is_up, self.now)
        self.failures += failed and not deliberate
        assert (ending is Ending.FAILED) is (failed and not deliberate)
        self.killed = False

    @invariant()
    def failures_are_counted_and_nothing_else(self) -> None:
        assert self.actor.budget.total == self.failures

    @invariant()
    def a_process_has_a_handle(self) -> None:
        assert self.actor.has_process is (self.actor.handle is not None)

    @invariant()
    def a_wanted_actor_without_a_process_starts_within_a_minute(self) -> None:
        if not self.actor.has_process and self.situation.wanted == 1:
            assert decide(self.actor, self.situation, self.now + ENDING_S) == Start()


TestCourse = Course.TestCase
TestCourse.settings = examples(200, steps=40)
