"""The weight broadcast: sender and receivers against each other, in threads of this process."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psutil
import pytest
import torch

from learner.weights.group import Group, GroupSpec, WeightSyncError, WeightSyncTimeout
from learner.weights.local import LocalChannel
from learner.weights.manifest import (
    Manifest,
    TensorSpec,
    checksum,
    manifest_from_json,
    manifest_of,
    manifest_to_json,
    plan_buckets,
)
from learner.weights.transfer import BUCKETS_IN_FLIGHT, Delta, WeightReceiver, WeightSender

Named = list[tuple[str, torch.Tensor]]


def tensors(seed: int = 0) -> Named:
    """Mixed dtypes, a scalar, a transposed view, and one tensor larger than the buckets of these tests."""
    draw = torch.Generator().manual_seed(seed)
    return [
        ("embed", torch.randn(40, 8, generator=draw).bfloat16()),
        ("norm", torch.randn(8, generator=draw).bfloat16()),
        ("proj", torch.randn(3, 8, generator=draw).bfloat16().t()),
        ("scale", torch.randn(5, generator=draw)),
        ("count", torch.tensor(7)),
        ("head", torch.randn(2, 3, generator=draw).bfloat16()),
    ]


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=8) as pool:
        yield pool


def receive(spec: GroupSpec, rank: int, manifests: list[Manifest]) -> list[Named]:
    receiver = WeightReceiver()
    receiver.connect(GroupSpec.from_json(json.loads(json.dumps(spec.to_json()))), rank)
    try:
        return [list(receiver.receive(manifest)) for manifest in manifests]
    finally:
        receiver.close()


def start(threads: ThreadPoolExecutor, spec: GroupSpec, manifests: list[Manifest]) -> list[Future[list[Named]]]:
    return [threads.submit(receive, spec, rank, manifests) for rank in range(1, spec.world_size)]


def test_every_receiver_gets_every_update_bit_for_bit(threads: ThreadPoolExecutor) -> None:
    updates = [tensors(0), tensors(1)]
    sender = WeightSender(timeout_s=20, bucket_bytes=64)
    received = start(threads, sender.open(3), [manifest_of(named) for named in updates])
    sender.connect()
    for named in updates:
        sender.send(iter(named), manifest_of(named))
    for future in received:
        for sent, got in zip(updates, future.result(), strict=True):
            # Tensors that were kept until the end are still whole: no bucket's memory was used twice.
            assert [name for name, _ in got] == [name for name, _ in sent]
            assert all(torch.equal(a, b) and a.dtype == b.dtype for (_, a), (_, b) in zip(sent, got, strict=True))
            assert checksum(got) == checksum(sent)
    assert set(sender.timings) == {"connect_s", "ready_s", "prepare_s", "transfer_s"}
    sender.close()


def test_the_sender_holds_no_more_than_the_buckets_that_travel_and_the_next(threads: ThreadPoolExecutor) -> None:
    named = [(f"t{i}", torch.full((16,), float(i))) for i in range(512)]
    produced: list[int] = []

    def export() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in named:
            produced.append(len(produced))
            yield name, tensor.clone()

    manifest = manifest_of(named)
    sender = WeightSender(timeout_s=20, bucket_bytes=2048)
    received = start(threads, sender.open(2), [manifest])
    sender.connect()
    pulled: list[int] = []
    travelling = 0
    broadcast = sender._group.broadcast  # type: ignore[union-attr]

    def spy(flat: torch.Tensor) -> Any:
        nonlocal travelling
        pulled.append(len(produced))
        travelling += 1
        assert flat.nbytes == 2048
        assert travelling <= BUCKETS_IN_FLIGHT, "an earlier one has arrived"
        work = broadcast(flat)
        wait = work.wait

        def waited() -> None:
            nonlocal travelling
            wait()
            travelling -= 1

        work.wait = waited
        return work

    sender._group.broadcast = spy  # type: ignore[union-attr,method-assign]
    sender.send(export(), manifest)
    assert len(received[0].result()[0]) == 512
    assert pulled == list(range(32, 513, 32)), "each bucket of 32 tensors left as soon as it was produced"
    assert travelling == 0
    sender.close()


def test_membership_changes_with_the_group(threads: ThreadPoolExecutor) -> None:
    named = tensors()
    manifest = manifest_of(named)
    sender = WeightSender(timeout_s=20)
    groups = []
    for world_size in (3, 2, 4):
        spec = sender.open(world_size)
        groups.append(spec.group_id)
        received = start(threads, spec, [manifest])
        sender.connect()
        sender.send(named, manifest)
        assert all(checksum(future.result()[0]) == checksum(named) for future in received)
    assert groups == [1, 2, 3]
    sender.close()


def test_a_missing_receiver_is_named_to_everybody(threads: ThreadPoolExecutor) -> None:
    sender = WeightSender(timeout_s=2)
    spec = sender.open(4)
    present = [threads.submit(receive, spec, rank, []) for rank in (1, 3)]
    with pytest.raises(
        WeightSyncTimeout, match=r"group 1, phase connect, rank 0: waited 2.0 s for ranks \[2\]"
    ) as caught:
        sender.connect()
    assert caught.value.missing == [2]
    for future in present:
        with pytest.raises(WeightSyncTimeout) as told:
            future.result()
        assert told.value.missing == [2], "the sender told them"
    with pytest.raises(WeightSyncError, match="no group"):
        sender.send(tensors(), manifest_of(tensors()))
    sender.close()


def test_a_receiver_that_never_starts_an_update_is_named(threads: ThreadPoolExecutor) -> None:
    named = tensors()
    sender = WeightSender(timeout_s=4)
    spec = sender.open(3)
    received = threads.submit(receive, spec, 1, [manifest_of(named)])
    idle = WeightReceiver()
    joined = threads.submit(idle.connect, spec, 2)
    sender.connect()
    joined.result()
    with pytest.raises(WeightSyncTimeout, match="phase ready") as caught:
        sender.send(named, manifest_of(named))
    assert caught.value.missing == [2]
    with pytest.raises(WeightSyncError):
        received.result()
    idle.close()
    sender.close()


def test_a_receiver_that_dies_in_the_middle_breaks_the_update_and_the_next_group_works(
    threads: ThreadPoolExecutor,
) -> None:
    named = [(f"t{i}", torch.randn(1 << 20)) for i in range(16)]
    manifest = manifest_of(named)

    def die(spec: GroupSpec) -> None:
        receiver = WeightReceiver()
        receiver.connect(spec, 1)
        next(receiver.receive(manifest))
        receiver.close()

    sender = WeightSender(timeout_s=10, bucket_bytes=4 << 20)
    dying = threads.submit(die, sender.open(2))
    sender.connect()
    with pytest.raises(WeightSyncError) as caught:
        sender.send(named, manifest)
    assert caught.value.missing == [1]
    dying.result()
    received = start(threads, sender.open(2), [manifest])
    sender.connect()
    sender.send(named, manifest)
    assert checksum(received[0].result()[0]) == checksum(named)
    sender.close()


@pytest.mark.parametrize(("delta", "taken"), [("off", 2), ("auto", 1)])
def test_receivers_leave_an_update_that_hangs_at_once(threads: ThreadPoolExecutor, delta: Delta, taken: int) -> None:
    """In the middle of an update nothing comes from the sender any more. Receivers that have taken some buckets, and
    have begun to receive one that does not come, need not wait for its deadline to leave."""
    named = [(f"t{i}", torch.randn(1 << 10)) for i in range(16)]
    manifest = manifest_of(named)
    receivers = [WeightReceiver() for _ in range(3)]
    sender = WeightSender(timeout_s=60, bucket_bytes=8 << 10, delta=delta)
    spec = sender.open(4)
    joining = [threads.submit(receiver.connect, spec, rank) for rank, receiver in enumerate(receivers, 1)]
    sender.connect()
    for future in joining:
        future.result()
    loading = [threads.submit(lambda it=receiver: list(it.receive(manifest))) for receiver in receivers]
    sender.send(named, manifest)
    for future in loading:
        future.result()

    hangs, goes_on = threading.Event(), threading.Event()

    def export() -> Iterator[tuple[str, torch.Tensor]]:
        for index, (name, tensor) in enumerate(named):
            if index == 2:
                hangs.set()
                goes_on.wait()
                raise RuntimeError("the test is over")
            tensor[0] += 1.0
            yield name, tensor

    arriving = [receiver.receive(manifest) for receiver in receivers]
    first = [threads.submit(lambda it=it: [next(it) for _ in range(taken)]) for it in arriving]
    sending = threads.submit(sender.send, export(), manifest)
    try:
        for future in first:
            assert torch.equal(future.result()[0][1], named[0][1])
        assert hangs.wait(60)
        left = time.monotonic()
        for it in arriving:
            it.close()
        assert time.monotonic() - left < 30
    finally:
        goes_on.set()
    with pytest.raises(RuntimeError, match="the test is over"):
        sending.result()
    sender.close()


def test_a_receiver_that_dies_while_the_group_is_built_holds_nobody_up(
    threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has joined, and then connects to nobody. gloo alone would make the others wait for five deadlines."""
    link = Group._link

    def dies(group: Group) -> None:
        if group.rank == 2:
            raise RuntimeError("it died")
        link(group)

    monkeypatch.setattr(Group, "_link", dies)
    sender = WeightSender(timeout_s=4)
    named = tensors()
    manifest = manifest_of(named)
    started = time.monotonic()
    received = start(threads, sender.open(4), [manifest])
    with pytest.raises(WeightSyncError, match="phase connect") as caught:
        sender.connect()
    assert caught.value.missing == []
    for future in received:
        with pytest.raises(WeightSyncError):
            future.result()
    assert time.monotonic() - started < 4.5 * sender.timeout_s
    monkeypatch.undo()
    received = start(threads, sender.open(4), [manifest])
    sender.connect()
    sender.send(named, manifest)
    for future in received:
        assert checksum(future.result()[0]) == checksum(named)
    sender.close()


