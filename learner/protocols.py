"""The learner's trainer and policy as the loop, the publisher and the checkpoints see them.

`learner.trainer.Trainer` with `learner.model.policy.PolicyModel` is the real pair; a rehearsal (`launch/rehearsal/`)
has one that only takes time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist

from learner.ranks import Ranks
from learner.trajectory import Trajectory


class PolicyCopy(Protocol):
    """This rank's part of a checkpoint, copied at one moment: training may go on while it is written."""

    def write(self, folder: Path, group: dist.ProcessGroup | None) -> None:
        """Write it into `folder`: what `load_checkpoint` reads goes into `model/` there. Collective over `group`; None:
        this is the only rank."""


class Policy(Protocol):
    """The weights that are trained."""

    @property
    def device(self) -> torch.device:
        """The device that the weights are on."""

    def export(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield all tensors, whole, by name; on every rank and in the same order. Collective."""

    def copy(self) -> PolicyCopy:
        """Copy what a checkpoint holds of this rank. Collective."""

    def load_checkpoint(self, directory: Path) -> None:
        """Load from `directory`, the folder `model/` of a checkpoint, what a copy wrote there. Collective."""


class Learns(Protocol):
    """The policy, its version, and how one batch changes both."""

    version: int
    """Number of batches that were trained."""
    life: int
    """The learner's life that makes the versions from now on (`Gate.life_id`)."""

    @property
    def policy(self) -> Policy:
        """The policy that is trained."""

    @property
    def ranks(self) -> Ranks:
        """The learner's ranks."""

    def train(self, batch: Sequence[Trajectory], fresh: Callable[[], Sequence[Trajectory]] = list) -> dict[str, float]:
        """Train on `batch`, count one version and return the step's metrics. Collective. `fresh`: trajectories that
        wait in the queue."""
