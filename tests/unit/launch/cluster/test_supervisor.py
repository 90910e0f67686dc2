"""A whole supervisor over a Ray that the test answers for: what it starts, kills, says and records."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from actors.settings import SelfPlaySettings
from launch.cluster.context import RunFailed
from launch.cluster.driver import check_port
from launch.cluster.engine_failure import EngineStartFailed
from launch.cluster.lives import ENDING_S
from launch.cluster.placement import Needs, Node
from launch.cluster.places import BUSY_S
from launch.cluster.rollouts import PLACE_AGAIN_S
from launch.cluster.supervisor import Supervisor
from launch.config import Config
from launch.recipe import ConfigError
from launch.run.console import REFRESH_S
from launch.run.folder import RunFolder
from launch.run.status import RunStatus
from launch.settings import ActorsSettings
from launch.workloads.model import ModelWorkload
from learner.checkpoint import seal
from learner.phase import Phase
from learner.settings import LearnerSettings, ParallelSettings, StreamSettings
from tests.unit.launch.cluster.fake_ray import Clock, FakeRay

HERE = "tcp://127.0.0.1:5"
DIED = ray.exceptions.ActorDiedError()


class Run:
    """A supervised run: its supervisor, its Ray, its clock and what it said."""

    def __init__(
        self,
        folder: Path,
        num_actors: int = 1,
        ranks: int = 1,
        nodes: tuple[Node, ...] | None = None,
        data: int = 1,
    ) -> None:
        self.clock = Clock()
        self.ray = FakeRay(nodes) if nodes else FakeRay()
        self.ray.clock = self.clock
        self.said: list[str] = []
        self.folder = RunFolder(folder)
        self.folder.create()
        config = Config(
            actors=ActorsSettings(num_actors=num_actors),
            selfplay=SelfPlaySettings(seed_tasks_target=30),
            learner=LearnerSettings(parallel=ParallelSettings(tensor=ranks, data=data)),
        )
        self.supervisor = Supervisor(config, self.folder, self.ray, self.said.append, ModelWorkload(), self.clock)
        self.ray.always |= {"buffer.0.open": None, "buffer.0.metrics": {}}

    def start(self, status: RunStatus | None = None, endpoint: str | None = HERE) -> Run:
        """Start it, and poll until its actors have been started, if there is an endpoint."""
        self.supervisor.start(resume=False)
        if endpoint is not None:
            self.ray.always["learner0.0.listening"] = endpoint
        if status is not None:
            self.tell(status)
        self.poll()
        return self

    def poll(self, times: int = 1, after_s: float = 0.0) -> None:
        """`after_s` seconds later, look at every process."""
        self.clock.now += after_s
        for _ in range(times):
            assert not self.supervisor.poll()

    def wait(self, seconds: float) -> None:
        """Let time pass, and look at every process now and then."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.poll(times=2, after_s=min(50.0, end - self.clock.now))

    def tell(self, status: RunStatus, life: int = 0) -> None:
        """The learner's status from now on."""
        self.ray.always[f"learner0.{life}.status"] = status

    def end(self, process: str, outcome: Any) -> None:
        """A process's run is over; an exception is its error."""
        self.ray.always[f"{process}.run"] = outcome

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = self.folder.events.read_text().splitlines() if self.folder.events.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == name]


def playing(*actors: int, loaded: bool = True, phase: Phase = Phase.WAITING_FOR_BATCH) -> RunStatus:
    names = tuple(f"rollout{index}" for index in actors)
    return RunStatus(phase=phase, members=names, loaded=names if loaded else ())


# -- starting ----------------------------------------------------------------------------------------------------


