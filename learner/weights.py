"""The weight broadcast, both ends: learner -> engines, over a `torch.distributed` group of its own.

The learner is rank 0 and owns the group's store; every engine worker is one further rank. A group has an *epoch*: when
an actor joins or dies the learner opens the next one, and nobody else's process group is touched. NCCL on GPUs and
gloo on CPUs run the same code. Tensors travel in buckets: neighbours of one dtype are copied into one flat buffer,
so neither end holds a second copy of the model; a large tensor is a bucket by itself and is not copied. Buckets travel
while the next are gathered (sender) and the last is loaded (receiver). Both ends cut the same manifest (`manifest.py`).

Every wait has a deadline, and its error says which rank waited for which. A group that failed is never used again.

Plain torch: imports without Megatron, vLLM or a GPU. `LocalChannel` is the same protocol inside one process.
"""

from __future__ import annotations

import json
import socket
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist

from learner.clock import PhaseClock
from learner.manifest import (
    Manifest,
    TensorSpec,
    checked,
    checksum,
    flatten,
    manifest_from_json,
    manifest_of,
    manifest_to_json,
    plan_buckets,
)

__all__ = [
    "GroupSpec",
    "LocalChannel",
    "Manifest",
    "TensorSpec",
    "WeightReceiver",
    "WeightSender",
    "WeightSyncError",
    "WeightSyncTimeout",
    "checksum",
    "manifest_from_json",
    "manifest_of",
    "manifest_to_json",
    "plan_buckets",
]

DEFAULT_BUCKET_BYTES = 16 << 20
_IN_FLIGHT = 4
"""Buckets that travel at once."""
# A receiver's deadlines for word from the sender end this much later than the sender's own, so that the word arrives.
_GRACE_S = 2.0

Backend = Literal["gloo", "nccl", "local"]


@dataclass(frozen=True)
class GroupSpec:
    """All that a receiver needs to join a group. With backend `local`, `host` is the name of a `LocalChannel`."""

    epoch: int
    host: str
    port: int
    world_size: int
    backend: Backend
    timeout_s: float
    bucket_bytes: int = DEFAULT_BUCKET_BYTES

    def to_json(self) -> dict[str, Any]:
        """Plain dict, for a control channel."""
        return asdict(self)

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> GroupSpec:
        """The inverse of `to_json`."""
        return cls(**item)


class WeightSyncError(RuntimeError):
    """A broadcast failed; its group is closed. `missing` are the ranks that had not arrived."""

    def __init__(self, what: str, *, epoch: int, phase: str, rank: int, missing: Sequence[int] = ()) -> None:
        super().__init__(f"weight sync, epoch {epoch}, phase {phase}, rank {rank}: {what}")
        self.epoch = epoch
        self.phase = phase
        self.rank = rank
        self.missing = list(missing)


class WeightSyncTimeout(WeightSyncError):
    """A deadline passed; the message says who waited for whom."""


