"""A sender of weights here and receivers in processes of their own, joined in one group, for `azr bench weights`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch

from launch.bench.peers import LineProcess
from learner.weights.manifest import Manifest, manifest_to_json
from learner.weights.transfer import Delta, WeightSender


class Transport:
    """One group. An update ends when every receiver has had each tensor."""

    def __init__(self, sender: WeightSender, receivers: list[LineProcess]) -> None:
        """Use `Receivers.joined`."""
        self.sender = sender
        self._receivers = receivers
        self._manifest: Manifest | None = None

    def update(self, tensors: Iterable[tuple[str, torch.Tensor]], manifest: Manifest) -> dict[str, float]:
        """Send one update. Returns seconds by phase: the sender's `ready_s`, `prepare_s` and `transfer_s`, and
        `receive_s`, the longest that a receiver waited for bytes."""
        if manifest is not self._manifest:
            self.tell(manifest)
        for receiver in self._receivers:
            receiver.tell({"do": "update"})
        self.sender.send(tensors, manifest)
        waited_s = max(receiver.answer()["transfer_s"] for receiver in self._receivers)
        return self.sender.timings | {"receive_s": waited_s}

    def tell(self, manifest: Manifest) -> None:
        """Tell the receivers which tensors come; `update` does it by itself, at another time than the last."""
        self._manifest = manifest
        for receiver in self._receivers:
            receiver.ask({"do": "expect", "manifest": manifest_to_json(manifest)})

    def broadcast(self, flat: torch.Tensor) -> None:
        """Send one tensor of bytes as it is, into memory that the receivers keep."""
        for receiver in self._receivers:
            receiver.tell({"do": "raw", "num_bytes": flat.nbytes})
        self.sender.broadcast(flat)
        for receiver in self._receivers:
            receiver.answer()


class Receivers:
    """Receivers that have started, and join one group after another."""

    def __init__(self, processes: list[LineProcess]) -> None:
        """Use `started`."""
        self._processes = processes

    @contextmanager
    def joined(self, delta: Delta = "off") -> Iterator[Transport]:
        """Join them in a group with a new sender. Raises PeerError, WeightSyncError."""
        sender = WeightSender(delta=delta)
        try:
            spec = sender.open(1 + len(self._processes))
            for index, process in enumerate(self._processes):
                process.tell({"do": "join", "spec": spec.to_json(), "rank": 1 + index})
            sender.connect()
            for process in self._processes:
                process.answer()
            yield Transport(sender, self._processes)
        finally:
            sender.close()


@contextmanager
def started(num_receivers: int) -> Iterator[Receivers]:
    """Start receivers, and end them. Raises PeerError."""
    with ExitStack() as stack:
        command = [sys.executable, "-m", "launch.bench.weights_receiver"]
        yield Receivers([stack.enter_context(LineProcess(f"receiver {i}", command)) for i in range(num_receivers)])


@contextmanager
def one_thread() -> Iterator[None]:
    """Copy in one thread. A run's processes start with `OMP_WAIT_POLICY=passive`; here it is too late for that, and
    threads that spin after each copy would take the receiver's cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
