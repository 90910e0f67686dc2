"""Which process goes where: one machine, many nodes, GPUs, and what does not fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.settings import EngineSettings
from launch.cluster.placement import (
    Assignment,
    Needs,
    Node,
    Part,
    PlacementError,
    engine_memory,
    job_nodes,
    kept_memory,
    learner_memory,
    place,
    place_actor,
    place_job,
    place_ranks,
)
from launch.config import Config
from launch.settings import ActorsSettings, RunSettings
from launch.slurm_settings import SlurmSettings
from learner.settings import LearnerSettings, ModelSettings, ParallelSettings
from tests.examples import examples

GIB = 1 << 30


def config(actors: int = 1, engine_gpus: int = 1, tensor: int = 1, data: int = 1) -> Config:
    return Config(
        actors=ActorsSettings(num_actors=actors),
        engine=EngineSettings(tensor_parallel=engine_gpus),
        learner=LearnerSettings(parallel=ParallelSettings(tensor=tensor, data=data)),
    )


def gpu_nodes(*gpus: int) -> list[Node]:
    return [Node(f"n{index}", num_cpus=64, num_gpus=count) for index, count in enumerate(gpus)]


def cluster(learner: int = 0, rollout: int = 0, any_part: int = 0, gpus: int = 0, cpus: int = 4) -> list[Node]:
    """Nodes with roles, in the order of their labels `node_index`, which is the reverse of that of their names."""
    roles = ["learner"] * learner + ["rollout"] * rollout + [""] * any_part
    last = len(roles) - 1
    nodes = [Node(f"n{last - index}", cpus, gpus, role=role, index=index) for index, role in enumerate(roles)]
    return nodes[::-1]


def nodes_of(assignments: Sequence[Assignment], part: Part) -> list[str]:
    return [assignment.node for assignment in assignments if assignment.part is part]


def where(assignments: tuple[Assignment, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {assignment.name: (assignment.node, assignment.gpus) for assignment in assignments}


def test_on_one_machine_without_gpus_everything_is_there_and_needs_none() -> None:
    assignments = place(config(actors=2), [Node("here", num_cpus=66)])
    assert [assignment.name for assignment in assignments] == ["learner0", "buffer", "rollout0", "rollout1"]
    assert {assignment.node for assignment in assignments} == {"here"}
    assert [(assignment.num_cpus, assignment.num_gpus) for assignment in assignments] == [
        (1, 0),
        (0, 0),
        (1, 0),
        (1, 0),
    ]


def test_every_rank_and_every_engine_has_gpus_of_its_own() -> None:
    assert where(place(config(actors=2, engine_gpus=2, tensor=2), gpu_nodes(8))) == {
        "learner0": ("n0", (0,)),
        "learner1": ("n0", (1,)),
        "buffer": ("n0", ()),
        "rollout0": ("n0", (2, 3)),
        "rollout1": ("n0", (4, 5)),
    }


def test_the_learner_stays_on_one_node_and_leaves_the_large_one_to_large_engines() -> None:
    found = where(place(config(actors=1, engine_gpus=8, tensor=2), gpu_nodes(8, 4)))
    assert [found[name][0] for name in ("learner0", "learner1", "buffer", "rollout0")] == ["n1", "n1", "n1", "n0"]


def test_a_learner_larger_than_a_node_keeps_tensor_parallel_groups_together() -> None:
    assignments = [p for p in place(config(tensor=2, data=4), gpu_nodes(3, 3, 3, 3)) if p.part is Part.LEARNER]
    nodes = [p.node for p in assignments]
    assert all(nodes[rank] == nodes[rank + 1] for rank in range(0, 8, 2))
    assert [p.index for p in assignments] == list(range(8))


def test_a_node_is_filled_with_ranks_before_the_next_one() -> None:
    nodes = [Node("a", num_cpus=4), Node("b", num_cpus=4)]
    assert [p.node for p in place_ranks(ParallelSettings(data=6), nodes)] == ["a"] * 4 + ["b"] * 2


def test_engines_are_spread_over_the_nodes() -> None:
    assignments = place(config(actors=8), gpu_nodes(4, 4, 4))
    assert Counter(p.node for p in assignments if p.part is Part.ROLLOUT) == {"n0": 2, "n1": 3, "n2": 3}
    cpus = place(config(actors=5), [Node("a", num_cpus=16), Node("b", num_cpus=16)])
    assert Counter(p.node for p in cpus if p.part is Part.ROLLOUT) == {"a": 2, "b": 3}


def test_a_node_without_gpus_holds_nothing_that_needs_one() -> None:
    nodes = [Node("head", num_cpus=4), *gpu_nodes(2)]
    assert {p.node for p in place(config(), nodes)} == {"n0"}


@pytest.mark.parametrize(
    ("asked", "nodes", "message"),
    [
        (
            config(actors=2),
            gpu_nodes(2),
            r"rollout1 does not fit: it needs 1 CPUs and 1 GPUs on one node.(.|\n)*Free:\n  n0: 62",
        ),
        (
            config(engine_gpus=4),
            gpu_nodes(3, 3),
            r"rollout0(.*)4 CPUs and 4 GPUs on one node(.|\n)*n0: 63 CPUs, 2 GPUs\n  n1: 64 CPUs, 3",
        ),
        (
            config(tensor=2, data=2),
            gpu_nodes(3, 1),
            r"learner2 to learner3, a tensor-parallel group, do not fit: they need 2 CPUs and 2 GPUs on one node. "
            r"Add nodes, or lower learner.parallel",
        ),
        (config(), [], r"learner0 does not fit(.*)There is no node"),
        (config(actors=9), [Node("a", num_cpus=4, address="10.0.0.1")], r"rollout3(.|\n)*10.0.0.1: 0 CPUs"),
        (config(actors=2), cluster(learner=1, rollout=1, gpus=1), r"rollout1(.|\n)*n1: 3 CPUs, 0 GPUs, role"),
        (
            config(data=2),
            cluster(rollout=2),
            r"learner0(.*)the Ray label role=learner, or none(.|\n)*n1, n0: 4 CPUs, 0 GPUs, role rollout",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_what_is_left(asked: Config, nodes: list[Node], message: str) -> None:
    with pytest.raises(PlacementError, match=message):
        place(asked, nodes)


def test_parts_go_to_the_nodes_of_their_role_and_ranks_follow_the_nodes_order() -> None:
    assignments = place(config(actors=3, data=4), cluster(learner=2, rollout=1, any_part=1))
    assert nodes_of(assignments, Part.LEARNER) == ["n3", "n3", "n2", "n2"], "evenly, node after node"
    assert nodes_of(assignments, Part.BUFFER) == ["n3"]
    assert set(nodes_of(assignments, Part.ROLLOUT)) == {"n0", "n1"}


def test_actors_share_the_learners_nodes_where_there_are_no_others() -> None:
    assignments = place(config(actors=2, data=2), cluster(learner=2))
    assert nodes_of(assignments, Part.LEARNER) == ["n1", "n0"]
    assert sorted(nodes_of(assignments, Part.ROLLOUT)) == ["n0", "n1"]


def test_a_part_that_is_placed_again_takes_nothing_from_the_others() -> None:
    asked, nodes = config(actors=3, engine_gpus=2), gpu_nodes(3, 4)
    before = place(asked, nodes)
    others = [(each.node, each.needs) for each in before if each.name != "rollout1"]
    again = place_actor(asked, 1, nodes, others)
    assert (again.name, again.node) == ("rollout1", before[3].node)
    with pytest.raises(PlacementError, match="rollout1 does not fit"):
        place_actor(asked, 1, [node for node in nodes if node.name != before[3].node], others)


def job(actors: int = 1, engine_gpus: int = 1, tensor: int = 1, data: int = 1, **slurm: Any) -> Config:
    return config(actors, engine_gpus, tensor, data).model_copy(update={"slurm": SlurmSettings(**slurm)})


@pytest.mark.parametrize(
    ("asked", "roles"),
    [
        (job(data=2), ""),
        (job(data=2, nodes=3), "lrr"),
        (job(data=2, nodes=3, learner_nodes=2), "llr"),
        (job(data=2, nodes=3, gpus_per_node=8, actors=16), "lrr"),
        (job(tensor=8, data=2, nodes=3, gpus_per_node=8, actors=8), "llr"),
        (job(tensor=2, data=3, nodes=4, gpus_per_node=3), "lllr"),
        (job(data=8, nodes=4, exclusive=False, cpus_per_task=4, actors=8), "llrr"),
        (job(data=4, nodes=2, gpus_per_node=3, actors=2), "ll"),
    ],
)
def test_a_jobs_first_nodes_are_the_learners_as_many_as_it_needs(asked: Config, roles: str) -> None:
    assert "".join(node.role[:1] for node in job_nodes(asked)) == roles
    placed = place_job(asked)
    assert len(placed) == asked.learner.parallel.world_size + 1 + asked.actors.num_actors


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (job(actors=9, nodes=2, gpus_per_node=8), r"rollout8 does not fit(.|\n)*node 0: all its CPUs, 7 GPUs, role"),
        (job(tensor=8, nodes=4, gpus_per_node=4), r"learner0 to learner7, a tensor-parallel group, do not fit"),
        (job(engine_gpus=8, nodes=4, gpus_per_node=4), r"rollout0 does not fit: it needs 8 CPUs and 8 GPUs"),
        (job(nodes=1, exclusive=False), r"rollout0 does not fit(.|\n)*node 0: 0 CPUs"),
        (
            job(engine_gpus=2, actors=2, exclusive=False, cpus_per_task=4),
            r"rollout1 does not fit: it needs 2 CPUs and 0 GPUs(.|\n)*node 0: 1 CPUs",
        ),
    ],
)
def test_a_job_that_cannot_hold_its_run_is_refused(asked: Config, message: str) -> None:
    with pytest.raises(PlacementError, match=message):
        place_job(asked)


def test_an_actor_counts_as_a_cpu_for_each_worker_of_its_engine() -> None:
    asked = config(actors=2, engine_gpus=2)
    placed = place(asked, [Node("a", num_cpus=3), Node("b", num_cpus=2)])
    assert [(p.node, p.num_cpus, p.num_gpus) for p in placed if p.part is Part.ROLLOUT] == [("a", 2, 0), ("b", 2, 0)]
    again = place_actor(asked, 1, [Node("a", num_cpus=3), Node("b", num_cpus=2)], [("a", Needs(num_cpus=3))])
    assert again.needs == placed[-1].needs
    assert len(place_job(job(engine_gpus=2, actors=2, exclusive=False, cpus_per_task=5))) == 4
    rehearsed = asked.model_copy(update={"run": RunSettings(mode="rehearse")})
    assert place(rehearsed, [Node("a", num_cpus=3)])[-1].num_cpus == 1, "its workers are threads"


def test_memory_is_checked_where_it_is_known() -> None:
    seven_billion = 7 * 10**9
    nodes = [Node("a", num_cpus=64, num_gpus=8, gpu_memory_bytes=80 * GIB)]
    assert place(config(), nodes)
    with pytest.raises(
        PlacementError, match=r"learner0 does not fit(.*)117.3 GiB of memory on each GPU(.|\n)*of 80 GiB"
    ):
        place(config(), nodes, num_parameters=seven_billion)
    assert place(config(tensor=2), nodes, num_parameters=seven_billion)
    small = [Node("laptop", num_cpus=64, memory_bytes=16 * GIB)]
    assert place(config(), small, num_parameters=135 * 10**6)
    with pytest.raises(PlacementError, match="rollout10 does not fit"):
        place(config(actors=12), small, num_parameters=135 * 10**6)


def test_memory_by_hand() -> None:
    mixed, full = config(data=4), Config(model=ModelSettings(dtype="float32"))
    assert learner_memory(mixed, 1000) == 1000 * (2 + 4) + 1000 * (4 + 8) // 4
    assert learner_memory(full, 1000) == 1000 * (4 + 4 + 8), "in float32 the weight is its own master"
    assert engine_memory(config(engine_gpus=2), 1000, on_gpu=True) == 1000
    assert engine_memory(config(), 1000, on_gpu=False) == 2000 + GIB


def test_sparse_updates_keep_whole_weights_at_rank_0_and_at_each_worker() -> None:
    plain = config(engine_gpus=2)
    sparse = plain.model_copy(update={"learner": LearnerSettings(weights_delta="auto")})
    assert kept_memory(plain, 1000) == 0
    assert kept_memory(sparse.model_copy(update={"model": ModelSettings(dtype="float32")}), 1000) == 4000
    assert kept_memory(sparse.model_copy(update={"run": RunSettings(mode="serial")}), 1000) == 0, "nothing is sent"
    assert engine_memory(sparse, 1000, on_gpu=True) == 1000 + 2000
    assert engine_memory(sparse, 1000, on_gpu=False) == 2000 + 2 * 2000 + GIB
    size = 10**9
    room = learner_memory(sparse, size) + 2 * size - 1
    with pytest.raises(PlacementError, match="learner0 does not fit"):
        place(sparse, [Node("a", num_cpus=8, num_gpus=8, gpu_memory_bytes=room)], num_parameters=size)
    assert place(sparse, [Node("a", num_cpus=8, num_gpus=8, gpu_memory_bytes=room + 1)], num_parameters=size)
    assert place(plain, [Node("a", num_cpus=8, num_gpus=8, gpu_memory_bytes=room)], num_parameters=size)


shapes = st.tuples(st.integers(1, 12), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]), st.integers(1, 3))
roles = st.sampled_from(["", "learner", "rollout"])
machines = st.lists(st.tuples(st.integers(0, 8), roles, st.none() | st.integers(0, 9)), min_size=1, max_size=5)


@examples(400)
@given(shape=shapes, machines=machines)
def test_places_never_overlap_and_keep_to_roles_and_groups(
    shape: tuple[int, int, int, int], machines: list[tuple[int, str, int | None]]
) -> None:
    asked = config(*shape)
    nodes = [Node(f"n{i}", 64, gpus, role=role, index=index) for i, (gpus, role, index) in enumerate(machines)]
    try:
        assignments = place(asked, nodes)
    except PlacementError:
        return
    by_name = {node.name: node for node in nodes}
    taken = [(p.node, gpu) for p in assignments for gpu in p.gpus]
    assert len(taken) == len(set(taken))
    assert all(gpu < by_name[node].num_gpus for node, gpu in taken)
    assert all(len(p.gpus) == p.num_gpus for p in assignments)
    ranks = [p for p in assignments if p.part is Part.LEARNER]
    parallel = asked.learner.parallel
    assert [p.index for p in ranks] == list(range(parallel.world_size))
    groups = [
        {p.node for p in ranks[first : first + parallel.tensor]} for first in range(0, len(ranks), parallel.tensor)
    ]
    assert all(len(group) == 1 for group in groups)
    changes = sum(before.node != after.node for before, after in zip(ranks, ranks[1:], strict=False))
    assert changes + 1 == len({p.node for p in ranks}), "ranks of one node have consecutive numbers"
    shared = all(node.role == "learner" for node in nodes)
    for p in assignments:
        allowed = ("", "learner") if p.part is not Part.ROLLOUT or shared else ("", "rollout")
        assert by_name[p.node].role in allowed
    for fewer in range(1, asked.actors.num_actors):
        assert assignments[: -(asked.actors.num_actors - fewer)] == place(asked, nodes, num_actors=fewer)
    for p in assignments:
        others = [(other.node, other.needs) for other in assignments if other is not p]
        if p.part is Part.ROLLOUT:
            assert place_actor(asked, p.index, nodes, others), "where one was, one fits again"
    assert place_ranks(parallel, nodes, [(p.node, p.needs) for p in assignments if p.part is Part.ROLLOUT])
