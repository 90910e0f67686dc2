"""What receives the weights for one rehearsed engine: its members of the weight group, each with a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch

from learner.weights.group import GroupSpec
from learner.weights.manifest import TensorSpec, checksum
from learner.weights.transfer import WeightReceiver


class Receivers(Protocol):
    """The members of one engine. They are in its process, or in one that several engines share."""

    async def connect(self, spec: GroupSpec, rank: int) -> None:
        """Join a group with one rank a member, the first of them `rank`. Raises `WeightSyncError`."""

    async def receive(self, manifest: Sequence[TensorSpec]) -> None:
        """Receive one broadcast, and keep its tensors. Raises `WeightSyncError`."""

    async def checksums(self) -> dict[str, str]:
        """`learner.weights.manifest.checksum` of the newest tensors of the first member."""

    async def died(self) -> None:
        """Return once the process of the members has ended; never, where it is the engine's own."""

    def close(self) -> None:
        """Leave the group."""


class OwnReceivers:
    """See `Receivers`: in this process."""

    def __init__(self, num_workers: int) -> None:
        self._receivers = [WeightReceiver() for _ in range(num_workers)]
        self._threads = ThreadPoolExecutor(max_workers=num_workers, thread_name_prefix="azr-weights")
        self._weights: list[tuple[str, torch.Tensor]] = []

    async def connect(self, spec: GroupSpec, rank: int) -> None:
        """See `Receivers`."""
        loop = asyncio.get_running_loop()
        await asyncio.gather(
            *(
                loop.run_in_executor(self._threads, receiver.connect, spec, rank + worker)
                for worker, receiver in enumerate(self._receivers)
            )
        )

    async def receive(self, manifest: Sequence[TensorSpec]) -> None:
        """See `Receivers`."""
        loop = asyncio.get_running_loop()
        received = await asyncio.gather(
            *(loop.run_in_executor(self._threads, _receive, one, manifest) for one in self._receivers)
        )
        self._weights = received[0]

    async def checksums(self) -> dict[str, str]:
        """See `Receivers`."""
        return checksum(self._weights)

    async def died(self) -> None:
        """See `Receivers`."""
        await asyncio.Event().wait()

    def close(self) -> None:
        """See `Receivers`."""
        for receiver in self._receivers:
            receiver.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


def _receive(receiver: WeightReceiver, manifest: Sequence[TensorSpec]) -> list[tuple[str, torch.Tensor]]:
    """Receive one broadcast, and return its tensors."""
    return [(name, tensor.clone()) for name, tensor in receiver.receive(manifest)]
