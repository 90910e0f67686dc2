"""Assigns the processes of a run to nodes and GPUs. Pure: configuration and nodes in, assignments out.

A node can have a role, the Ray label `role`, and then takes parts of that role alone: `learner` or `rollout`. Nodes
without one take any part. Where every node is one for the learner, rollout actors share them.

The learner's ranks are placed first, those with consecutive numbers beside each other; a tensor-parallel group never
spans two nodes. Nodes with the role `learner` share the ranks evenly, in the order of their label `node_index`. Without
such nodes all ranks go to one node if it has room, otherwise to as few as possible. The task buffer goes to rank 0's
node. Rollout actors are spread: each goes to the node with the most free GPUs (without GPUs: CPUs). An engine never
spans two nodes. More actors do not move earlier ones.

A rank needs one GPU, an engine `engine.tensor_parallel`. If no node has a GPU, everything runs on CPUs. A rank counts
as one CPU and a rollout actor as one for each worker of its engine, whatever their `threads` settings say: the number
only bounds how many processes share a node.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from executor.user_error import UserError
from launch.config import Config, SftConfig
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
    role: str = ""
    """`learner` or `rollout`: the parts that it is for; empty: for any."""
    index: int | None = None
    """Its place in the order of nodes; None: after those that have one."""


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
    node: str
    """The name of its node."""
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
    config: Config,
    nodes: Sequence[Node],
    num_actors: int | None = None,
    num_parameters: int | None = None,
    taken: Collection[tuple[str, Needs]] = (),
) -> tuple[Assignment, ...]:
    """Assign all processes of a self-play run: ranks, task buffer, actors, in this order. Raises PlacementError.

    `num_actors`: in place of `actors.num_actors`. `num_parameters`: of the model, for the check of memory.
    `taken`: what other processes have, each with the name of its node.
    """
    on_gpus = _on_gpus(nodes)
    free = _free(nodes, taken)
    memory = learner_memory(config, num_parameters) if num_parameters else 0
    if num_parameters and on_gpus:  # rank 0 has a GPU for itself; in main memory one rank in many has the copy
        memory += kept_memory(config, num_parameters)
    learner = Needs(num_gpus=int(on_gpus), memory_bytes=memory)
    assignments = _place_ranks(config.learner.parallel, learner, free)
    assignments.append(Assignment(Part.BUFFER, 0, assignments[0].node, Needs(num_cpus=0)))
    memory = engine_memory(config, num_parameters, on_gpus) if num_parameters else 0
    actor = replace(_actor_needs(config, on_gpus), memory_bytes=memory)
    for index in range(config.actors.num_actors if num_actors is None else num_actors):
        assignments.append(_place_actor(index, actor, free))
    return tuple(assignments)


def place_ranks(
    parallel: ParallelSettings, nodes: Sequence[Node], taken: Collection[tuple[str, Needs]] = ()
) -> tuple[Assignment, ...]:
    """Assign the learner's ranks alone. `taken`: see `place`. Raises PlacementError."""
    return tuple(_place_ranks(parallel, Needs(num_gpus=int(_on_gpus(nodes))), _free(nodes, taken)))


def place_actor(config: Config, index: int, nodes: Sequence[Node], taken: Collection[tuple[str, Needs]]) -> Assignment:
    """Assign one rollout actor. `taken`: see `place`. Raises PlacementError."""
    return _place_actor(index, _actor_needs(config, _on_gpus(nodes)), _free(nodes, taken))


def place_job(config: Config | SftConfig) -> tuple[Assignment, ...]:
    """Assign the processes of a run to the nodes that its SLURM job will have. Raises PlacementError."""
    nodes = job_nodes(config)
    return place(config, nodes) if isinstance(config, Config) else place_ranks(config.learner.parallel, nodes)


def job_nodes(config: Config | SftConfig) -> tuple[Node, ...]:
    """The nodes that the run's SLURM job will have, as `[slurm]` asks for them, with their roles."""
    slurm = config.slurm
    # A node that the job has for itself gives all its CPUs, and their number is not known yet.
    num_cpus = slurm.cpus_per_task or (math.inf if slurm.exclusive else 1)
    return tuple(
        Node(f"node {index}", num_cpus, slurm.gpus_per_node, role=job_role(config, index), index=index)
        for index in range(slurm.nodes)
    )