def test_nothing_happens_before_start(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert not run.ray.started and not run.ray.calls


def test_actors_start_once_it_is_known_where_the_learner_listens(tmp_path: Path) -> None:
    run = Run(tmp_path, num_actors=2).start(endpoint=None)
    assert list(run.ray.started) == ["buffer.0", "learner0.0"]
    run.ray.always["learner0.0.listening"] = HERE
    run.poll()
    assert list(run.ray.started)[2:] == ["rollout0.0", "rollout1.0"]
    assignment, arguments, _ = run.ray.started["rollout1.0"]
    assert (assignment.node, arguments[3:6]) == ("here", (1, 0, HERE))


def test_a_run_that_does_not_fit_the_cluster_ends_before_it_starts_anything(tmp_path: Path) -> None:
    run = Run(tmp_path, num_actors=2, nodes=(Node("small", num_cpus=8, num_gpus=2),))
    with pytest.raises(RunFailed, match="rollout1 does not fit"):
        run.supervisor.start(resume=False)
    assert not run.ray.started


def test_a_resumed_runs_actors_go_on_counting_incarnations(tmp_path: Path) -> None:
    run = Run(tmp_path)
    (run.folder.logs / "rollout3.4.log").touch()
    run.ray.always["learner0.0.listening"] = HERE
    run.supervisor.start(resume=True)
    run.poll()
    assert run.ray.started["rollout0.0"][1][4] == 5


def test_each_attempt_has_logs_of_its_own(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.create()
    for name in ("learner0.0.log", "learner0.2.log", "buffer.0.log", "learner0.txt.log", "rollout0.7.log"):
        (folder.logs / name).touch()
    run = Run(tmp_path).start()
    assert run.ray.started["learner0.0"][1][-1] == 3
    assert run.ray.started["buffer.0"][1][-1] == 1
    run.end("learner0.0", DIED)
    run.poll()
    assert "learner0.3.log" in run.said[0]


def test_a_port_that_is_taken_is_named_before_anything_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError, match=f"stream.port = {port} cannot be used on 127.0.0.1: Address already in use"
        ):
            check_port(Config(stream=StreamSettings(port=port)))
    check_port(Config(stream=StreamSettings(port=port)))


def test_it_waits_for_an_end_and_not_in_a_loop(tmp_path: Path) -> None:
    run = Run(tmp_path).start()
    run.ray.waited_s.clear()
    run.poll()
    assert max(run.ray.waited_s) == REFRESH_S


def test_the_run_is_over_when_every_rank_has_ended_well(tmp_path: Path) -> None:
    run = Run(tmp_path, ranks=2).start()
    run.end("learner0.0", None)
    run.poll()
    run.end("learner1.0", None)
    assert run.supervisor.poll()
    run.ray.always["learner0.0.result"] = ({}, "interrupted", 3, {"a": "1"})
    assert run.supervisor.result() == ({}, "interrupted", 3, {"a": "1"})
    run.end("rollout0.0", {"a": "2"})
    assert run.supervisor.wait_for_actors() == {"rollout0": {"a": "2"}}


def test_an_actor_that_still_starts_is_not_waited_for(tmp_path: Path) -> None:
    run = Run(tmp_path, num_actors=2).start()
    run.tell(playing(1))
    run.poll(times=2)
    run.end("rollout1.0", {})
    assert run.supervisor.wait_for_actors() == {"rollout1": {}}
    assert run.ray.killed == ["rollout0.0"]


@pytest.mark.parametrize(
    ("status", "unsaved"),
    [
        (RunStatus(), False),
        (RunStatus(phase=Phase.WAITING_FOR_ACTORS, last={"step": 3}), False),
        (RunStatus(phase=Phase.WAITING_FOR_BATCH), True),
        (RunStatus(phase=Phase.WAITING_FOR_BATCH, last={"step": 3}), True),
        (RunStatus(phase=Phase.TRAINING, step=1), True),
        (RunStatus(phase=Phase.SAVING, last={"step": 3}), True),
    ],
)
def test_a_stop_waits_only_for_work_that_is_not_saved(tmp_path: Path, status: RunStatus, unsaved: bool) -> None:
    run = Run(tmp_path).start(status)
    run.poll()
    assert run.supervisor.has_unsaved_work() is unsaved
    run.end("learner0.0", DIED)
    run.poll()
    assert not run.supervisor.has_unsaved_work(), "the last checkpoint is all there is"


def test_an_actor_that_can_never_work_ends_the_run_unless_others_work(tmp_path: Path) -> None:
    failure = EngineStartFailed("the engine cannot start: too small. Look at engine.kv_cache_gib.")
    alone = Run(tmp_path / "alone").start()
    alone.end("rollout0.0", failure)
    with pytest.raises(RunFailed, match=r"rollout0 failed: the engine cannot start: too small.(.|\n)*rollout0\.0\.log"):
        alone.poll()
    beside = Run(tmp_path / "beside", num_actors=2).start()
    beside.tell(playing(0))
    beside.poll(times=2)
    beside.end("rollout1.0", failure)
    beside.poll()
    assert "starting it again" in beside.said[-1]


def test_kill_ends_everything_and_lets_the_buffer_close_its_file_first(tmp_path: Path) -> None:
    run = Run(tmp_path).start()
    run.supervisor.kill()
    assert run.ray.calls[-1] == ("buffer.0", "close")
    assert run.ray.killed == ["rollout0.0", "learner0.0", "buffer.0"]


# -- the learner's ranks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ray.exceptions.ActorDiedError(), "learner1 ended (its process ended)"),
        (ray.exceptions.OutOfMemoryError("a page of advice"), "learner1 ended (Ray ended its process: the machine was"),
    ],
)
def test_a_rank_whose_process_ends_is_told_from_the_ranks_that_fail_with_it(
    tmp_path: Path, error: Exception, said: str
) -> None:
    run = Run(tmp_path, ranks=2).start()
    run.end("learner0.0", RuntimeError("Connection closed by peer"))
    run.end("learner1.0", error)
    run.poll()
    assert run.supervisor.status().phase is Phase.RESTARTING
    assert said in run.said[0]
    assert run.ray.killed == ["learner0.0", "learner1.0"]


