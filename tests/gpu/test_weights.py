"""The weight broadcast over NCCL: real processes, CUDA memory, and one that is killed or stands still in the middle.

With fewer GPUs than ranks they share one, which NCCL allows from 2.30 on with `NCCL_MULTI_RANK_GPU_ENABLE=1`. Outside
`make test`: `make test-gpu`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch

from learner.weights.group import GroupSpec, WeightSyncError, WeightSyncTimeout
from learner.weights.manifest import Manifest, checksum, manifest_from_json, manifest_of, manifest_to_json
from learner.weights.transfer import Delta, WeightReceiver, WeightSender

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch sees")

Named = list[tuple[str, torch.Tensor]]
TIMEOUT_S = 8.0


def device(rank: int) -> str:
    return f"cuda:{rank % torch.cuda.device_count()}"


def tensors(seed: int, count: int = 40) -> Named:
    """Some smaller than half a bucket, which are copied into one; some larger, which travel as they lie."""
    draw = torch.Generator(device=device(0)).manual_seed(seed)
    numel = [4096 if index % 4 else 4 << 20 for index in range(count)]
    return [(f"t{i}", torch.randn(n, generator=draw, device=device(0)).bfloat16()) for i, n in enumerate(numel)]


class Receiver:
    """A process that receives update after update, and prints the sum of checks of each, or why it failed."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.expect("ready")

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


@contextmanager
def receivers(count: int) -> Iterator[list[Receiver]]:
    with ExitStack() as stack:
        found = []
        for _ in range(count):
            found.append(Receiver())
            stack.callback(found[-1].process.kill)
        yield found


@pytest.mark.parametrize("delta", ["off", "auto"])
def test_every_receiver_gets_every_update_bit_for_bit_over_epochs(delta: Delta) -> None:
    sender = WeightSender(device(0), timeout_s=60, delta=delta)
    manifest = manifest_of(tensors(0))
    with receivers(2) as both:
        for epoch in range(2):
            spec = sender.open(3)
            assert spec.backend == "nccl"
            for rank, one in enumerate(both, 1):
                one.join(spec, rank, manifest)
            sender.connect()
            for one in both:
                one.expect("joined")
            named = tensors(10 * epoch)
            for update in range(2):
                for one in both:
                    one.say(go=True)
                for _, tensor in named[::3]:
                    tensor[update::1000] = -tensor[update::1000]
                sender.send(iter(named), manifest)
                for one in both:
                    one.expect("began")
                    assert json.loads(one.heard()) == checksum(named)
                sparse = delta == "auto" and update > 0
                assert sender.sent.sparse_bytes == (sender.sent.weights_bytes if sparse else 0)
    sender.close()


def test_a_receiver_that_does_not_come_is_named() -> None:
    sender = WeightSender(device(0), timeout_s=2.0)
    with receivers(1) as (present,):
        present.join(sender.open(3), 1, manifest_of(tensors(0)))
        with pytest.raises(WeightSyncTimeout, match=r"phase connect, rank 0: waited 2.0 s for ranks \[2\]"):
            sender.connect()
        assert "[2]" in present.heard()
    sender.close()


@pytest.mark.parametrize("stroke", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
@pytest.mark.parametrize("when", ["joined", "ready", "began"])
def test_only_the_process_that_dies_is_blamed_and_the_others_go_on(stroke: signal.Signals, when: str) -> None:
    """Struck between the group's building and the first update, as its first bucket is due (which is where NCCL
    connects), or in the middle of an update. Costs `timeout_s` at most."""
    manifest = manifest_of(tensors(0))
    sender = WeightSender(device(0), timeout_s=TIMEOUT_S, bucket_bytes=4 << 20)
    with receivers(2) as (victim, survivor):
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
        print(f"{when} {stroke.name}: {took_s:.1f} s: {caught.value}", file=sys.stderr)
        assert caught.value.missing == [1]
        assert took_s < TIMEOUT_S + 1.0
        answers = [survivor.heard()]
        if answers[-1] == "began":
            answers.append(survivor.heard())
        assert answers[-1].startswith("failed"), answers

        survivor.join(sender.open(2), 1, manifest)
        sender.connect()
        survivor.expect("joined")
        survivor.say(go=True)
        named_after = tensors(2)
        sender.send(named_after, manifest)
        survivor.expect("began")
        assert json.loads(survivor.heard()) == checksum(named_after)
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
                    sys.stdin.readline()  # for ever
                print(json.dumps(checksum([first, *arriving])), flush=True)
        except WeightSyncError as error:
            print("failed", error, flush=True)


if __name__ == "__main__":
    serve()