class WeightSender:
    """The learner's end, rank 0. One at a time: `open`, hand out the spec, `connect`, then `send` once an update."""

    def __init__(
        self,
        device: torch.device | str = "cpu",
        *,
        host: str = "127.0.0.1",
        timeout_s: float = 120.0,
        bucket_bytes: int = DEFAULT_BUCKET_BYTES,
    ) -> None:
        """`host`: the address at which receivers reach this process, and the only one that is listened on."""
        self.device = torch.device(device)
        self.host = host
        self.timeout_s = timeout_s
        self.bucket_bytes = bucket_bytes
        self.timings: dict[str, float] = {}
        self._epoch = 0
        self._spec: GroupSpec | None = None
        self._server: dist.TCPStore | None = None
        self._group: _Group | None = None

    def open(self, world_size: int) -> GroupSpec:
        """Begin the next epoch with `world_size` ranks, this one included; closes the last. Returns without waiting."""
        self._drop_group()
        if self._server is None:
            self._server = _serve_store(self.host)
        self._epoch += 1
        self._spec = GroupSpec(
            epoch=self._epoch,
            host=self.host,
            port=self._server.port,
            world_size=world_size,
            backend="nccl" if self.device.type == "cuda" else "gloo",
            timeout_s=self.timeout_s,
            bucket_bytes=self.bucket_bytes,
        )
        return self._spec

    def connect(self) -> None:
        """Build the group; blocks until every receiver is there. `WeightSyncTimeout` names those that are not."""
        assert self._spec is not None and self._server is not None, "open() comes first"
        started = time.monotonic()
        group = _Group(self._spec, 0, self._server, self.device)
        group.assemble()
        self._group = group
        self.timings["connect_s"] = time.monotonic() - started

    def send(self, named_tensors: Iterable[tuple[str, torch.Tensor]], manifest: Sequence[TensorSpec]) -> None:
        """Broadcast the tensors, which must be those of the manifest, in its order. Blocks until every rank has them.

        `timings`: `ready_s` (waiting for the receivers), `prepare_s` (producing and copying the tensors) and `transfer_s`
        (waiting for buckets to be sent, while none was being prepared).
        """
        if self._group is None:
            raise WeightSyncError("no group: open() and connect() first", epoch=self._epoch, phase="transfer", rank=0)
        clock = PhaseClock("ready_s", "prepare_s", "transfer_s")
        try:
            self._group.begin_update()
            clock.lap("ready_s")
            tensors = checked(named_tensors, manifest)
            buckets = plan_buckets(manifest, self.bucket_bytes)
            sending: deque[_Broadcast] = deque()
            for bucket in buckets:
                flat = flatten(bucket, tensors, self.device)
                if bucket is buckets[-1]:
                    for name, _ in tensors:  # before anybody takes the update for whole
                        raise ValueError(f"{name}: not in the manifest")
                clock.lap("prepare_s")
                if len(sending) == _IN_FLIGHT:
                    sending.popleft().wait()
                sending.append(self._group.broadcast(flat))
                clock.lap("transfer_s")
            for broadcast in sending:
                broadcast.wait()
            self._group.end_update()
            clock.lap("transfer_s")
        except BaseException:
            # Ranks are at different buckets now: closing tells the receivers, and nothing can be sent out of step.
            self._drop_group()
            raise
        self.timings |= clock.seconds

    def broadcast(self, flat: torch.Tensor) -> None:
        """Send one tensor as it is, every receiver in `WeightReceiver.broadcast`: the limit that a benchmark compares with."""
        assert self._group is not None, "open() and connect() come first"
        self._group.broadcast(flat).wait()

    def close(self) -> None:
        """Leave the group and stop the store."""
        self._drop_group()
        self._server = None

    def _drop_group(self) -> None:
        if self._group is not None:
            self._group.close()
            self._group = None


class WeightReceiver:
    """An engine worker's end: `connect` to an epoch, `receive` once an update."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.timings: dict[str, float] = {}
        self._group: _Group | None = None

    def connect(self, spec: GroupSpec, rank: int) -> None:
        """Join the epoch as `rank`, leaving the last. Blocks until the group is whole; raises `WeightSyncTimeout`."""
        self.close()
        started = time.monotonic()
        timeout = timedelta(seconds=spec.timeout_s)
        try:
            store = dist.TCPStore(spec.host, spec.port, is_master=False, timeout=timeout, wait_for_workers=False)
        except dist.DistError as error:
            what = f"waited {spec.timeout_s:.1f} s for rank 0 at {spec.host}:{spec.port}"
            raise WeightSyncTimeout(what, epoch=spec.epoch, phase="connect", rank=rank, missing=[0]) from error
        group = _Group(spec, rank, store, self.device)
        group.assemble()
        self._group = group
        self.timings["connect_s"] = time.monotonic() - started

    def receive(self, manifest: Sequence[TensorSpec]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors of one update, in the manifest's order, as views of their bucket.

        Each bucket has memory of its own, which lives as long as a view of it does: a consumer may keep tensors back
        (vLLM holds those of a layer until the layer is whole). `timings["transfer_s"]` is the time spent waiting here.
        """
        group = self._group
        if group is None:
            raise WeightSyncError("no group: connect() first", epoch=0, phase="transfer", rank=-1)
        self.timings["transfer_s"] = 0.0
        mark = time.monotonic()
        buckets = plan_buckets(manifest, group.spec.bucket_bytes)
        coming: deque[tuple[torch.Tensor, _Broadcast]] = deque()
        try:
            group.begin_update()
            for index, bucket in enumerate(buckets):
                for following in buckets[index + len(coming) : index + _IN_FLIGHT]:
                    numel = sum(spec.numel for spec in following)
                    flat = torch.empty(numel, dtype=following[0].torch_dtype, device=self.device)
                    coming.append((flat, group.broadcast(flat)))
                flat, broadcast = coming.popleft()
                broadcast.wait()
                self.timings["transfer_s"] += time.monotonic() - mark
                for spec, part in zip(bucket, flat.split([spec.numel for spec in bucket]), strict=True):
                    yield spec.name, part.view(spec.shape)
                mark = time.monotonic()
            group.end_update()
            self.timings["transfer_s"] += time.monotonic() - mark
        except BaseException:  # GeneratorExit too: a consumer that stops early leaves the group out of step
            self.close()
            raise

    def broadcast(self, flat: torch.Tensor) -> None:
        """The other end of `WeightSender.broadcast`, into `flat`."""
        assert self._group is not None, "connect() comes first"
        self._group.broadcast(flat).wait()

    def close(self) -> None:
        """Leave the group."""
        if self._group is not None:
            self._group.close()
            self._group = None


