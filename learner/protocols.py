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
from learner.time_ledger import TimeLedger
from learner.trajectory import Trajectory


class StepGivenUp(Exception):
    """A step ended before its first update, as it was asked to: weights, optimizer and version are as before it."""


class PolicyCopy(Protocol):
    """This rank's part of a checkpoint, copied at one moment: training may go on while it is written."""

    def write(self, folder: Path, group: dist.ProcessGroup | None, hurried: Callable[[], bool]) -> None:
        """Write it into `folder`: what `load_checkpoint` reads goes into `model/` there. Collective over `group`; None:
        this is the only rank.

        Once `hurried` holds, weights for other programs are left out.
        """


class Policy(Protocol):
    """The weights that are trained."""

    @property
    def device(self) -> torch.device:
        """The device that the weights are on."""

    def export(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield all tensors, whole, by name; on every rank and in the same order. Collective."""

    def copy(self, exports: bool) -> PolicyCopy:
        """Copy what a checkpoint holds of this rank; `exports`: with the weights for other programs. Collective."""

    def load_checkpoint(self, directory: Path) -> None:
        """Load from `directory`, the folder `model/` of a checkpoint, what a copy wrote there. Collective."""


class Learns(Protocol):
    """The policy, its version, and how one batch changes both."""

    version: int
    """Number of batches that were trained."""
    life: int
    """The learner's life that makes the versions from now on (`Gate.life_id`)."""

    time: TimeLedger
    """What this rank's time is spent on; the loop enters what it does between two steps."""

    @property
    def policy(self) -> Policy:
        """The policy that is trained."""

    @property
    def ranks(self) -> Ranks:
        """The learner's ranks."""

    def train(
        self,
        batch: Sequence[Trajectory],
        fresh: Callable[[], Sequence[Trajectory]] = list,
        gives_up: Callable[[], bool] = lambda: False,
    ) -> dict[str, float]:
        """Train on `batch`, count one version and return the step's metrics. Collective.

        `fresh`: trajectories that wait in the queue. `gives_up`: asked until the first update, on every rank; where it
        holds on one, all raise StepGivenUp.
        """