def job_role(config: Config | SftConfig, index: int) -> str:
    """The role of node `index` of the run's SLURM job: the learner has the first ones. A job of one node has none."""
    if config.slurm.nodes == 1:
        return ""
    return Part.LEARNER.value if index < num_learner_nodes(config) else Part.ROLLOUT.value


def num_learner_nodes(config: Config | SftConfig) -> int:
    """`slurm.learner_nodes`; where that is unset, the number of nodes that the learner's ranks need."""
    slurm, parallel = config.slurm, config.learner.parallel
    if slurm.learner_nodes is not None:
        return slurm.learner_nodes
    room = slurm.gpus_per_node or slurm.cpus_per_task or (parallel.world_size if slurm.exclusive else 1)
    groups = max(1, room // parallel.tensor)
    return min(slurm.nodes, math.ceil(parallel.world_size // parallel.tensor / groups))


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
    """Bytes of one engine's weights on each of its GPUs; on a CPU the weights and caches of all its workers."""
    weights, kept = num_parameters * _bytes_of(config.engine.dtype), kept_memory(config, num_parameters)
    workers = config.engine.tensor_parallel
    if on_gpu:
        return weights // workers + kept
    return weights + kept * workers + int(config.engine.kv_cache_gib * _GIB)


def kept_memory(config: Config, num_parameters: int) -> int:
    """Bytes that `learner.weights_delta` takes of the device of the learner's rank 0, and of that of each engine
    worker: the weights in the learner's dtype, all of them also where tensor parallelism splits the model."""
    if config.learner.weights_delta == "off" or config.run.mode == "serial":
        return 0
    return num_parameters * _bytes_of(config.model.dtype)


def actor_cpus(config: Config) -> int:
    """The number of CPUs that one rollout actor counts as. A rehearsed engine has no workers of its own."""
    return 1 if config.run.mode == "rehearse" else config.engine.tensor_parallel


def _actor_needs(config: Config, on_gpus: bool) -> Needs:
    return Needs(num_cpus=actor_cpus(config), num_gpus=config.engine.tensor_parallel if on_gpus else 0)


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

    def is_for(self, part: Part) -> bool:
        """Whether it has the role of `part`, or none."""
        return self.node.role in ("", part.value)

    def fits(self, needs: Needs, times: int = 1) -> bool:
        """Whether this many processes fit at the same time."""
        if self.num_cpus < times * needs.num_cpus or len(self.gpus) < times * needs.num_gpus:
            return False
        if needs.num_gpus:
            return self.node.gpu_memory_bytes is None or needs.memory_bytes <= self.node.gpu_memory_bytes
        return times * needs.memory_bytes <= self.memory_bytes

    def count(self, needs: Needs, most: int) -> int:
        """The number of such processes that fit at the same time, up to `most`."""
        return next((times for times in range(most, 0, -1) if self.fits(needs, times)), 0)

    def take(self, part: Part, index: int, needs: Needs) -> Assignment:
        """Assign one process, which must fit."""
        return Assignment(part, index, self.node.name, needs, self.give(needs))

    def give(self, needs: Needs) -> tuple[int, ...]:
        """Give one process its resources; returns its GPUs."""
        self.num_cpus -= needs.num_cpus
        gpus, self.gpus = tuple(self.gpus[: needs.num_gpus]), self.gpus[needs.num_gpus :]
        if not needs.num_gpus:
            self.memory_bytes -= needs.memory_bytes
        return gpus

    def describe(self) -> str:
        """The free resources in words."""
        cpus = "all its" if math.isinf(self.num_cpus) else f"{self.num_cpus:g}"
        words = f"{cpus} CPUs, {len(self.gpus)} GPUs"
        if self.node.gpu_memory_bytes is not None and self.node.num_gpus:
            words += f" of {self.node.gpu_memory_bytes / _GIB:.0f} GiB"
        if self.memory_bytes < float("inf"):
            words += f", {self.memory_bytes / _GIB:.0f} GiB of memory"
        return words + (f", role {self.node.role}" if self.node.role else "")


def _free(nodes: Sequence[Node], taken: Collection[tuple[str, Needs]] = ()) -> list[_Free]:
    """What is free on the nodes, in their order."""
    free = [_Free.of(node) for node in sorted(nodes, key=lambda node: (node.index is None, node.index or 0))]
    by_name = {each.node.name: each for each in free}
    for name, needs in taken:
        if name in by_name:
            by_name[name].give(needs)
    return free


def _place_ranks(parallel: ParallelSettings, needs: Needs, free: list[_Free]) -> list[Assignment]:
    world, group = parallel.world_size, parallel.tensor
    own = [node for node in free if node.node.role == Part.LEARNER]
    if own:
        assignments = _spread(world, group, needs, own)
    else:
        able = [node for node in free if node.is_for(Part.LEARNER)]
        assignments = _pack(world, world, needs, able) or _pack(world, group, needs, able)
    if assignments is None:
        able = own or [node for node in free if node.is_for(Part.LEARNER)]
        placed = sum(node.count(needs, world) // group * group for node in able)
        raise PlacementError(_refusal(Part.LEARNER, placed, needs, free, group))
    return assignments


def _place_actor(index: int, needs: Needs, free: Sequence[_Free]) -> Assignment:
    able = [node for node in free if node.is_for(Part.ROLLOUT)] or free
    fitting = [node for node in able if node.fits(needs)]
    if not fitting:
        raise PlacementError(_refusal(Part.ROLLOUT, index, needs, free))
    return max(fitting, key=_Free.size).take(Part.ROLLOUT, index, needs)


def _spread(num_ranks: int, together: int, needs: Needs, free: Sequence[_Free]) -> list[Assignment] | None:
    """Place the ranks in blocks of `together` consecutive ranks, as evenly over the nodes as they have room, and node
    after node; None where they do not fit."""
    blocks = num_ranks // together
    rooms = [node.count(needs, num_ranks) // together for node in free]
    if sum(rooms) < blocks:
        return None
    counts = [0] * len(free)
    for _ in range(blocks):
        least = min((node for node in range(len(free)) if counts[node] < rooms[node]), key=lambda node: counts[node])
        counts[least] += 1
    assignments: list[Assignment] = []
    for node, count in zip(free, counts, strict=True):
        assignments += [node.take(Part.LEARNER, len(assignments) + k, needs) for k in range(count * together)]
    return assignments


def _pack(num_ranks: int, together: int, needs: Needs, free: list[_Free]) -> list[Assignment] | None:
    """Place the ranks in blocks of `together` consecutive ranks, each block on one node; None where they do not fit.

    A block goes to the previous block's node while that has room. Otherwise it goes to the node with the fewest free
    GPUs that has room, so that large nodes stay free for large engines; without GPUs, to the node with the most free
    CPUs.
    """
    blocks = num_ranks // together
    if sum(node.count(needs, num_ranks) // together for node in free) < blocks:
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


def _refusal(part: Part, index: int, needs: Needs, free: Sequence[_Free], together: int = 1) -> str:
    wants = f"{together * needs.num_cpus:g} CPUs and {together * needs.num_gpus} GPUs"
    if needs.memory_bytes:
        wants += f" and {needs.memory_bytes / _GIB:.1f} GiB of memory" + (" on each GPU" if needs.num_gpus else "")
    who = f"{part}{index} does not fit: it needs"
    if together > 1:
        who = f"{part}{index} to {part}{index + together - 1}, a tensor-parallel group, do not fit: they need"
    mend = (
        "lower learner.parallel"
        if part is Part.LEARNER
        else "lower actors.num_actors, engine.tensor_parallel or learner.parallel"
    )
    if free and not any(node.is_for(part) for node in free):
        mend = f"give nodes the Ray label role={part}, or none"
    return f"{who} {wants} on one node. Add nodes, or {mend}. {_table(free)}"


def _table(free: Sequence[_Free]) -> str:
    """What is free on each node, a line for all that have the same."""
    alike: dict[str, list[str]] = {}
    for node in free:
        alike.setdefault(node.describe(), []).append(node.node.address or node.node.name)
    lines = [f"  {_names(names)}: {words}" for words, names in alike.items()]
    return "Free:\n" + "\n".join(lines) if lines else "There is no node."


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{names[0]}, {names[1]} ... {names[-1]} ({len(names)} nodes)"


def _on_gpus(nodes: Sequence[Node]) -> bool:
    return any(node.num_gpus for node in nodes)


def _bytes_of(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else 4
