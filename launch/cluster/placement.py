"""Assigns the processes of a run to nodes and GPUs. Pure: configuration and nodes in, assignments out.

The learner's ranks are placed first and close together: all on one node if it has room, otherwise each tensor-parallel
group on one node, otherwise rank by rank. The task buffer goes to rank 0's node. Rollout actors are spread: each goes
to the node with the most free GPUs (without GPUs: CPUs). An engine never spans two nodes. More actors do not move
earlier ones.

A rank needs one GPU, an engine `engine.tensor_parallel`. If no node has a GPU, everything runs on CPUs. A process
counts as one CPU whatever its `threads` setting says: the number only bounds how many processes share a node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from executor.user_error import UserError
from launch.config import Config
from learner.settings import ParallelSettings

_GIB = 1 << 30


class PlacementError(UserError):
    """A run does not fit the nodes; the message names the process, the free room and what to change."""


class Part(StrEnum):
    """The kinds of processes of a run."""

    LEARNER = "learner"
    ROLLOUT = "rollout"
    BUFFER = "buffer"


@dataclass(frozen=True)
class Node:
    """One machine."""

    name: str
    """Identifier; under Ray the node id."""
    num_cpus: float
    num_gpus: int = 0
    address: str = ""
    """For messages; empty: the name is shown."""
    memory_bytes: int | None = None
    """Main memory; None: unknown, and not checked."""
    gpu_memory_bytes: int | None = None
    """Memory of each GPU; None: unknown, and not checked."""


@dataclass(frozen=True)
class Needs:
    """The resources of a node that one process takes."""

    num_cpus: float = 1
    num_gpus: int = 0
    memory_bytes: int = 0
    """A lower bound in bytes: of each of its GPUs, or of main memory for a process without GPUs; 0: unknown."""


@dataclass(frozen=True)
class Assignment:
    """One process with the node and the resources that it gets."""

    part: Part
    index: int
    """The rank of a learner process, the index of a rollout actor."""
    node: str | None
    """The name of its node; None leaves the choice to Ray."""
    needs: Needs
    gpus: tuple[int, ...] = ()
    """The indices of its GPUs on the node. Ray hands out a node's GPUs itself and uses their number only."""

    @property
    def name(self) -> str:
        """Its name in messages and log files."""
        return self.part.value if self.part is Part.BUFFER else f"{self.part}{self.index}"

    @property
    def num_cpus(self) -> float:
        """Number of CPUs that it takes."""
        return self.needs.num_cpus

    @property
    def num_gpus(self) -> int:
        """Number of GPUs that it takes."""
        return self.needs.num_gpus


def place(
    config: Config, nodes: Sequence[Node], num_actors: int | None = None, num_parameters: int | None = None
) -> tuple[Assignment, ...]:
    """Assign all processes of a self-play run: ranks, task buffer, actors, in this order. Raises PlacementError.

    `num_actors`: in place of `actors.num_actors`. `num_parameters`: of the model, for the check of memory.
    """
    on_gpus = _on_gpus(nodes)
    free = [_Free.of(node) for node in nodes]
    learner = Needs(
        num_gpus=int(on_gpus),
        memory_bytes=learner_memory(config, num_parameters) if num_parameters else 0,
    )
    assignments = _place_ranks(config.learner.parallel, learner, free)
    assignments.append(Assignment(Part.BUFFER, 0, assignments[0].node, Needs(num_cpus=0)))
    actor = Needs(
        num_gpus=config.engine.tensor_parallel if on_gpus else 0,
        memory_bytes=engine_memory(config, num_parameters, on_gpus) if num_parameters else 0,
    )
    for index in range(config.actors.num_actors if num_actors is None else num_actors):
        fitting = [node for node in free if node.fits(actor)]
        if not fitting:
            raise PlacementError(_refusal(Part.ROLLOUT, index, actor, free))
        assignments.append(max(fitting, key=_Free.size).take(Part.ROLLOUT, index, actor))
    return tuple(assignments)


def place_ranks(parallel: ParallelSettings, nodes: Sequence[Node]) -> tuple[Assignment, ...]:
    """Assign the processes of a run that has learner ranks only (fine-tuning). Raises PlacementError."""
    return tuple(_place_ranks(parallel, Needs(num_gpus=int(_on_gpus(nodes))), [_Free.of(node) for node in nodes]))


def learner_memory(config: Config, num_parameters: int) -> int:
    """Bytes of one learner rank's weights, gradients and AdamW state; activations are not included.

    A parameter has a weight (`model.dtype`), a float32 gradient, a float32 master weight (the weight itself, where
    that is float32) and two float32 moments. Tensor and pipeline parallelism divide all of it; with
    `distributed_optimizer` data parallelism divides master weights and moments.
    """
    parallel = config.learner.parallel
    weight = _bytes_of(config.model.dtype)
    state = (4 if weight < 4 else 0) + 8
    shards = parallel.data if parallel.distributed_optimizer else 1
    mine = num_parameters / (parallel.tensor * parallel.pipeline)
    return int(mine * (weight + 4 + state / shards))


