"""The workload of a rehearsal. Imports little: its work is imported in the processes that do it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from launch.cluster.ray_port import Ray, RayPort
from launch.config import Config
from launch.rehearsal.lengths import lengths_of

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

    from launch.cluster.workload import ActorPlace, ActorWork, LearnerWork
    from launch.rehearsal.receiver_process import ReceiverProcess


@dataclass(frozen=True)
class RehearsedWorkload:
    """See `launch.cluster.workload.Workload`."""

    receivers: ReceiverProcess | None = None
    """In a process with several actors: the one that receives weights for them."""

    def check(self, config: Config, say: Callable[[str], None]) -> None:
        """Check the file of lengths."""
        lengths_of(config)
        say("rehearsal: engines and learner only take time; nothing is sampled, executed or trained")

    def actor(self, config: Config, place: ActorPlace) -> ActorWork:
        """See `Workload`."""
        from launch.rehearsal.actor import RehearsedActorWork

        return RehearsedActorWork(config, place, self.receivers)

    def learner(self, config: Config, rank: int, store: Store | None) -> LearnerWork:
        """See `Workload`."""
        from launch.rehearsal.trainer import RehearsedLearnerWork

        return RehearsedLearnerWork(config, rank, store)

    def sharing(self, receivers: ReceiverProcess) -> RehearsedWorkload:
        """See `launch.rehearsal.actor_host.Sharing`."""
        return replace(self, receivers=receivers)

    def ray(self, config: Config) -> RayPort:
        """See `Workload`."""
        from launch.rehearsal.packed_ray import PackedRay

        size = config.rehearsal.actors_per_process
        return PackedRay(size) if size > 1 else Ray()
