"""The supervisor's decisions, and the comparison of weights, on references that this file answers in Ray's place."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from launch.cluster import supervisor as supervision
from launch.cluster import verify
from launch.cluster.budget import FailureBudget
from launch.config import Config
from launch.run.folder import RunFolder
from launch.run.status import RunStatus
from learner.checkpoint import seal
from learner.phase import Phase


class FakeRay:
    """Answers by reference. A reference without one is not ready; an exception is raised; a call on an actor is noted."""

    exceptions = ray.exceptions

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.killed: list[Any] = []
        self.calls: list[tuple[Any, ...]] = []

    def wait(self, refs: list[str], num_returns: int = 1, timeout: float = 0) -> tuple[list[str], list[str]]:
        return [ref for ref in refs if ref in self.answers], [ref for ref in refs if ref not in self.answers]

    def get(self, ref: str) -> Any:
        answer = self.answers[ref]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self, actor: Any) -> None:
        self.killed.append(actor)

    def method(self, *name: Any) -> Any:
        return SimpleNamespace(remote=lambda *arguments: self.calls.append((*name, *arguments)))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    for module in (supervision, verify):
        monkeypatch.setattr(module, "ray", fake)
    return fake


@pytest.fixture
def supervisor(tmp_path: Path, fake: FakeRay) -> Any:
    supervisor: Any = supervision.Supervisor.__new__(supervision.Supervisor)
    supervisor.said = []
    supervisor._config = Config()
    supervisor._folder = RunFolder(tmp_path)
    supervisor._folder.create()
    supervisor._console = SimpleNamespace(say=supervisor.said.append)
    supervisor._status = RunStatus()
    supervisor._learner_again = None
    supervisor._learner_attempt = 0
    supervisor._learner_budget = FailureBudget(3, 3600.0)
    supervisor._endpoint = supervisor._listening = None
    supervisor.learners = [SimpleNamespace(lost=fake.method("lost"), retire=fake.method("retire"))]
    supervisor._learning = ["rank 0"]
    supervisor.rollouts = supervision.Rollouts(supervisor._config, supervisor._folder, resume=False)
    return supervisor


def play(supervisor: Any, index: int) -> None:
    """Actor `index` plays, as reference `play <index>`."""
    rollouts = supervisor.rollouts
    rollouts.next_incarnation(index)
    rollouts.handles[index] = f"rollout{index}"
    rollouts.playing[f"play {index}"] = index
    rollouts.seen[index] = supervision.time.monotonic()


def events(supervisor: Any, name: str) -> list[dict[str, Any]]:
    path = supervisor._folder.events
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == name]


# -- the learner's ranks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ray.exceptions.ActorDiedError(), "learner1 ended (its process ended)"),
        (ray.exceptions.OutOfMemoryError("a page of advice"), "learner1 ended (Ray ended its process: the machine was"),
    ],
)
def test_a_rank_whose_process_ends_is_told_from_the_ranks_that_fail_with_it(
    supervisor: Any, fake: FakeRay, error: Exception, said: str
) -> None:
    supervisor.learners *= 2
    supervisor._learning = ["rank 0", "rank 1"]
    fake.answers = {"rank 0": RuntimeError("Connection closed by peer"), "rank 1": error}
    assert not supervisor._watch_learners()
    assert supervisor._learner_again is not None
    assert said in supervisor.said[0]


def test_an_error_of_the_learner_ends_the_run(supervisor: Any, fake: FakeRay) -> None:
    fake.answers = {"rank 0": ValueError("no such thing")}
    with pytest.raises(supervision.RunFailed, match=r"ValueError: no such thing(.|\n)*learner0\.0\.log"):
        supervisor._watch_learners()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_does_not_answer_is_named_and_all_start_again(
    supervisor: Any, fake: FakeRay, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    supervisor.learners = [SimpleNamespace(status=SimpleNamespace(remote=lambda i=i: f"status {i}")) for i in range(2)]
    supervisor._answered, supervisor._status_asked = {0: 100.0, 1: 100.0}, {}
    fake.answers = {f"status {1 - rank}": RunStatus(phase=Phase.TRAINING, step=3, phase_s=1.0)}
    for now in (101.0, 102.0, 1000.0):
        supervisor._ask_status(now)
        assert supervisor._learner_again is None
    supervisor._ask_status(1001.0)
    assert f"learner{rank} ended (it has not answered for 901 s; the learner's last phase" in supervisor.said[0]
    assert len(fake.killed) == 2


def test_the_watchdog_names_who_waits_for_whom(supervisor: Any, fake: FakeRay) -> None:
    supervisor.learners = [SimpleNamespace(status=SimpleNamespace(remote=lambda: "status"))]
    supervisor._answered, supervisor._status_asked, supervisor._named_at = {0: 5000.0}, {}, 0.0
    fake.answers = {"status": RunStatus(phase=Phase.WAITING_FOR_BATCH, phase_s=901.0, waiting_for="batch 3: nobody")}
    for now in (5001.0, 5002.0, 5003.0):
        supervisor._ask_status(now)
    text = "the learner has been waiting for a batch for 901 s. batch 3: nobody; not connected: rollout0"
    assert supervisor.said == [text], "once a deadline"
    assert [event["text"] for event in events(supervisor, "watchdog")] == [text]


def test_a_write_that_the_learner_died_in_is_mended_before_it_starts_again(supervisor: Any) -> None:
    checkpoints = supervisor._folder.checkpoints
    (checkpoints / ".partial_00000006").mkdir()
    (checkpoints / "step_00000005").mkdir()
    (checkpoints / ".replaced_00000004").mkdir()
    seal(checkpoints / ".replaced_00000004", 4)
    supervisor._status = RunStatus(last={"step": 6})
    supervisor._recover_checkpoints()
    assert sorted(path.name for path in checkpoints.iterdir()) == ["broken_00000005", "step_00000004"]
    assert "going on from step_00000004" in supervisor.said[0]
    assert len(events(supervisor, "checkpoint_incomplete")) == 1


@pytest.mark.parametrize(("names", "match"), [([], "set learner.checkpoint_every"), (["step_00000002"], "no complete")])
def test_without_a_checkpoint_to_go_on_from_the_run_ends(supervisor: Any, names: list[str], match: str) -> None:
    for name in names:
        (supervisor._folder.checkpoints / name).mkdir()
    supervisor._status = RunStatus(last={"step": 2})
    with pytest.raises(supervision.RunFailed, match=match):
        supervisor._recover_checkpoints()


def test_a_learner_that_died_before_its_first_step_begins_anew(supervisor: Any) -> None:
    supervisor._recover_checkpoints()


# -- the endpoint ------------------------------------------------------------------------------------------------


def test_actors_start_again_where_the_learner_has_moved_and_nowhere_else(supervisor: Any, fake: FakeRay) -> None:
    play(supervisor, 0)
    for endpoint, killed in (("tcp://10.0.0.1:5", 0), ("tcp://10.0.0.1:5", 0), ("tcp://10.0.0.2:5", 1)):
        supervisor._listening = endpoint
        fake.answers = {endpoint: endpoint}
        supervisor._watch_endpoint()
        assert supervisor._endpoint == endpoint
        assert len(fake.killed) == killed
    fake.answers = {"play 0": ray.exceptions.ActorDiedError()}
    supervisor._ended("play 0")
    assert supervisor.rollouts.restarts == 0, "moving is no failure"
    assert not supervisor.rollouts.again and not supervisor.rollouts.playing, "it starts again at once"


# -- rollout actors ----------------------------------------------------------------------------------------------


def test_actors_that_are_too_many_are_asked_to_leave_until_they_have(supervisor: Any, fake: FakeRay) -> None:
    supervisor._endpoint = "tcp://127.0.0.1:5"
    for index in range(3):
        play(supervisor, index)
    supervisor.rollouts.joined = {0, 1}
    supervisor.rollouts.wanted = 1
    for _ in range(2):
        supervisor._watch_actors()
    assert fake.calls == [("retire", "rollout1")] * 2, "the first word may have gone to a learner that died"
    assert fake.killed == ["rollout2"], "it has not joined: it holds nothing, and nobody knows it"
    fake.answers = {"play 1": {}, "play 2": ray.exceptions.ActorDiedError()}
    for index in (1, 2):
        supervisor._ended(f"play {index}")
    assert supervisor.said == ["rollout1 has left", "rollout2 has left"]
    assert supervisor.rollouts.handles == {0: "rollout0"} and supervisor.rollouts.restarts == 0


@pytest.mark.parametrize(("joined", "deadline_s"), [(True, 900.0), (False, 1500.0)])
def test_an_actor_that_is_not_connected_is_replaced(
    supervisor: Any, fake: FakeRay, joined: bool, deadline_s: float
) -> None:
    supervisor._endpoint = "tcp://127.0.0.1:5"
    play(supervisor, 0)
    supervisor.rollouts.joined = {0} if joined else set()
    supervisor.rollouts.seen[0] -= deadline_s - 10
    supervisor._watch_actors()
    assert not fake.killed
    supervisor.rollouts.seen[0] -= 20
    supervisor._watch_actors()
    assert fake.killed == ["rollout0"]
    assert "rollout0 has not run the learner's weights, or not been connected to it" in supervisor.said[0]


@pytest.mark.parametrize(
    ("phase", "members", "loaded", "replaced"),
    [
        (Phase.WAITING_FOR_BATCH, ["rollout0"], ["rollout0"], False),
        (Phase.WAITING_FOR_BATCH, ["rollout0"], [], True),
        (Phase.WAITING_FOR_BATCH, [], [], True),
        (Phase.TRAINING, ["rollout0"], [], False),
        (Phase.TRAINING, [], [], True),
        (Phase.WAITING_FOR_ACTORS, ["rollout0"], [], False),
        (Phase.STARTING, [], [], False),
    ],
)
def test_an_actor_is_replaced_where_it_should_run_the_weights_and_does_not(
    supervisor: Any, fake: FakeRay, phase: Phase, members: list[str], loaded: list[str], replaced: bool
) -> None:
    supervisor._endpoint = "tcp://127.0.0.1:5"
    play(supervisor, 0)
    supervisor.rollouts.joined = {0}
    now = supervision.time.monotonic()
    supervisor.rollouts.seen[0] = now - 901
    supervisor._status = RunStatus(phase=phase, members=tuple(members), loaded=tuple(loaded))
    supervisor._see(supervisor._status, now)
    supervisor._watch_actors()
    assert (fake.killed == ["rollout0"]) is replaced


def test_an_actor_that_has_just_joined_has_time_to_load(supervisor: Any, fake: FakeRay) -> None:
    play(supervisor, 0)
    supervisor.rollouts.seen[0] = 0.0
    for now in (1000.0, 1001.0):
        supervisor._see(RunStatus(phase=Phase.WAITING_FOR_BATCH, members=("rollout0",)), now)
    assert supervisor.rollouts.seen[0] == 1000.0


def test_an_actor_that_always_fails_ends_the_run_and_names_its_log(supervisor: Any, fake: FakeRay) -> None:
    for incarnation in range(4):
        play(supervisor, 0)
        fake.answers = {"play 0": MemoryError("no room for the model")}
        if incarnation < 3:
            supervisor._ended("play 0")
            assert f"starting it again in {2 ** (incarnation + 1)} s" in supervisor.said[-1]
            continue
        with pytest.raises(
            supervision.RunFailed, match=r"failed 4 times (.|\n)*no room for the model(.|\n)*rollout0\.3\.log"
        ):
            supervisor._ended("play 0")


def test_an_actor_that_was_told_to_stop_starts_again_if_the_learner_goes_on(supervisor: Any, fake: FakeRay) -> None:
    play(supervisor, 0)
    fake.answers = {"play 0": {}}
    supervisor._ended("play 0")
    assert 0 < supervisor.rollouts.again[0] - supervision.time.monotonic() <= supervision.ENDING_S


# -- comparing weights -------------------------------------------------------------------------------------------


class Compared:
    """A learner and actors that answer when the test says so."""

    def __init__(self, fake: FakeRay, actors: int) -> None:
        self.asked: deque[str] = deque()
        self._fake = fake
        self._count = 0
        learner = SimpleNamespace(take_digests=fake.method("take"), digests=self._method("learner"))
        handles = {f"rollout{i}": SimpleNamespace(checksums=self._method(f"rollout{i}")) for i in range(actors)}
        self.verification = verify.Verification(learner, handles, timeout_s=60.0)

    def _method(self, who: str) -> Any:
        def remote() -> str:
            self._count += 1
            self.asked.append(f"{who} {self._count}")
            return self.asked[-1]

        return SimpleNamespace(remote=remote)

    def answer(self, who: str, answer: Any) -> None:
        """Answer what `who` was asked last, and look at it."""
        self._fake.answers[next(ref for ref in reversed(self.asked) if ref.startswith(who))] = answer
        self.verification.poll()

    def asks(self, who: str) -> int:
        return sum(ref.startswith(who) for ref in self.asked)


ONE, TWO = {"a": "1", "b": "1"}, {"a": "2", "b": "1"}


def test_engines_are_compared_at_the_version_that_they_run(fake: FakeRay) -> None:
    compared = Compared(fake, 3)
    compared.verification.poll()
    assert compared.asks("rollout") == 0, "there is nothing to compare with yet"
    compared.answer("learner", {4: ONE})
    assert compared.asks("rollout") == 3
    compared.answer("rollout0", (4, ONE))
    compared.answer("rollout1", (5, TWO))  # it has gone on: it waits for the learner's digests
    compared.answer("rollout2", (3, {}))  # asked too early: asked again
    assert not compared.verification.done
    assert (compared.asks("rollout1"), compared.asks("rollout2")) == (1, 2)
    compared.answer("rollout2", (4, {"a": "1"}))
    compared.answer("learner", {4: ONE, 5: TWO})
    assert compared.verification.done
    lines, equal = verify.sentences(compared.verification.results)
    assert not equal
    assert lines == [
        "rollout0 equals the learner in all 2 tensors at version 4",
        "rollout1 equals the learner in all 2 tensors at version 5",
        "rollout2 DIFFERS from the learner in 1 of 2 tensors at version 4: b",
    ]


def test_who_does_not_answer_is_named(fake: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = Compared(fake, 3)
    compared.answer("learner", {4: ONE})
    compared.answer("rollout0", (4, ONE))
    compared.answer("rollout1", ray.exceptions.ActorDiedError())
    now = verify.time.monotonic()
    monkeypatch.setattr(verify, "time", SimpleNamespace(monotonic=lambda: now + 61))
    compared.verification.poll()
    lines, equal = verify.sentences(compared.verification.report()["results"])
    assert compared.verification.done and not equal
    assert "rollout1 was not compared: it gave no digests" in lines[1]
    assert lines[2] == "rollout2 was not compared: no answer within 60 s from rollout2"


def test_a_learner_that_ends_meanwhile_is_said(fake: FakeRay) -> None:
    compared = Compared(fake, 1)
    compared.answer("learner", ray.exceptions.ActorDiedError())
    assert verify.sentences(compared.verification.results) == (
        ["rollout0 was not compared: the learner ended; it starts again from its last checkpoint: ask again then"],
        False,
    )


def test_nobody_to_compare_with_is_no_success(fake: FakeRay) -> None:
    compared = Compared(fake, 0)
    assert compared.verification.done
    assert not verify.sentences(compared.verification.results)[1]
