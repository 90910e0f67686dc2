"""The process with the weight receivers of many engines: it receives as they would, and stands still in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch

from launch.rehearsal.receiver_process import ReceiverProcess, ReceiversEnded, SharedReceivers
from learner.weights.group import GroupSpec, WeightSyncTimeout
from learner.weights.manifest import checksum, manifest_of
from learner.weights.transfer import WeightSender

WEIGHTS = [("a", torch.arange(5.0)), ("b", torch.ones(3, dtype=torch.bfloat16))]


@asynccontextmanager
async def receiver_process() -> AsyncIterator[ReceiverProcess]:
    process = await ReceiverProcess.start()
    try:
        yield process
    finally:
        process.kill()
        await asyncio.wait_for(process.ended.wait(), 60)


async def stands_still(process: ReceiverProcess) -> None:
    """Wait until the kernel says so of every thread."""
    while True:
        states = [
            task.read_text().rpartition(")")[2].split()[0] for task in Path(f"/proc/{process.pid}/task").glob("*/stat")
        ]
        if process.is_stopped and set(states) == {"T"}:
            return
        await asyncio.sleep(0.01)


def test_engines_of_one_process_receive_each_version_and_take_no_cpu_in_between() -> None:
    async def main() -> None:
        sender = WeightSender()
        async with receiver_process() as process:
            engines = [SharedReceivers(process, f"rollout{index}", 1) for index in range(3)]
            spec = sender.open(1 + len(engines))
            joining = [asyncio.ensure_future(one.connect(spec, 1 + rank)) for rank, one in enumerate(engines)]
            await asyncio.to_thread(sender.connect)
            await asyncio.gather(*joining)
            for version in range(2):
                await asyncio.wait_for(stands_still(process), 60)
                weights = [(name, tensor + version) for name, tensor in WEIGHTS]
                receiving = [asyncio.ensure_future(one.receive(manifest_of(weights))) for one in engines]
                await asyncio.to_thread(sender.send, iter(weights), manifest_of(weights))
                await asyncio.gather(*receiving)
                assert [await one.checksums() for one in engines] == [checksum(weights)] * 3
            engines[0].close()
            await asyncio.wait_for(stands_still(process), 60)
        sender.close()

    asyncio.run(main())


def test_an_error_of_a_receiver_comes_as_it_was_raised() -> None:
    async def main() -> WeightSyncTimeout:
        async with receiver_process() as process:
            nobody = GroupSpec(7, "127.0.0.1", 1, 2, "gloo", timeout_s=0.1)
            with pytest.raises(WeightSyncTimeout) as caught:
                await SharedReceivers(process, "rollout0", 1).connect(nobody, 1)
            return caught.value

    error = asyncio.run(main())
    assert (error.group_id, error.phase, error.rank, error.missing) == (7, "connect", 1, [0])
    assert "waited 0.1 s for rank 0 at 127.0.0.1:1" in str(error)


def test_engines_notice_that_their_receivers_have_ended() -> None:
    async def main() -> None:
        async with receiver_process() as process:
            engine = SharedReceivers(process, "rollout0", 1)
            assert await engine.checksums() == {}
            await asyncio.wait_for(stands_still(process), 60)
            process.kill()
            await asyncio.wait_for(engine.died(), 60)
            with pytest.raises(ReceiversEnded):
                await engine.checksums()

    asyncio.run(main())
