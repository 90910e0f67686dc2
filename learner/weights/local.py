"""The weight transfer of serial mode: sender and receiver are one object in one thread."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

import torch

from learner.weights.group import GroupSpec, WeightSyncError
from learner.weights.manifest import TensorSpec, checked


class LocalChannel:
    """Sender and receiver in one process and thread: the receiver draws from the sender's iterator.

    `send` only holds the iterator; the `receive` that follows consumes it. Nothing is copied.
    """

    _channels: dict[str, LocalChannel] = {}

    def __init__(self, name: str) -> None:
        self.name = name
        self.timings: dict[str, float] = {}
        self._group_id = 0
        self._held: Iterator[tuple[str, torch.Tensor]] | None = None
        self._channels[name] = self

    @classmethod
    def find(cls, name: str) -> LocalChannel:
        """Return the channel of this process called `name`; raises KeyError."""
        return cls._channels[name]

    def open(self, world_size: int) -> GroupSpec:
        """Return a spec that names this channel."""
        if world_size != 2:
            raise ValueError(f"a local channel has one sender and one receiver, not {world_size} ranks")
        self._group_id += 1
        self._held = None
        return GroupSpec(self._group_id, host=self.name, port=0, world_size=2, backend="local", timeout_s=0.0)

    def connect(self, spec: GroupSpec | None = None, rank: int = 0) -> None:
        """Do nothing: there is nothing to wait for."""
        self.timings["connect_s"] = 0.0

    def send(self, named_tensors: Iterable[tuple[str, torch.Tensor]], manifest: Sequence[TensorSpec]) -> None:
        """Hold the tensors until `receive` draws them."""
        self._held = checked(named_tensors, manifest)
        self.timings |= {"prepare_s": 0.0, "transfer_s": 0.0}

    def receive(self, manifest: Sequence[TensorSpec]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors that `send` holds; raises `WeightSyncError` if there are none."""
        held, self._held = self._held, None
        if held is None:
            raise WeightSyncError("nothing was sent", group_id=self._group_id, phase="transfer", rank=1, missing=[0])
        for spec in manifest:
            mark = time.monotonic()
            name, tensor = next(held)
            self.timings["transfer_s"] += time.monotonic() - mark
            if name != spec.name:
                raise ValueError(f"{name} where {spec.name} was due")
            yield name, tensor

    def close(self) -> None:
        """Forget the channel."""
        self._held = None
        self._channels.pop(self.name, None)