def test_an_error_of_the_learner_ends_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path).start()
    run.end("learner0.0", ValueError("no such thing"))
    with pytest.raises(RunFailed, match=r"ValueError: no such thing(.|\n)*learner0\.0\.log"):
        run.poll()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_does_not_answer_is_named_and_all_start_again(tmp_path: Path, rank: int) -> None:
    run = Run(tmp_path, ranks=2)
    run.clock.now = 100.0
    run.ray.always[f"learner{1 - rank}.0.status"] = RunStatus(phase=Phase.TRAINING, step=3, phase_s=1.0)
    run.start(endpoint=None)
    for now in (101.0, 102.0, 1000.0):
        run.clock.now = now
        run.poll()
        assert run.supervisor.status().phase is not Phase.RESTARTING
    run.clock.now = 1001.0
    run.poll()
    assert f"learner{rank} ended (it has not answered for 901 s; the learner's last phase" in run.said[0]
    assert len(run.ray.killed) == 2


def test_the_watchdog_names_who_waits_for_whom(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.clock.now = 5000.0
    run.tell(RunStatus(phase=Phase.WAITING_FOR_BATCH, phase_s=901.0, waiting_for="batch 3: nobody"))
    run.start(endpoint=None)
    for now in (5001.0, 5002.0, 5003.0):
        run.clock.now = now
        run.poll()
    text = "the learner has been waiting for a batch for 901 s. batch 3: nobody; not connected: rollout0"
    assert run.said == [text], "once a deadline"
    assert [event["text"] for event in run.events("watchdog")] == [text]


def restart_learner(run: Run, life: int = 0) -> None:
    """The learner's process ends, and the wait for its next start is over."""
    run.end(f"learner0.{life}", DIED)
    run.poll()
    run.poll(after_s=2.0 ** (life + 1))


def test_a_write_that_the_learner_died_in_is_mended_before_it_starts_again(tmp_path: Path) -> None:
    run = Run(tmp_path).start(RunStatus(last={"step": 6}))
    run.poll()
    checkpoints = run.folder.checkpoints
    (checkpoints / ".partial_00000006").mkdir()
    (checkpoints / "step_00000005").mkdir()
    (checkpoints / ".replaced_00000004").mkdir()
    seal(checkpoints / ".replaced_00000004", 4)
    restart_learner(run)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["broken_00000005", "step_00000004"]
    assert "going on from step_00000004" in run.said[1]
    assert len(run.events("checkpoint_incomplete")) == 1
    assert "learner0.1" in run.ray.started


def test_a_restarted_learner_has_the_time_that_is_left(tmp_path: Path) -> None:
    run = Run(tmp_path).start(RunStatus(ends_at=1e9))
    run.poll()
    restart_learner(run)
    assert ("learner0.1", "run", None, HERE, True, 1, 1e9) in run.ray.calls


@pytest.mark.parametrize(
    ("names", "match"), [([], "set learner.checkpoint_minutes"), (["step_00000002"], "no complete")]
)
def test_without_a_checkpoint_to_go_on_from_the_run_ends(tmp_path: Path, names: list[str], match: str) -> None:
    run = Run(tmp_path).start(RunStatus(last={"step": 2}))
    run.poll()
    for name in names:
        (run.folder.checkpoints / name).mkdir()
    with pytest.raises(RunFailed, match=match):
        restart_learner(run)


def test_a_learner_that_died_before_its_first_step_begins_anew(tmp_path: Path) -> None:
    run = Run(tmp_path).start()
    restart_learner(run)
    assert ("learner0.1", "run", None, HERE, True, 1, None) in run.ray.calls
    assert run.supervisor.restarts()["learner"] == 1


def test_after_a_restart_nothing_is_believed_that_the_former_learner_said(tmp_path: Path) -> None:
    run = Run(tmp_path).start(replace(playing(0), last={"step": 0.0}))
    run.poll()
    assert run.supervisor.whole()
    restart_learner(run)
    status = run.supervisor.status()
    assert (status.phase, status.members, status.loaded) == (Phase.STARTING, (), ())
    assert status.last == {"step": 0.0} and not run.supervisor.whole()


def test_a_learner_that_always_dies_ends_the_run_and_names_its_log(tmp_path: Path) -> None:
    run = Run(tmp_path).start()
    for life in range(3):
        restart_learner(run, life)
    with pytest.raises(RunFailed, match=r"learner0 failed 4 times (.|\n)*learner0\.3\.log"):
        restart_learner(run, 3)


def test_a_stop_is_told_to_a_learner_that_starts_again(tmp_path: Path) -> None:
    run = Run(tmp_path).start()
    run.end("learner0.0", DIED)
    run.poll()
    run.supervisor.stop("interrupted")
    run.poll(after_s=2.0)
    assert ("learner0.1", "stop", "interrupted", None) in run.ray.calls


# -- the endpoint ------------------------------------------------------------------------------------------------


def test_actors_start_again_where_the_learner_has_moved_and_nowhere_else(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.ray.always |= {"learner0.1.listening": HERE, "learner0.2.listening": "tcp://10.0.0.2:5"}
    run.start()
    restart_learner(run, 0)
    assert "rollout0.0" not in run.ray.killed
    restart_learner(run, 1)
    run.poll()
    assert run.ray.killed.count("rollout0.0") == 1
    assert [event["endpoint"] for event in run.events("learner_moved")] == ["tcp://10.0.0.2:5"]
    run.end("rollout0.0", DIED)
    run.poll()
    assert run.supervisor.restarts()["actor"] == 0, "moving is no failure"
    assert run.ray.started["rollout0.1"][1][5] == "tcp://10.0.0.2:5", "it starts again at once"


# -- rollout actors ----------------------------------------------------------------------------------------------


def test_actors_that_are_too_many_are_asked_to_leave_until_they_have(tmp_path: Path) -> None:
    run = Run(tmp_path, num_actors=3).start(playing(0, 1))
    run.poll()
    run.supervisor.scale(1)
    run.poll(times=2)
    retired = [call for call in run.ray.calls if call[1] == "retire"]
    assert retired == [("learner0.0", "retire", "rollout1")] * 2, "the first word may have gone to a learner that died"
    assert run.ray.killed == ["rollout2.0"], "it has not joined: it holds nothing, and nobody knows it"
    run.end("rollout1.0", {})
    run.end("rollout2.0", DIED)
    run.poll(times=2)
    assert run.said == ["scaling to 1 rollout actors", "rollout1 has left", "rollout2 has left"]
    assert run.supervisor.processes("actor") == {0: "rollout0.0"} and run.supervisor.restarts()["actor"] == 0


def test_actors_that_left_come_back_when_they_are_wanted_again(tmp_path: Path) -> None:
    run = Run(tmp_path, num_actors=2).start(playing(0, 1))
    run.supervisor.scale(1)
    run.poll(times=2)
    run.end("rollout1.0", {})
    run.poll()
    run.supervisor.scale(3)
    run.poll()
    assert run.ray.started["rollout1.1"][1][4] == 1, "its next incarnation"
    assert "rollout2.0" in run.ray.started


def test_more_actors_than_the_cluster_has_room_for_wait_until_it_has(tmp_path: Path) -> None:
    run = Run(tmp_path, nodes=(Node("small", num_cpus=2),)).start()
    run.supervisor.scale(2)
    run.poll(times=3, after_s=PLACE_AGAIN_S)
    assert "rollout1.0" not in run.ray.started
    assert [line for line in run.said if "rollout1 has no place" in line and "small: 0 CPUs" in line] == run.said[1:]
    run.ray.alive += (Node("late", num_cpus=1),)
    run.poll(after_s=PLACE_AGAIN_S)
    assert run.ray.started["rollout1.0"][0].node == "late"


# -- lost machines -----------------------------------------------------------------------------------------------


def three_nodes(tmp_path: Path, cpus: int = 2) -> Run:
    nodes = [Node("n0", cpus, role="learner", index=0), Node("n1", cpus, role="learner", index=1), Node("n2", cpus)]
    return Run(tmp_path, num_actors=2, nodes=tuple(nodes))


def test_what_other_jobs_hold_is_not_counted_on(tmp_path: Path) -> None:
    run = three_nodes(tmp_path)
    run.ray.others = (("n2", Needs(num_cpus=1)),)
    with pytest.raises(RunFailed, match=r"rollout1 does not fit(.|\n)*n2: 0 CPUs(.|\n)*Other jobs of this Ray cluster"):
        run.supervisor.start(resume=False)
    assert sum(run.ray.waited_s) == run.clock.now >= BUSY_S and not run.ray.started
    run.ray.others = ()
    run.supervisor.start(resume=False)


def test_an_actor_whose_machine_is_lost_starts_on_another_one(tmp_path: Path) -> None:
    run = Run(tmp_path, num_actors=2, nodes=(Node("n0", 3), Node("n1", 3))).start(playing(0, 1))
    lost = next(name for name in ("rollout0", "rollout1") if run.ray.started[f"{name}.0"][0].node == "n1")
    run.ray.alive = run.ray.alive[:1]
    run.end(f"{lost}.0", ray.exceptions.ActorUnschedulableError("node n1"))
    run.poll(times=2)
    run.poll(after_s=2.0)
    assert run.ray.started[f"{lost}.1"][0].node == "n0"
    assert f"n1 is lost: {lost} starts on n0" in run.said
    assert any(f"{lost} failed (its machine is lost)" in line for line in run.said)


def test_a_run_whose_actors_all_lost_their_machines_ends(tmp_path: Path) -> None:
    run = three_nodes(tmp_path).start(playing(0, 1))
    run.ray.alive = (Node("n0", 1, role="learner"),)
    for name in ("rollout0.0", "rollout1.0"):
        run.end(name, DIED)
    run.poll(times=2)
    with pytest.raises(RunFailed, match=r"no rollout actor has a place any more. rollout. does not(.|\n)*n0: 0 CPUs"):
        run.poll(after_s=2.0)


def test_ranks_whose_machine_is_lost_all_start_where_there_is_room(tmp_path: Path) -> None:
    run = Run(tmp_path, nodes=(Node("n0", 1), Node("n1", 2), Node("n2", 2)), data=3).start()
    before = [run.ray.started[f"learner{rank}.0"][0].node for rank in range(3)]
    lost = before[2]
    assert lost != before[0], "rank 0's is that of the task buffer"
    run.ray.alive = tuple(node for node in run.ray.alive if node.name != lost)
    run.end("learner2.0", DIED)
    run.poll()
    with pytest.raises(RunFailed, match=r"a machine of the learner is lost, and the others have no room. learner"):
        run.poll(after_s=2.0)
    run.ray.alive += (Node("new", 4),)
    run.supervisor._learner._start(resume=True, expected=1)
    assert lost not in [run.ray.started[f"learner{rank}.1"][0].node for rank in range(3)]


def test_a_run_ends_with_the_machine_of_its_task_buffer(tmp_path: Path) -> None:
    run = three_nodes(tmp_path).start(playing(0, 1))
    run.ray.alive = run.ray.alive[1:]
    run.ray.always["buffer.0.metrics"] = DIED
    with pytest.raises(RunFailed, match=f"the machine of the task buffer (.*)is lost(.*)azr train --resume {tmp_path}"):
        run.poll(times=3, after_s=1.1)


@pytest.mark.parametrize(("joined", "deadline_s"), [(True, 900.0), (False, 1500.0)])
def test_an_actor_that_is_not_connected_is_replaced(tmp_path: Path, joined: bool, deadline_s: float) -> None:
    run = Run(tmp_path).start(playing(0) if joined else playing())
    run.poll()
    run.tell(playing())
    run.wait(deadline_s - 10)
    assert not run.ray.killed
    run.wait(20)
    assert run.ray.killed == ["rollout0.0"]
    assert "rollout0 has not run the learner's weights, or not been connected to it" in run.said[0]


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
    tmp_path: Path, phase: Phase, members: list[str], loaded: list[str], replaced: bool
) -> None:
    run = Run(tmp_path).start(playing(0))
    run.poll(times=2)
    run.tell(RunStatus(phase=phase, members=tuple(members), loaded=tuple(loaded)))
    run.wait(901)
    assert (run.ray.killed == ["rollout0.0"]) is replaced


def test_no_actor_is_blamed_for_the_time_without_a_learner(tmp_path: Path) -> None:
    run = Run(tmp_path).start(playing(0))
    run.poll()
    run.clock.now += 899
    run.tell(playing(), life=1)
    restart_learner(run)
    run.wait(890)
    assert "rollout0.0" not in run.ray.killed
    run.wait(11)
    assert "rollout0.0" in run.ray.killed


def test_an_actor_that_always_fails_ends_the_run_and_names_its_log(tmp_path: Path) -> None:
    run = Run(tmp_path).start()
    for incarnation in range(4):
        run.end(f"rollout0.{incarnation}", MemoryError("no room for the model"))
        if incarnation < 3:
            run.poll()
            assert f"starting it again in {2 ** (incarnation + 1)} s" in run.said[-1]
            assert ("learner0.0", "lost", "rollout0", incarnation) in run.ray.calls
            run.poll(after_s=2.0 ** (incarnation + 1))
            continue
        with pytest.raises(RunFailed, match=r"failed 4 times (.|\n)*no room for the model(.|\n)*rollout0\.3\.log"):
            run.poll()


def test_an_actor_that_was_told_to_stop_starts_again_if_the_learner_goes_on(tmp_path: Path) -> None:
    run = Run(tmp_path).start()
    run.end("rollout0.0", {})
    run.poll()
    run.poll(after_s=ENDING_S - 1)
    assert "rollout0.1" not in run.ray.started
    run.poll(after_s=1)
    assert "rollout0.1" in run.ray.started


def test_a_run_is_whole_when_every_part_is_there_and_every_actor_plays(tmp_path: Path) -> None:
    run = Run(tmp_path, num_actors=2).start(playing(0))
    run.poll()
    assert not run.supervisor.whole(), "rollout1 is not connected"
    run.tell(playing(0, 1))
    run.poll(times=2)
    assert run.supervisor.whole()
    run.end("rollout1.0", DIED)
    run.poll()
    assert not run.supervisor.whole(), "rollout1 has no process"


def test_the_seeding_of_the_buffer_is_shown_while_the_learner_waits_for_actors(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.ray.always["buffer.0.metrics"] = {"buffer/deduction": 10.0}
    run.start(playing(phase=Phase.WAITING_FOR_ACTORS))
    run.poll(times=2, after_s=2)
    assert run.supervisor.status().seeding == (10, 30)
