"""Both ends of the weight broadcast: the learner's `WeightSender` and an engine worker's `WeightReceiver`.

The protocol is in `learner/weights/__init__.py`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist

from learner.stopwatch import Stopwatch
from learner.store import join_store, serve_store
from learner.weights.delta import HEADER_WORDS, DeltaDecoder, DeltaEncoder, DeltaError, Header, layout_of
from learner.weights.group import (
    DEFAULT_BUCKET_BYTES,
    Broadcast,
    Group,
    GroupSpec,
    WeightSyncError,
    WeightSyncTimeout,
)
from learner.weights.manifest import Bucket, TensorSpec, checked, flatten, plan_buckets

BUCKETS_IN_FLIGHT = 2
"""Buckets that travel at once. More are no faster, and each is memory on both ends."""

Delta = Literal["off", "auto"]


@dataclass
class SentBytes:
    """Bytes of one update."""

    bytes: int = 0
    """Bytes that were broadcast, each counted once for all receivers."""
    weights_bytes: int = 0
    """Bytes of the weights."""
    sparse_bytes: int = 0
    """Bytes of the weights in buckets of which only the changed elements were broadcast."""

    def add(self, weights_bytes: int, sent_bytes: int, is_sparse: bool) -> None:
        """Count one bucket."""
        self.bytes += sent_bytes
        self.weights_bytes += weights_bytes
        self.sparse_bytes += weights_bytes if is_sparse else 0


class WeightSender:
    """The learner's end, on its rank 0. Call `open`, hand out the spec, `connect`, then `send` for each update."""

    def __init__(
        self,
        device: torch.device | str = "cpu",
        *,
        host: str = "127.0.0.1",
        timeout_s: float = 120.0,
        bucket_bytes: int = DEFAULT_BUCKET_BYTES,
        delta: Delta = "off",
    ) -> None:
        """`host`: address at which receivers reach this process; it listens on no other. `timeout_s`: deadline of each
        phase, in seconds. `delta`: `auto` sends what has changed where that is smaller (`delta.py`)."""
        self.device = torch.device(device)
        self.host = host
        self.timeout_s = timeout_s
        self.bucket_bytes = bucket_bytes
        self.timings: dict[str, float] = {}
        self.sent = SentBytes()
        """Those of the last update that every receiver has."""
        self._encoder = DeltaEncoder() if delta == "auto" else None
        self._group_id = 0
        self._spec: GroupSpec | None = None
        self._server: dist.TCPStore | None = None
        self._group: Group | None = None

    def open(self, world_size: int) -> GroupSpec:
        """Open the next group, of `world_size` ranks with this one, and close the last. Returns without waiting."""
        self._drop_group()
        if self._server is None:
            self._server = serve_store(self.host)
        self._group_id += 1
        self._spec = GroupSpec(
            group_id=self._group_id,
            host=self.host,
            port=self._server.port,
            world_size=world_size,
            backend="nccl" if self.device.type == "cuda" else "gloo",
            timeout_s=self.timeout_s,
            bucket_bytes=self.bucket_bytes,
            delta=self._encoder is not None,
        )
        return self._spec

    def connect(self) -> None:
        """Build the group once every receiver has joined. Raises `WeightSyncTimeout`, which names those that have
        not."""
        assert self._spec is not None and self._server is not None, "open() comes first"
        started = time.monotonic()
        group = Group(self._spec, 0, self._server)
        group.assemble()
        self._group = group
        self.timings["connect_s"] = time.monotonic() - started

    def send(self, named_tensors: Iterable[tuple[str, torch.Tensor]], manifest: Sequence[TensorSpec]) -> None:
        """Broadcast the tensors of the manifest, in its order. Returns when every rank has them.

        `timings`: `ready_s` (waiting for the receivers), `prepare_s` (producing and copying the tensors) and
        `transfer_s` (waiting for buckets to be sent, while none was being prepared).
        """
        if self._group is None:
            raise WeightSyncError(
                "no group: open() and connect() first", group_id=self._group_id, phase="transfer", rank=0
            )
        watch = Stopwatch("ready_s", "prepare_s", "transfer_s")
        sent = SentBytes()
        try:
            bases = self._group.begin_update()
            watch.lap("ready_s")
            tensors = checked(named_tensors, manifest)
            buckets = plan_buckets(manifest, self.bucket_bytes)
            if self._encoder is not None:
                self._encoder.begin(layout_of(buckets), bases)
            sending: deque[Broadcast] = deque()
            for index, bucket in enumerate(buckets):
                flat = flatten(bucket, tensors, self.device)
                if bucket is buckets[-1]:
                    for name, _ in tensors:  # before anybody takes the update for whole
                        raise ValueError(f"{name}: not in the manifest")
                header, payload = self._messages(index, flat, sent)
                watch.lap("prepare_s")
                if len(sending) == BUCKETS_IN_FLIGHT:
                    sending.popleft().wait()
                if header is not None:
                    # First: without it no receiver takes the payload, and a group cannot be closed while one is sent.
                    self._group.broadcast(header).wait()
                if payload is not None:
                    sending.append(self._group.broadcast(payload))
                watch.lap("transfer_s")
            for broadcast in sending:
                broadcast.wait()
            self._group.end_update()
            if self._encoder is not None:
                self._encoder.commit()
            watch.lap("transfer_s")
        except BaseException as error:
            # Ranks are at different buckets now: closing tells the receivers, and nothing can be sent out of step.
            group = self._group
            self._drop_group()
            if isinstance(error, WeightSyncError) and error.phase == "transfer":
                raise group.without_survivors(error) from error
            raise
        self.timings |= watch.seconds
        self.sent = sent

    def broadcast(self, flat: torch.Tensor) -> None:
        """Broadcast one tensor without manifest and buckets: the bound that `azr bench weights` compares `send` with.
        Every receiver calls `WeightReceiver.broadcast`."""
        assert self._group is not None, "open() and connect() come first"
        self._group.broadcast(flat).wait()

    def close(self) -> None:
        """Leave the group and stop the store."""
        self._drop_group()
        self._server = None

    def _messages(
        self, index: int, flat: torch.Tensor, sent: SentBytes
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """What is broadcast for a bucket, entered in `sent`: with deltas a header, and a payload if one follows."""
        if self._encoder is None:
            sent.add(flat.nbytes, flat.nbytes, is_sparse=False)
            return None, flat
        header, payload = self._encoder.encode(index, flat)
        words = header.to_tensor(self.device)
        sent.add(flat.nbytes, words.nbytes + (0 if payload is None else payload.nbytes), not header.is_whole)
        return words, payload

    def _drop_group(self) -> None:
        if self._group is not None:
            self._group.close()
            self._group = None


class WeightReceiver:
    """An engine worker's end. Call `connect` for each group and `receive` for each update."""

    def __init__(self, device: torch.device | str = "cpu", decoder: DeltaDecoder | None = None) -> None:
        """`decoder`: that of the receiver before, where each group has a receiver of its own."""
        self.device = torch.device(device)
        self.timings: dict[str, float] = {}
        self._decoder = decoder or DeltaDecoder()
        self._group: Group | None = None

    def connect(self, spec: GroupSpec, rank: int) -> None:
        """Leave the last group and join this one as `rank`. Returns when it is whole; raises `WeightSyncTimeout`."""
        self.close()
        started = time.monotonic()
        try:
            store = join_store(spec.host, spec.port, spec.timeout_s)
        except dist.DistError as error:
            what = f"waited {spec.timeout_s:.1f} s for rank 0 at {spec.host}:{spec.port}"
            raise WeightSyncTimeout(what, group_id=spec.group_id, phase="connect", rank=rank, missing=[0]) from error
        group = Group(spec, rank, store)
        group.assemble()
        self._group = group
        self.timings["connect_s"] = time.monotonic() - started

    def receive(self, manifest: Sequence[TensorSpec]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors of one update, in the manifest's order, as views of their bucket.

        Each bucket has memory of its own, which lives as long as a view of it does: a consumer may keep tensors back
        (vLLM holds those of a layer until the layer is whole), but must not change them: with `spec.delta` the next
        update builds on them. `timings["transfer_s"]` is the time spent waiting here.
        """
        group = self._group
        if group is None:
            raise WeightSyncError("no group: connect() first", group_id=0, phase="transfer", rank=-1)
        self.timings["transfer_s"] = 0.0
        buckets = plan_buckets(manifest, group.spec.bucket_bytes)
        contents = self._deltas(group, buckets) if group.spec.delta else self._wholes(group, buckets)
        try:
            for bucket, flat in contents:
                for spec, part in zip(bucket, flat.split([spec.numel for spec in bucket]), strict=True):
                    yield spec.name, part.view(spec.shape)
        except WeightSyncError:
            group.say_alive()
            self.close()
            raise
        except BaseException:  # GeneratorExit too: a consumer that stops early leaves the group out of step
            self.close()
            raise

    def _wholes(self, group: Group, buckets: Sequence[Bucket]) -> Iterator[tuple[Bucket, torch.Tensor]]:
        """Yield each bucket with its content."""
        coming: deque[tuple[torch.Tensor, Broadcast]] = deque()
        with self._waiting():
            group.begin_update()
        for index, bucket in enumerate(buckets):
            with self._waiting():
                for following in buckets[index + len(coming) : index + BUCKETS_IN_FLIGHT]:
                    numel = sum(spec.numel for spec in following)
                    flat = torch.empty(numel, dtype=following[0].torch_dtype, device=self.device)
                    coming.append((flat, group.broadcast(flat)))
                flat, broadcast = coming.popleft()
                broadcast.wait()
            yield bucket, flat
        with self._waiting():
            group.end_update()

    def _deltas(self, group: Group, buckets: Sequence[Bucket]) -> Iterator[tuple[Bucket, torch.Tensor]]:
        """Yield each bucket with its content, of which the changed part may have come. Once a bucket is refused the
        rest is received and left, so that the sender gets to the end and hears of it there."""
        decoder = self._decoder
        refusal: DeltaError | None = None
        coming: deque[tuple[Header, torch.Tensor | None, Broadcast | None]] = deque()
        words = [torch.empty(HEADER_WORDS, dtype=torch.int64, device=self.device) for _ in buckets]
        try:
            with self._waiting():
                group.begin_update(decoder.begin(layout_of(buckets)))
                announced = group.broadcast(words[0]) if words else None
            for index, bucket in enumerate(buckets):
                with self._waiting():
                    # The next payload is under way while this one is loaded; how long it is, its header says.
                    for following in range(index + len(coming), min(index + BUCKETS_IN_FLIGHT, len(buckets))):
                        assert announced is not None
                        announced.wait()
                        header = Header.from_tensor(words[following])
                        payload = decoder.room(following, header, self.device)
                        coming.append((header, payload, None if payload is None else group.broadcast(payload)))
                        announced = group.broadcast(words[following + 1]) if following + 1 < len(buckets) else None
                    header, payload, broadcast = coming.popleft()
                    if broadcast is not None:
                        broadcast.wait()
                if refusal is None:
                    try:
                        content = decoder.take(index, header, payload)
                    except DeltaError as error:
                        refusal = error
                        continue
                    yield bucket, content
            if refusal is not None:
                raise refusal
            with self._waiting():
                decoder.commit()
                group.end_update()
        except DeltaError as error:
            raise group.refuse(str(error)) from error

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Count the time of the block as spent waiting."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.timings["transfer_s"] += time.monotonic() - started

    def broadcast(self, flat: torch.Tensor) -> None:
        """The other end of `WeightSender.broadcast`, into `flat`."""
        assert self._group is not None, "connect() comes first"
        self._group.broadcast(flat).wait()

    def close(self) -> None:
        """Leave the group."""
        if self._group is not None:
            self._group.close()
            self._group = None
