"""The work of a run that needs a model, as its processes see it: engines that sample, a learner that trains.

`launch/workloads/model.py` is that of a real run. A rehearsal has another (`launch/rehearsal/workload.py`): engines and
a learner that only take time. `launch/workloads/choose.py` chooses by `run.mode`. All else of a run is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch.distributed import Store  # type: ignore[attr-defined]

from actors.buffer.task_buffer import Buffer
from actors.engine.generation import Engine
from actors.heldout.course import Measure
from actors.labelled_examples import Draw
from actors.roles import MakeRoles
from actors.time_ledger import TimeLedger
from actors.token_ledger import TokenLedger
from launch.cluster.ray_port import RayPort
from launch.config import Config
from launch.run.folder import RunFolder
from learner.protocols import Learns


@dataclass(frozen=True)
class ActorPlace:
    """The rollout actor that work is made for."""

    folder: RunFolder
    actor_id: str
    index: int
    incarnation: int
    log: Path
    """The log of its process."""

    def seed(self, run_seed: int) -> int:
        """The seed of this life of the actor. Incarnation 0 of rollout0 has the run's own seed, as serial mode has."""
        return run_seed + 7919 * self.incarnation + self.index


class ActorWork(Protocol):
    """The model's part in one rollout actor. `start` comes first."""

    @property
    def engine(self) -> Engine:
        """The engine of this actor."""

    @property
    def heldout(self) -> Measure | None:
        """The measurement on held-out tasks, where this actor makes it."""

    @property
    def tokens(self) -> TokenLedger:
        """Where the engine's tokens are entered."""

    @property
    def time_ledger(self) -> TimeLedger:
        """Where the time of engine and sandboxes is entered."""

    async def start(self) -> None:
        """Get ready to play."""

    def roles(self, buffer: Buffer) -> MakeRoles:
        """What makes the actor's roles. `buffer`: the run's tasks."""

    def sandbox_pids(self) -> list[int]:
        """The process ids of the fork servers of its sandboxes, for drills."""

    async def close(self) -> None:
        """End what `start` began."""


class LearnerWork(Protocol):
    """The model's part in one learner rank."""

    @property
    def trainer(self) -> Learns:
        """The trainer, before a checkpoint is loaded."""

    @property
    def tokenizer(self) -> Any:
        """Turns token ids into text (`decode`), for the record of trajectories."""

    def supervise(self, draw: Draw) -> None:
        """Learn from labelled programs as well (`learner.loss.supervised`). `draw`: from the run's task buffer."""


class Workload(Protocol):
    """Makes the work of every process. Plain data: it is sent to the processes."""

    def check(self, config: Config, say: Callable[[str], None]) -> None:
        """Raise a UserError if the work cannot be done with this configuration. `say` prints a line."""

    def actor(self, config: Config, place: ActorPlace) -> ActorWork:
        """Make the work of a rollout actor, in its process."""

    def learner(self, config: Config, rank: int, store: Store | None) -> LearnerWork:
        """Make the work of learner rank `rank`, in its process. `store`: where several ranks meet."""

    def ray(self, config: Config) -> RayPort:
        """How the supervisor reaches processes, in the driver, once Ray is connected."""
