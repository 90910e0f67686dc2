"""The workload of a real run. Imports little: its work is imported in the processes that do it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launch.cluster.ray_port import Ray
from launch.config import Config
from launch.model_check import check_model
from launch.models import prepare

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

    from launch.cluster.workload import ActorPlace, ActorWork, LearnerWork


@dataclass(frozen=True)
class ModelWorkload:
    """See `launch.cluster.workload.Workload`."""

    def check(self, config: Config, say: Callable[[str], None]) -> None:
        """Prepare the model, and check that this configuration can work with it."""
        check_model(config, prepare(config.model.path, say))

    def actor(self, config: Config, place: ActorPlace) -> ActorWork:
        """See `Workload`."""
        from launch.workloads.model_work import ModelActorWork

        return ModelActorWork(config, place)

    def learner(self, config: Config, rank: int, store: Store | None) -> LearnerWork:
        """See `Workload`."""
        from launch.workloads.model_work import ModelLearnerWork

        return ModelLearnerWork(config, rank, store)

    def ray(self, config: Config) -> Ray:
        """See `Workload`."""
        return Ray()
