"""The weight broadcast between processes, over NCCL and CUDA memory, with one that is killed or stands still in the
middle; over gloo in a dry run.

Where ranks are more than GPUs, some share one. NCCL refuses that of ranks on one host, so each is told that it is a
host of its own (`NCCL_HOSTID`), and reaches the others by a socket on the loopback interface, as between machines.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from learner.weights.group import GroupSpec, WeightSyncError, WeightSyncTimeout
from learner.weights.manifest import Manifest, checksum, manifest_from_json, manifest_of, manifest_to_json
from learner.weights.transfer import Delta, WeightReceiver, WeightSender

Named = list[tuple[str, torch.Tensor]]
Record = Callable[[str, object], None]
ON_GPU = torch.cuda.is_available()
TIMEOUT_S = 8.0 if ON_GPU else 30.0
"""Deadline of every group: torch reads how long NCCL may take to connect once in a process. Long where other tests have
the cores."""
BUCKET_BYTES = 4 << 20
SLACK_S = 1.0 if ON_GPU else 20.0
"""Seconds beyond the deadline; many where other tests have the cores."""
NUM_TENSORS = 40 if ON_GPU else 24
RANKS = 3
WHEN = ("joined", "ready", "began") if ON_GPU else ("began",)
STROKES = [(when, stroke) for when in WHEN for stroke in (signal.SIGKILL, signal.SIGSTOP)]


def environment(process: int) -> dict[str, str]:
    """NCCL's settings of a process, where it shares its GPU with others."""
    if not ON_GPU or torch.cuda.device_count() >= RANKS:
        return {}
    return {
        "NCCL_HOSTID": f"host-{process}",
        "NCCL_SOCKET_IFNAME": "lo",
        "NCCL_IB_DISABLE": "1",
        "NCCL_MNNVL_ENABLE": "0",
        "NCCL_NVLS_ENABLE": "0",
        # Kernels of several processes take turns on a GPU: small ones, so that their buffers are small, too.
        "NCCL_MAX_CTAS": "2",
    }


def device(rank: int) -> str:
    return f"cuda:{rank % torch.cuda.device_count()}" if ON_GPU else "cpu"


def tensors(seed: int) -> Named:
    """Some smaller than half a bucket, which are copied into one; some larger, which travel as they lie."""
    draw = torch.Generator(device=device(0)).manual_seed(seed)
    numel = [4096 if index % 4 else BUCKET_BYTES for index in range(NUM_TENSORS)]
    return [(f"t{i}", torch.randn(n, generator=draw, device=device(0)).bfloat16()) for i, n in enumerate(numel)]