def engine_memory(config: Config, num_parameters: int, on_gpu: bool) -> int:
    """Bytes of one engine's weights on each of its GPUs; on a CPU its weights and key/value cache."""
    weights = num_parameters * _bytes_of(config.engine.dtype)
    if on_gpu:
        return weights // config.engine.tensor_parallel
    return weights + int(config.engine.kv_cache_gib * _GIB)


@dataclass
class _Free:
    """The free resources of a node."""

    node: Node
    num_cpus: float
    gpus: list[int] = field(default_factory=list)
    memory_bytes: float = float("inf")

    @classmethod
    def of(cls, node: Node) -> _Free:
        memory = float("inf") if node.memory_bytes is None else node.memory_bytes
        return cls(node, node.num_cpus, list(range(node.num_gpus)), memory)

    def size(self) -> tuple[int, float]:
        """Sort key of nodes: free GPUs, then free CPUs."""
        return len(self.gpus), self.num_cpus

    def fits(self, needs: Needs, times: int = 1) -> bool:
        """Whether this many processes fit at the same time."""
        if self.num_cpus < times * needs.num_cpus or len(self.gpus) < times * needs.num_gpus:
            return False
        if needs.num_gpus:
            return self.node.gpu_memory_bytes is None or needs.memory_bytes <= self.node.gpu_memory_bytes
        return times * needs.memory_bytes <= self.memory_bytes

    def take(self, part: Part, index: int, needs: Needs) -> Assignment:
        """Take the resources of one process, which must fit."""
        self.num_cpus -= needs.num_cpus
        gpus, self.gpus = tuple(self.gpus[: needs.num_gpus]), self.gpus[needs.num_gpus :]
        if not needs.num_gpus:
            self.memory_bytes -= needs.memory_bytes
        return Assignment(part, index, self.node.name, needs, gpus)

    def describe(self) -> str:
        """The free resources in words."""
        words = f"{self.num_cpus:g} CPUs, {len(self.gpus)} GPUs"
        if self.node.gpu_memory_bytes is not None and self.node.num_gpus:
            words += f" of {self.node.gpu_memory_bytes / _GIB:.0f} GiB"
        if self.memory_bytes < float("inf"):
            words += f", {self.memory_bytes / _GIB:.0f} GiB of memory"
        return f"{self.node.address or self.node.name}: {words}"


def _place_ranks(parallel: ParallelSettings, needs: Needs, free: list[_Free]) -> list[Assignment]:
    world, group = parallel.world_size, parallel.tensor
    for whole in (world, group, 1):
        assignments = _pack(world, whole, needs, free)
        if assignments is not None:
            return assignments
    packed = sum(min(world, _count(node, needs)) for node in free)
    raise PlacementError(_refusal(Part.LEARNER, packed, needs, free))


def _pack(num_ranks: int, together: int, needs: Needs, free: list[_Free]) -> list[Assignment] | None:
    """Place the ranks in blocks of `together` consecutive ranks, each block on one node; None where they do not fit.

    A block goes to the previous block's node while that has room. Otherwise it goes to the node with the fewest free
    GPUs that has room, so that large nodes stay free for large engines; without GPUs, to the node with the most free
    CPUs.
    """
    blocks = num_ranks // together
    if sum(_count(node, needs) // together for node in free) < blocks:
        return None
    assignments: list[Assignment] = []
    while len(assignments) < num_ranks:
        fitting = [node for node in free if node.fits(needs, together)]
        last = [node for node in fitting if assignments and node.node.name == assignments[-1].node]
        best = min(fitting, key=_Free.size) if needs.num_gpus else max(fitting, key=_Free.size)
        node = last[0] if last else best
        first = len(assignments)
        assignments += [node.take(Part.LEARNER, first + offset, needs) for offset in range(together)]
    return assignments


def _count(node: _Free, needs: Needs) -> int:
    """Number of such processes that fit on a node."""
    times = 0
    while node.fits(needs, times + 1):
        times += 1
    return times


def _refusal(part: Part, index: int, needs: Needs, free: Sequence[_Free]) -> str:
    wants = f"{needs.num_cpus:g} CPUs and {needs.num_gpus} GPUs"
    if needs.memory_bytes:
        wants += f" and {needs.memory_bytes / _GIB:.1f} GiB of memory" + (" on each GPU" if needs.num_gpus else "")
    left = "; ".join(node.describe() for node in free) or "there is none"
    mend = (
        "lower learner.parallel"
        if part is Part.LEARNER
        else "lower actors.num_actors, engine.tensor_parallel or learner.parallel"
    )
    return f"{part}{index} does not fit: it needs {wants} on one node. Free: {left}. Add nodes, or {mend}."


def _on_gpus(nodes: Sequence[Node]) -> bool:
    return any(node.num_gpus for node in nodes)


def _bytes_of(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else 4
