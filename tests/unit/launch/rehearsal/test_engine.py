"""The engine of a rehearsal: its speeds hold, and each token has the version that was loaded when it was due."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.engine.generation import Completion, EngineAborted, Sampling
from launch.rehearsal.engine import RehearsedEngine
from launch.rehearsal.receivers import OwnReceivers
from launch.settings import RehearsalSettings
from learner.lineage import label_of
from learner.weights.manifest import checksum, manifest_of
from learner.weights.transfer import WeightSender
from tests.examples import examples

FAST = RehearsalSettings(time_scale=2000, tokens_per_s=100, request_tokens_per_s=50, prefill_tokens_per_s=1000)


async def sample(engine: RehearsedEngine, number: int, num_tokens: int, prompt: int = 10) -> Completion:
    return await engine.generate([number, *([0] * (prompt - 1))], Sampling(max_tokens=num_tokens), f"r{number}")


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 60)), min_size=1, max_size=12),
    st.integers(1, 5),
    st.lists(st.integers(0, 11), max_size=3),
)
@examples(10)
def test_every_request_gets_its_tokens_and_none_comes_faster_than_the_engine(
    requests: list[tuple[int, int]], max_num_seqs: int, cancelled: list[int]
) -> None:
    """Whatever else is asked for, waits, or is cancelled."""

    async def main() -> tuple[list[Any], dict[str, float], float]:
        engine = RehearsedEngine(FAST, max_num_seqs, 1, OwnReceivers(1))
        began = time.monotonic()
        running = [
            asyncio.ensure_future(sample(engine, number, tokens, prompt))
            for number, (prompt, tokens) in enumerate(requests)
        ]
        await asyncio.sleep(0)
        for number in cancelled:
            if number < len(running):
                running[number].cancel()
        found = await asyncio.gather(*running, return_exceptions=True)
        spent, stats = time.monotonic() - began, engine.stats()
        await engine.close()
        return found, stats, spent

    found, stats, spent = asyncio.run(main())
    assert (stats["running"], stats["waiting"]) == (0, 0)
    finished = 0
    for number, (one, (_, tokens)) in enumerate(zip(found, requests, strict=True)):
        if number in cancelled:
            assert isinstance(one, asyncio.CancelledError)
            continue
        assert len(one.token_ids) == len(one.logprobs) == tokens
        assert [(span.start, span.end) for span in one.versions] == [(0, tokens)]
        assert one.generate_s >= 0.99 * tokens / (FAST.request_tokens_per_s * FAST.time_scale)
        finished += tokens
    assert spent >= 0.99 * finished / (FAST.tokens_per_s * FAST.time_scale)
    assert stats["tokens_generated"] >= 0.99 * finished


class Watched(RehearsedEngine):
    """Counts how often the engine looks what to do."""

    looks = 0

    def _go_on(self) -> None:
        self.looks += 1
        super()._go_on()


@given(st.lists(st.tuples(st.integers(1, 400), st.integers(1, 4000)), min_size=1, max_size=30), st.integers(1, 5))
@examples(5)
def test_the_engine_wakes_a_few_times_a_request_however_many_tokens_it_has(
    requests: list[tuple[int, int]], max_num_seqs: int
) -> None:
    """A thousand of them share two cores. At its arrival, once its prompt is computed, and when it is complete; a timer
    may be early by less than a token's time, and is set again."""

    async def main() -> int:
        settings = FAST.model_copy(update={"tokens_per_s": 5000, "request_tokens_per_s": 5000})
        engine = Watched(settings, max_num_seqs, 1, OwnReceivers(1))
        await asyncio.gather(*(sample(engine, number, *sizes[::-1]) for number, sizes in enumerate(requests)))
        await engine.close()
        return engine.looks

    assert asyncio.run(main()) <= 6 * len(requests) + 6


def test_tokens_have_the_version_that_was_loaded_when_they_were_due() -> None:
    settings = RehearsalSettings(time_scale=1, tokens_per_s=1000, request_tokens_per_s=1000, load_s=0.0)
    sender = WeightSender()
    weights = [("w", torch.arange(5.0))]

    async def main() -> tuple[Completion, tuple[int, dict[str, str]], dict[str, float]]:
        engine = RehearsedEngine(settings, 4, 1, OwnReceivers(1))
        await engine.set_version(label_of(3, 0))
        joining = asyncio.ensure_future(engine.join(sender.open(2), 1))
        await asyncio.to_thread(sender.connect)
        await joining
        running = asyncio.ensure_future(sample(engine, 1, 400))
        while engine.stats()["tokens_generated"] < 100:
            await asyncio.sleep(0.005)
        updating = asyncio.ensure_future(engine.update_weights(manifest_of(weights), label_of(4, 0)))
        await asyncio.to_thread(sender.send, iter(weights), manifest_of(weights))
        await updating
        completion = await running
        found = completion, await engine.versioned_checksums(), engine.stats()
        await engine.close()
        return found

    try:
        completion, (label, digests), stats = asyncio.run(main())
    finally:
        sender.close()
    old, new = completion.versions
    assert (old.version, new.version, old.start, new.end) == (3, 4, 0, 400)
    assert 100 <= old.end == new.start < 400
    assert (label, digests) == (label_of(4, 0), checksum(weights))
    assert stats["waited_over_update"] == 0


def test_a_prompt_is_computed_once_until_new_weights_come() -> None:
    async def main() -> dict[str, float]:
        engine = RehearsedEngine(FAST, 4, 1, OwnReceivers(1))
        await asyncio.gather(*(sample(engine, 7, 5, prompt=50) for _ in range(3)))
        stats = engine.stats()
        await engine.close()
        return stats

    stats = asyncio.run(main())
    assert (stats["tokens_prompt"], stats["tokens_cached"]) == (150, 100)


def test_a_closed_engine_answers_nobody() -> None:
    async def main() -> None:
        engine = RehearsedEngine(RehearsalSettings(), 1, 1, OwnReceivers(1))
        running = [asyncio.ensure_future(sample(engine, number, 1000)) for number in range(3)]
        await asyncio.sleep(0.05)
        await engine.close()
        for one in running:
            with pytest.raises(EngineAborted):
                await one

    asyncio.run(main())