class Receiver:
    """A process that receives update after update, and prints the sum of checks of each, or why it failed."""

    def __init__(self, number: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.gpu.test_weights"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | environment(number),
        )  # fmt: skip

    def say(self, **command: object) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def join(self, spec: GroupSpec, rank: int, manifest: Manifest) -> None:
        self.say(spec=spec.to_json(), rank=rank, manifest=manifest_to_json(manifest))

    def heard(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def expect(self, word: str) -> None:
        assert (heard := self.heard()) == word, heard


@pytest.fixture(scope="module")
def receivers() -> Iterator[list[Receiver]]:
    """The process that survives every test, and one for each that is struck; they start at once."""
    os.environ.update(environment(0))
    found = [Receiver(number) for number in range(1, len(STROKES) + 2)]
    try:
        for one in found:
            one.expect("ready")
        yield found
    finally:
        for one in found:
            one.process.kill()


@pytest.fixture(scope="module")
def survivor(receivers: list[Receiver]) -> Receiver:
    """The receiver of every group. Skips all tests where this NCCL refuses ranks that share a GPU."""
    found = receivers.pop()
    named = tensors(0)
    sender = WeightSender(device(0), timeout_s=TIMEOUT_S, bucket_bytes=BUCKET_BYTES)
    try:
        update([found], sender, named)
    except WeightSyncError as error:
        if not environment(0) or not any(word in str(error) for word in ("invalid usage", "same GPU", "Duplicate")):
            raise
        version = ".".join(map(str, torch.cuda.nccl.version()))
        pytest.skip(f"{torch.cuda.device_count()} GPU, and NCCL {version} refuses ranks that share one: {error}")
    finally:
        sender.close()
    return found


def update(receivers: list[Receiver], sender: WeightSender, named: Named) -> None:
    """Build a group of the sender and `receivers`, and send an update, which arrives bit for bit."""
    manifest = manifest_of(named)
    spec = sender.open(len(receivers) + 1)
    assert spec.backend == ("nccl" if ON_GPU else "gloo")
    for rank, one in enumerate(receivers, 1):
        one.join(spec, rank, manifest)
    sender.connect()
    for one in receivers:
        one.expect("joined")
    send(receivers, sender, named)


def send(receivers: list[Receiver], sender: WeightSender, named: Named) -> None:
    """Send an update to the receivers of the present group, and compare what arrived."""
    for one in receivers:
        one.say(go=True)
    sender.send(iter(named), manifest_of(named))
    for one in receivers:
        one.expect("began")
        assert json.loads(one.heard()) == checksum(named)


@pytest.mark.parametrize("delta", ["off", "auto"])
def test_every_receiver_gets_every_update_bit_for_bit_over_epochs(
    survivor: Receiver, receivers: list[Receiver], delta: Delta, record_property: Record
) -> None:
    """Whole updates, and of an update that changes little only what has changed."""
    sender = WeightSender(device(0), timeout_s=TIMEOUT_S, bucket_bytes=BUCKET_BYTES, delta=delta)
    both = [survivor, receivers[0]]
    for epoch in range(2):
        named = tensors(10 * epoch)
        update(both, sender, named)
        assert sender.sent.sparse_bytes == 0
        for _, tensor in named[::3]:
            tensor[::1000] = -tensor[::1000]
        send(both, sender, named)
        assert sender.sent.sparse_bytes == (sender.sent.weights_bytes if delta == "auto" else 0)
    sender.close()
    record_property(f"delta_{delta}_transfer_s", sender.timings["transfer_s"])
    record_property(f"delta_{delta}_sent_mb", sender.sent.bytes / 1e6)


def test_a_receiver_that_does_not_come_is_named(survivor: Receiver) -> None:
    sender = WeightSender(device(0), timeout_s=2.0)
    survivor.join(sender.open(3), 1, manifest_of(tensors(0)))
    with pytest.raises(WeightSyncTimeout, match=r"phase connect, rank 0: waited 2.0 s for ranks \[2\]"):
        sender.connect()
    assert "[2]" in survivor.heard()
    sender.close()


@pytest.mark.parametrize(("when", "stroke"), STROKES, ids=[f"{when}-{stroke.name}" for when, stroke in STROKES])
def test_only_the_process_that_dies_is_blamed_and_the_others_go_on(
    survivor: Receiver, receivers: list[Receiver], stroke: signal.Signals, when: str, record_property: Record
) -> None:
    """Struck between the group's building and the first update, as its first bucket is due (which is where NCCL
    connects), or in the middle of an update. Costs `timeout_s` at most."""
    victim = receivers.pop()
    manifest = manifest_of(tensors(0))
    sender = WeightSender(device(0), timeout_s=TIMEOUT_S, bucket_bytes=BUCKET_BYTES)
    spec = sender.open(3)
    for rank, one in enumerate((victim, survivor), 1):
        one.join(spec, rank, manifest)
    sender.connect()
    victim.expect("joined")
    survivor.expect("joined")
    if when == "began":
        victim.say(go=True, only_first=True)
    elif when == "ready":
        victim.say(go=True, strike=stroke)
    else:
        victim.process.send_signal(stroke)
    survivor.say(go=True)
    struck = time.monotonic()
    named = iter(tensors(1))

    def export() -> Iterator[tuple[str, torch.Tensor]]:
        nonlocal struck
        for index, one in enumerate(named):
            if when == "began" and index == 10:
                victim.expect("began")
                victim.process.send_signal(stroke)
                struck = time.monotonic()
            yield one

    with pytest.raises(WeightSyncError) as caught:
        sender.send(export(), manifest)
    took_s = time.monotonic() - struck
    record_property(f"{when}_{stroke.name}_noticed_s", took_s)
    assert caught.value.missing == [1]
    assert took_s < TIMEOUT_S + SLACK_S
    answers = [survivor.heard()]
    if answers[-1] == "began":
        answers.append(survivor.heard())
    assert answers[-1].startswith("failed"), answers

    victim.process.kill()  # one that is stopped would go on using the GPU
    update([survivor], sender, tensors(2))
    sender.close()


def serve() -> None:
    """The receiver's program: join, receive, say what came; on failure say so, and wait to join again."""
    print("ready", flush=True)
    receiver: WeightReceiver | None = None
    manifest: Manifest = []
    for line in sys.stdin:
        command = json.loads(line)
        try:
            if "spec" in command:
                spec = GroupSpec.from_json(command["spec"])
                receiver = receiver or WeightReceiver(device(command["rank"]))
                manifest = manifest_from_json(command["manifest"])
                receiver.connect(spec, command["rank"])
                print("joined", flush=True)
            else:
                assert receiver is not None
                if "strike" in command:
                    receiver._group.broadcast = lambda flat: os.kill(os.getpid(), command["strike"])  # type: ignore
                arriving = receiver.receive(manifest)
                first = next(arriving)
                print("began", flush=True)
                if command.get("only_first"):
                    sys.stdin.readline()  # until it is killed
                print(json.dumps(checksum([first, *arriving])), flush=True)
        except WeightSyncError as error:
            print("failed", error, flush=True)


if __name__ == "__main__":
    serve()