class LocalChannel:
    """Sender and receiver inside one process and thread (serial mode): the receiver draws from the sender's iterator.

    `send` only holds the iterator; the `receive` that follows consumes it. Nothing is copied.
    """

    _channels: dict[str, LocalChannel] = {}

    def __init__(self, name: str) -> None:
        self.name = name
        self.timings: dict[str, float] = {}
        self._epoch = 0
        self._held: Iterator[tuple[str, torch.Tensor]] | None = None
        self._channels[name] = self

    @classmethod
    def find(cls, name: str) -> LocalChannel:
        """The channel of this process with that name; raises KeyError."""
        return cls._channels[name]

    def open(self, world_size: int) -> GroupSpec:
        """A spec that names this channel."""
        if world_size != 2:
            raise ValueError(f"a local channel has one sender and one receiver, not {world_size} ranks")
        self._epoch += 1
        self._held = None
        return GroupSpec(self._epoch, host=self.name, port=0, world_size=2, backend="local", timeout_s=0.0)

    def connect(self, spec: GroupSpec | None = None, rank: int = 0) -> None:
        """There is nothing to wait for."""
        self.timings["connect_s"] = 0.0

    def send(self, named_tensors: Iterable[tuple[str, torch.Tensor]], manifest: Sequence[TensorSpec]) -> None:
        """Hold the tensors for `receive`."""
        self._held = checked(named_tensors, manifest)
        self.timings |= {"prepare_s": 0.0, "transfer_s": 0.0}

    def receive(self, manifest: Sequence[TensorSpec]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield what `send` holds; raises `WeightSyncError` when that is nothing."""
        held, self._held = self._held, None
        if held is None:
            raise WeightSyncError("nothing was sent", epoch=self._epoch, phase="transfer", rank=1, missing=[0])
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


class _Group:
    """One rank's membership of one epoch. Keys of the store say who has arrived where: so errors can name ranks."""

    def __init__(self, spec: GroupSpec, rank: int, store: dist.Store, device: torch.device) -> None:
        self.spec = spec
        self.rank = rank
        self._store = dist.PrefixStore(f"azr/{spec.epoch}", store)
        self._device = device
        self._process_group: Any = None
        self._update = 0

    def assemble(self) -> None:
        """Wait for every rank, then build the process group."""
        deadline = time.monotonic() + self.spec.timeout_s
        if self.rank == 0:
            missing = self._await([self._key("joined", rank) for rank in self._receivers()], self.spec.timeout_s)
            # The verdict lets receivers that are waiting give up with the learner, and say why.
            self._store.set("verdict", json.dumps(missing))
            if missing:
                raise self._timeout("connect", missing)
        else:
            self._announce("joined")
            if self._await(["verdict"], self.spec.timeout_s + _GRACE_S):
                raise self._timeout("connect", [0])
            missing = json.loads(self._store.get("verdict"))
            if missing:
                raise self._timeout("connect", missing)
        remaining = timedelta(seconds=max(deadline - time.monotonic(), 1.0))
        try:
            self._process_group = _process_group(self.spec, self.rank, self._store, remaining)
        except RuntimeError as error:
            raise self._error(f"the process group could not be built: {error}", "connect") from error

    def begin_update(self) -> None:
        """Agree that every rank is about to run the same update."""
        self._update += 1
        if self.rank == 0:
            missing = self._await([self._key("ready", rank) for rank in self._receivers()], self.spec.timeout_s)
            if missing:
                raise self._timeout("ready", missing)
        else:
            self._announce("ready")

    def end_update(self) -> None:
        """The sender leaves only when every receiver has the last bucket."""
        if self.rank == 0:
            missing = self._await([self._key("done", rank) for rank in self._receivers()], self.spec.timeout_s)
            if missing:
                raise self._timeout("done", missing)
            for rank in self._receivers():
                self._store.delete_key(self._key("ready", rank))
                self._store.delete_key(self._key("done", rank))
        else:
            self._announce("done")

    def broadcast(self, flat: torch.Tensor) -> _Broadcast:
        """Begin to send, or to receive, from rank 0 to all, in the same order on every rank."""
        options = dist.BroadcastOptions()
        options.rootRank = 0
        options.timeout = timedelta(seconds=self.spec.timeout_s)
        try:
            return _Broadcast(self, flat, self._process_group.broadcast([flat], options))
        except RuntimeError as error:
            raise self.broken(error, waited_s=0.0) from error

    def broken(self, error: RuntimeError, waited_s: float) -> WeightSyncError:
        """What to raise for a broadcast that failed after so many seconds."""
        if waited_s >= self.spec.timeout_s:
            return self._timeout("transfer", self._unfinished())
        return self._error(f"the broadcast broke: {error}", "transfer", self._unfinished())

    def close(self) -> None:
        """Abort what runs and leave."""
        group, self._process_group = self._process_group, None
        if group is not None and self.spec.backend == "nccl":
            group.abort()

    def _receivers(self) -> range:
        return range(1, self.spec.world_size)

    def _key(self, phase: str, rank: int) -> str:
        return f"{phase}/{self._update}/{rank}"

    def _await(self, keys: list[str], seconds: float) -> list[int]:
        """Wait for the keys; the ranks (last part of the key) whose key is still missing at the deadline."""
        try:
            self._store.wait(keys, timedelta(seconds=seconds))
        except RuntimeError:
            return [int(key.rpartition("/")[2]) if "/" in key else 0 for key in keys if not self._has(key)]
        return []

    def _has(self, key: str) -> bool:
        try:
            return bool(self._store.check([key]))
        except RuntimeError:  # the learner's store is gone
            return False

    def _announce(self, phase: str) -> None:
        try:
            self._store.set(self._key(phase, self.rank), "1")
        except RuntimeError as error:
            raise self._error(f"rank 0 is gone: {error}", phase, [0]) from error

    def _unfinished(self) -> list[int]:
        if self.rank != 0:
            return [0]
        return [rank for rank in self._receivers() if not self._has(self._key("done", rank))]

    def _timeout(self, phase: str, missing: list[int]) -> WeightSyncTimeout:
        what = f"waited {self.spec.timeout_s:.1f} s for ranks {missing} of {self.spec.world_size}"
        return WeightSyncTimeout(what, epoch=self.spec.epoch, phase=phase, rank=self.rank, missing=missing)

    def _error(self, what: str, phase: str, missing: Sequence[int] = ()) -> WeightSyncError:
        return WeightSyncError(what, epoch=self.spec.epoch, phase=phase, rank=self.rank, missing=missing)


class _Broadcast:
    """One bucket on its way. Keeps the bucket's memory until it has arrived."""

    def __init__(self, group: _Group, flat: torch.Tensor, work: Any) -> None:
        self._group = group
        self._flat = flat
        self._work = work

    def wait(self) -> None:
        """Block until this rank's part is over; `WeightSyncError` names the ranks that are not done."""
        timeout = timedelta(seconds=self._group.spec.timeout_s)
        started = time.monotonic()
        try:
            # A timeout makes NCCL's wait block as gloo's does, so that deadlines mean the same on both.
            self._work.wait(timeout)
        except RuntimeError as error:
            raise self._group.broken(error, time.monotonic() - started) from error


def _serve_store(host: str) -> dist.TCPStore:
    """A store on a free port of `host` alone; by itself torch would listen on every interface."""
    family = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.bind((host, 0))
    listener.listen()
    port = listener.getsockname()[1]
    return dist.TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


def _process_group(spec: GroupSpec, rank: int, store: dist.Store, timeout: timedelta) -> Any:
    """The backend itself, without torch's default group, which belongs to Megatron or vLLM."""
    options: Any
    if spec.backend == "nccl":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timeout
        return dist.ProcessGroupNCCL(store, rank, spec.world_size, options)
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = timeout
    # gloo would listen at the address of the host's name; this is the one that faces the learner.
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=_address_towards(spec.host, spec.port))]
    return dist.ProcessGroupGloo(store, rank, spec.world_size, options)


def _address_towards(host: str, port: int) -> str:
    """This machine's own address on the route to `host`."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])