VICTIM = """
import json, sys
from learner.weights.group import GroupSpec
from learner.weights.transfer import WeightReceiver
from learner.weights.manifest import manifest_from_json
print("ready", flush=True)
command = json.loads(sys.stdin.readline())
receiver = WeightReceiver()
receiver.connect(GroupSpec.from_json(command["spec"]), 1)
arriving = receiver.receive(manifest_from_json(command["manifest"]))
next(arriving)
print("the first bucket is here", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("stroke", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
@pytest.mark.slow
def test_only_the_process_that_dies_in_the_middle_is_blamed_and_the_others_go_on(
    threads: ThreadPoolExecutor, stroke: signal.Signals
) -> None:
    named = [(f"t{i}", torch.randn(1 << 20)) for i in range(32)]  # more than sockets hold
    manifest = manifest_of(named)
    sender = WeightSender(timeout_s=10, bucket_bytes=4 << 20)
    spec = sender.open(3)
    command = json.dumps({"spec": spec.to_json(), "manifest": manifest_to_json(manifest)})
    with subprocess.Popen(
        [sys.executable, "-c", VICTIM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as victim:
        try:
            assert victim.stdin and victim.stdout
            assert victim.stdout.readline() == "ready\n"
            victim.stdin.write(command + "\n")
            victim.stdin.flush()
            survivor = threads.submit(receive, spec, 2, [manifest])
            sender.connect()
            sending = threads.submit(sender.send, named, manifest)
            assert victim.stdout.readline() == "the first bucket is here\n"
            victim.send_signal(stroke)
            struck = time.monotonic()
            with pytest.raises(WeightSyncError, match=r"ranks \[1\]") as caught:
                sending.result()
            assert caught.value.missing == [1]
            # Not the deadlines of all buckets, one after the other. The machine may be busy with other work.
            assert time.monotonic() - struck < 6 * sender.timeout_s
            with pytest.raises(WeightSyncError):
                survivor.result()
        finally:
            victim.kill()
    received = start(threads, sender.open(2), [manifest])
    sender.connect()
    sender.send(named, manifest)
    assert checksum(received[0].result()[0]) == checksum(named)
    sender.close()


def test_a_sender_that_goes_away_is_named(threads: ThreadPoolExecutor) -> None:
    sender = WeightSender(timeout_s=20)
    received = threads.submit(receive, sender.open(2), 1, [manifest_of(tensors())])
    sender.connect()
    sender.close()
    with pytest.raises(WeightSyncError) as caught:
        received.result()
    assert caught.value.missing == [0]


def test_nobody_listens_where_the_spec_points() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spec = GroupSpec(group_id=1, host="127.0.0.1", port=port, world_size=2, backend="gloo", timeout_s=0.3)
    with pytest.raises(WeightSyncTimeout) as caught:
        WeightReceiver().connect(spec, 1)
    assert caught.value.missing == [0]


def test_the_store_listens_on_its_host_alone() -> None:
    sender = WeightSender(host="127.0.0.2")
    port = sender.open(2).port
    own = psutil.Process().net_connections("tcp")  # on another address the port may be somebody else's
    assert [it.laddr.ip for it in own if it.status == psutil.CONN_LISTEN and it.laddr.port == port] == ["127.0.0.2"]
    with socket.create_connection(("127.0.0.2", port), timeout=1):
        pass
    sender.close()


def _swap(named: Named) -> Named:
    return [named[1], named[0], *named[2:]]


@pytest.mark.parametrize(
    "spoil",
    [lambda named: named[:-1], lambda named: [*named, ("more", torch.zeros(1))], _swap],
    ids=["too few", "too many", "another order"],
)
def test_an_export_that_is_not_its_manifest_is_refused(
    threads: ThreadPoolExecutor, spoil: Callable[[Named], Named]
) -> None:
    named = tensors()
    sender = WeightSender(timeout_s=20, bucket_bytes=64)
    received = start(threads, sender.open(2), [manifest_of(named)])
    sender.connect()
    with pytest.raises(ValueError, match="manifest"):
        sender.send(spoil(named), manifest_of(named))
    with pytest.raises(WeightSyncError):
        received[0].result()
    sender.close()


def test_buckets_hold_neighbours_of_one_dtype() -> None:
    manifest = manifest_of(tensors())

    def names(bucket_bytes: int) -> list[list[str]]:
        return [[spec.name for spec in bucket] for bucket in plan_buckets(manifest, bucket_bytes)]

    assert names(2048) == [["embed", "norm", "proj"], ["scale"], ["count"], ["head"]]
    # embed has 640 bytes, half of 1280: it travels as it lies.
    assert names(1280) == [["embed"], ["norm", "proj"], ["scale"], ["count"], ["head"]]
    many = manifest_of([(str(i), torch.zeros(15)) for i in range(40)])  # 60 bytes each
    assert [len(bucket) for bucket in plan_buckets(many, 1000)] == [16, 16, 8]
    assert plan_buckets(manifest, 1) == [[spec] for spec in manifest]
    assert [spec for bucket in plan_buckets(manifest, 1 << 30) for spec in bucket] == manifest


def test_specs_and_manifests_survive_json() -> None:
    manifest = manifest_of(tensors())
    assert manifest_from_json(json.loads(json.dumps(manifest_to_json(manifest)))) == manifest
    assert manifest[0] == TensorSpec("embed", "bfloat16", (40, 8))
    with pytest.raises(ValueError, match="no torch dtype"):
        _ = TensorSpec("x", "load", (1,)).num_bytes


def test_checksums_see_values_names_dtypes_and_shapes() -> None:
    base = torch.arange(6.0)
    variants = [base, base + 1, base.bfloat16(), base.view(2, 3)]
    assert len({checksum([("x", variant)])["x"] for variant in variants}) == 4
    assert checksum([("x", torch.tensor([0.0, -0.0]))]) == checksum([("x", torch.zeros(2))])
    assert checksum([("x", torch.tensor([float("nan")]))]) != checksum([("x", torch.zeros(1))])


def test_a_local_channel_hands_over_the_very_tensors_in_one_thread() -> None:
    named = tensors()
    channel = LocalChannel("test")
    spec = channel.open(2)
    assert spec.backend == "local"
    at = LocalChannel.find(spec.host)
    order: list[str] = []

    def export() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in named:
            order.append(f"made {name}")
            yield name, tensor

    channel.send(export(), manifest_of(named))
    assert order == [], "nothing is produced before somebody receives"
    for name, tensor in at.receive(manifest_of(named)):
        order.append(f"took {name}")
        assert tensor.data_ptr() == dict(named)[name].data_ptr()
    assert order == [f"{verb} {name}" for name, _ in named for verb in ("made", "took")]
    with pytest.raises(WeightSyncError, match="nothing was sent"):
        next(at.receive(manifest_of(named)))
    channel.close()
    with pytest.raises(KeyError):
        LocalChannel.find("test")


def test_a_local_channel_refuses_an_export_that_is_not_its_manifest() -> None:
    named = tensors()
    channel = LocalChannel("test")
    channel.send(_swap(named), manifest_of(named))
    with pytest.raises(ValueError, match="manifest"):
        list(channel.receive(manifest_of(named)))
    channel.close()
