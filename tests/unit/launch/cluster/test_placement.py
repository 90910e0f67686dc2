"""Which process goes where: one machine, many nodes, GPUs, and what does not fit."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.settings import EngineSettings
from launch.cluster.placement import (
    Assignment,
    Node,
    Part,
    PlacementError,
    engine_memory,
    learner_memory,
    place,
    place_ranks,
)
from launch.config import Config
from launch.settings import ActorsSettings
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


def where(assignments: tuple[Assignment, ...]) -> dict[str, tuple[str | None, tuple[int, ...]]]:
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


def test_ranks_of_a_group_are_parted_only_where_no_node_holds_them() -> None:
    assert {p.node for p in place_ranks(ParallelSettings(tensor=2), gpu_nodes(1, 1))} == {"n0", "n1"}


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
            r"rollout1 does not fit: it needs 1 CPUs and 1 GPUs on one node. Free: n0: 62",
        ),
        (
            config(engine_gpus=4),
            gpu_nodes(3, 3),
            r"rollout0(.*)4 GPUs on one node(.*)n0: 63 CPUs, 2 GPUs; n1: 64 CPUs, 3",
        ),
        (config(tensor=4), gpu_nodes(2, 1), r"learner3 does not fit(.*)lower learner.parallel"),
        (config(), [], r"learner0 does not fit(.*)Free: there is none"),
        (config(actors=9), [Node("a", num_cpus=4, address="10.0.0.1")], r"rollout3(.*)10.0.0.1: 0 CPUs"),
    ],
)
def test_what_does_not_fit_is_named_with_what_is_left(asked: Config, nodes: list[Node], message: str) -> None:
    with pytest.raises(PlacementError, match=message):
        place(asked, nodes)


def test_memory_is_checked_where_it_is_known() -> None:
    seven_billion = 7 * 10**9
    nodes = [Node("a", num_cpus=64, num_gpus=8, gpu_memory_bytes=80 * GIB)]
    assert place(config(), nodes)
    with pytest.raises(PlacementError, match=r"learner0 does not fit(.*)117.3 GiB of memory on each GPU(.*)of 80 GiB"):
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


shapes = st.tuples(st.integers(1, 12), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]), st.integers(1, 3))


@examples(300)
@given(shape=shapes, gpus=st.lists(st.integers(0, 8), min_size=1, max_size=5))
def test_places_never_overlap_and_more_actors_move_nobody(shape: tuple[int, int, int, int], gpus: list[int]) -> None:
    asked, nodes = config(*shape), gpu_nodes(*gpus)
    try:
        assignments = place(asked, nodes)
    except PlacementError:
        return
    taken = [(p.node, gpu) for p in assignments for gpu in p.gpus]
    assert len(taken) == len(set(taken))
    sizes = {node.name: node.num_gpus for node in nodes}
    assert all(gpu < sizes[node] for node, gpu in taken)
    assert all(len(p.gpus) == p.num_gpus for p in assignments)
    assert [p.index for p in assignments if p.part is Part.LEARNER] == list(range(asked.learner.parallel.world_size))
    for fewer in range(1, asked.actors.num_actors):
        assert assignments[: -(asked.actors.num_actors - fewer)] == place(asked, nodes, num_actors=fewer)
