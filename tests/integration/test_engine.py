"""vLLM behind the engine protocol, with a real model: versions in flight, exact weights, log-probabilities.

The tests of an engine share it, in order, and the last one closes it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from typing import Any

import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file, save_file

from actors.engine.async_engine import AsyncEngine
from actors.engine.generation import Completion, EngineAborted, EngineDead, Sampling, WeightUpdateFailed
from actors.engine.serial_engine import SerialEngine
from actors.settings import EngineSettings
from launch.models import prepare
from learner.trajectory import Status, VersionSpan
from learner.weights.group import WeightSyncError
from learner.weights.local import LocalChannel
from learner.weights.manifest import checksum, manifest_of
from learner.weights.transfer import WeightSender
from tests.integration.weight_updates import Weights, broadcast, connect

MODEL = prepare("smollm2-135m-instruct")
SETTINGS = EngineSettings(
    dtype="float32", max_model_len=512, max_num_seqs=8, max_num_batched_tokens=512, kv_cache_gib=0.5, threads=1
)

pytestmark = [
    pytest.mark.integration,
    pytest.mark.asyncio(loop_scope="module"),
]


def model_weights(dtype: torch.dtype) -> Weights:
    return {name: tensor.to(dtype) for name, tensor in load_file(MODEL / "model.safetensors").items()}


async def weights_of(engine: AsyncEngine | SerialEngine) -> Weights:
    """A copy of the weights that generation uses. A tied output head is listed as well."""
    with tempfile.TemporaryDirectory() as folder:
        await engine._rpc("azr_save_weights", folder)
        return {name: tensor.clone() for name, tensor in load_file(f"{folder}/0.safetensors").items()}


def perturbed(weights: Weights, seed: int) -> Weights:
    """Noise of a fifth of each tensor's scale: another policy, as fluent as it may be."""
    draw = torch.Generator().manual_seed(seed)
    return {
        name: (w + 0.2 * w.float().std() * torch.randn(w.shape, generator=draw)).to(w.dtype)
        for name, w in weights.items()
    }


@cache
def reference_model() -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(MODEL), dtype=torch.float32)


def reference_logprobs(
    weights: Weights, prompt: list[int], completion: Completion, temperature: float = 1.0
) -> torch.Tensor:
    """[R]: what transformers makes of the same tokens, in float32."""
    model = reference_model()
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    tokens = torch.tensor([*prompt, *completion.token_ids])
    with torch.no_grad():
        logits = model(tokens[None]).logits[0, len(prompt) - 1 : -1]
    logprobs: torch.Tensor = (logits / temperature).log_softmax(-1).gather(1, tokens[len(prompt) :, None])[:, 0]
    return logprobs


async def assert_answered_by(weights: Weights, version: int, prompt: list[int], completion: Completion) -> None:
    """Every token is of this version, and has its log-probability."""
    assert [span.version for span in completion.versions] == [version]
    expected = reference_logprobs(weights, prompt, completion)
    torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-3, rtol=0)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AsyncEngine]:
    """Its folder has another file of weights, which is not to be read."""
    folder = tmp_path_factory.mktemp("model")
    for file in MODEL.iterdir():
        (folder / file.name).symlink_to(file)
    save_file({n: torch.zeros_like(w) for n, w in model_weights(torch.bfloat16).items()}, folder / "zzz.safetensors")
    engine = AsyncEngine(folder, SETTINGS, seed=1)
    await engine.start()
    yield engine
    await engine.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sender(engine: AsyncEngine) -> AsyncIterator[WeightSender]:
    sender = WeightSender(timeout_s=60)
    await connect(engine, sender)
    yield sender
    sender.close()


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.5])
async def test_logprobs_are_those_of_the_distribution_that_is_sampled(engine: AsyncEngine, temperature: float) -> None:
    """Beside a greedy request, as the measurement on held-out tasks makes them."""
    prompt = engine.tokenizer.encode("def f(x):\n    return x * 2\n\nf(21) is")
    sampling = Sampling(max_tokens=40, temperature=temperature)
    completion, _ = await asyncio.gather(
        engine.generate(prompt, sampling, f"logprobs-{temperature}"),
        engine.generate(prompt, Sampling(max_tokens=40, temperature=0.0), f"greedy-{temperature}"),
    )
    assert len(completion.logprobs) == len(completion.token_ids)
    assert completion.versions == (VersionSpan(0, 0, len(completion.token_ids)),)
    expected = reference_logprobs(model_weights(torch.float32), prompt, completion, temperature)
    torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=0)


async def test_a_stop_string_ends_the_text_but_its_tokens_stay(engine: AsyncEngine) -> None:
    prompt = engine.tokenizer.encode("1, 2, 3, 4,")
    sampling = Sampling(max_tokens=60, temperature=0.0, stop=(" 7",))
    completion = await engine.generate(prompt, sampling, "stop")
    assert completion.finish is Status.STOPPED
    assert completion.text == " 5, 6,"
    assert engine.tokenizer.decode(completion.token_ids) == " 5, 6, 7"


async def test_a_limit_truncates(engine: AsyncEngine) -> None:
    prompt = engine.tokenizer.encode("1, 2, 3, 4,")
    completion = await engine.generate(prompt, Sampling(max_tokens=5, temperature=0.0), "limit")
    assert completion.finish is Status.TRUNCATED
    assert len(completion.token_ids) == 5


async def test_one_seed_one_response_however_long_the_prompts(engine: AsyncEngine) -> None:
    prompts = [engine.tokenizer.encode("x = 1\n" * 60) for _ in range(6)]
    assert sum(map(len, prompts)) > SETTINGS.max_num_batched_tokens
    sampling = Sampling(max_tokens=12, seed=5)
    both = [
        await asyncio.gather(*(engine.generate(p, sampling, f"{r}-{i}") for i, p in enumerate(prompts))) for r in "ab"
    ]
    assert [c.token_ids for c in both[0]] == [c.token_ids for c in both[1]]


async def test_a_prompt_that_does_not_fit_is_refused(engine: AsyncEngine) -> None:
    with pytest.raises(ValueError, match="512"):
        await engine.generate([1] * 512, Sampling(max_tokens=1), "long")


async def test_every_token_is_in_one_place_while_requests_come_end_and_are_cancelled(engine: AsyncEngine) -> None:
    prompt = engine.tokenizer.encode("1, 2, 3, 4,")
    names = [f"0-s{9000 + i}" if i % 2 else f"ledger-{i}" for i in range(12)]  # every other one fills a slot
    before = engine.stats()
    running = [
        asyncio.create_task(engine.generate(prompt, Sampling(max_tokens=20 + 5 * i, seed=i), name))
        for i, name in enumerate(names)
    ]

    def closes() -> float:
        """The tokens that have come since; they are all held, without a slot, or dropped."""
        now = engine.stats()
        grown = {name: number - before.get(name, 0.0) for name, number in now.items()}
        places = ("tokens_held", "tokens_without_slot", "tokens_dropped/aborted", "tokens_sent")
        assert grown["tokens_generated"] == sum(grown.get(name, 0.0) for name in places), grown
        return grown["tokens_generated"]

    for task in running[::3]:
        reached = closes() + 30
        while closes() < reached and not all(task.done() for task in running):
            await asyncio.sleep(0)
        task.cancel()
    finished = await asyncio.gather(*running, return_exceptions=True)
    assert closes() > 0
    now = engine.stats()
    lengths = {
        name: len(one.token_ids) for name, one in zip(names, finished, strict=True) if isinstance(one, Completion)
    }
    assert now["tokens_held"] - before["tokens_held"] == sum(n for name, n in lengths.items() if name.startswith("0-s"))
    assert now["tokens_dropped/aborted"] > before.get("tokens_dropped/aborted", 0.0)
    seconds = {part: now[f"actor_time/{part}_actor_s"] for part in ("prefill", "decode", "between")}
    assert seconds["decode"] > 0 and seconds["prefill"] > 0 and seconds["between"] >= 0


async def test_loaded_weights_are_those_of_the_file(engine: AsyncEngine) -> None:
    held = await weights_of(engine)
    head = held.pop("lm_head.weight")
    weights = model_weights(torch.float32)
    assert held.keys() == weights.keys()
    assert all(torch.equal(held[name], weights[name]) for name in weights)
    assert torch.equal(head, weights["model.embed_tokens.weight"])


async def test_weights_change_under_running_requests(engine: AsyncEngine, sender: WeightSender) -> None:
    prompt = engine.tokenizer.encode("Once upon a time, there was a fox. " * 12)
    assert len(prompt) > 96, "several blocks of the prefix cache"
    old = await engine.generate(prompt, Sampling(max_tokens=16, temperature=0.0), "before")
    before = engine.stats()["tokens_generated"]
    running = [
        asyncio.create_task(engine.generate(prompt, Sampling(max_tokens=300, seed=i), f"fly-{i}")) for i in range(6)
    ]
    await until(lambda: engine.stats()["tokens_generated"] >= before + 20)
    assert engine.stats()["running"] > 0

    weights = perturbed(model_weights(torch.float32), seed=1)
    timings = await broadcast(engine, sender, weights, version=1)
    assert set(timings) == {"pause_s", "start_s", "transfer_s", "load_s", "finish_s", "resume_s"}
    assert all(seconds >= 0 for seconds in timings.values())

    completions = await asyncio.gather(*running)
    spanning = [completion for completion in completions if [s.version for s in completion.versions] == [0, 1]]
    assert spanning, "all had ended before the weights came"
    for completion in completions:
        assert len(completion.logprobs) == len(completion.token_ids)
        ends = [span.end for span in completion.versions]
        assert [span.start for span in completion.versions] == [0, *ends[:-1]] and ends[-1] == len(completion.token_ids)

    held = await weights_of(engine)
    assert torch.equal(held.pop("lm_head.weight"), weights["model.embed_tokens.weight"])
    assert held.keys() == weights.keys()
    assert all(torch.equal(held[name], weights[name]) for name in weights)
    digests = await engine.checksums()
    assert {name: digests[name] for name in weights} == checksum(weights.items())

    # The same prompt again: nothing that the old policy left in the prefix cache may be in it.
    new = await engine.generate(prompt, Sampling(max_tokens=16, temperature=0.0), "after")
    assert [span.version for span in new.versions] == [1]
    assert new.token_ids != old.token_ids
    expected = reference_logprobs(weights, prompt, new)
    torch.testing.assert_close(torch.tensor(new.logprobs), expected, atol=1e-4, rtol=0)


STORY = "Once upon a time, there was a fox who lived in a hole under the old oak. " * 8


async def test_a_request_submitted_during_an_update_is_answered_by_the_new_policy(
    engine: AsyncEngine, sender: WeightSender
) -> None:
    """Its prompt is in the prefix cache, from the old policy."""
    prompt = engine.tokenizer.encode(STORY)
    await engine.generate(prompt, Sampling(max_tokens=2), "fills the cache")
    weights = perturbed(model_weights(torch.float32), seed=4)
    manifest = manifest_of(weights.items())
    before = engine.stats()["waited_over_update"]
    updating = asyncio.create_task(engine.update_weights(manifest, 2))
    await until(lambda: _is_ready(sender))
    submitted = asyncio.create_task(engine.generate(prompt, Sampling(max_tokens=24), "during"))
    await asyncio.to_thread(sender.send, weights.items(), manifest)
    await updating
    await assert_answered_by(weights, 2, prompt, await submitted)
    assert engine.stats()["waited_over_update"] == before + 1


async def test_a_request_that_waits_over_an_update_is_answered_by_the_new_policy(
    engine: AsyncEngine, sender: WeightSender
) -> None:
    """Every place is taken when it comes, and until after the update."""
    prompt = engine.tokenizer.encode(STORY)
    await engine.generate(prompt, Sampling(max_tokens=2), "fills the cache again")
    places = range(SETTINGS.max_num_seqs)
    long = [asyncio.create_task(engine.generate([5, 6, 7], Sampling(max_tokens=500), f"long-{i}")) for i in places]
    await until(lambda: engine.stats()["running"] == len(places))
    before = engine.stats()["waited_over_update"]
    waiting = asyncio.create_task(engine.generate(prompt, Sampling(max_tokens=24), "waits"))
    await until(lambda: engine.stats()["waiting"] == 1)
    weights = perturbed(model_weights(torch.float32), seed=5)
    await broadcast(engine, sender, weights, version=3)
    for task in long:
        task.cancel()
    await assert_answered_by(weights, 3, prompt, await waiting)
    assert engine.stats()["waited_over_update"] == before + 1


async def test_nobody_finds_what_a_running_request_computes_after_an_update(
    engine: AsyncEngine, sender: WeightSender
) -> None:
    """Its keys and values depend on those of the old policy, so a prompt that begins with its tokens starts anew."""
    prompt = engine.tokenizer.encode(STORY)
    before = engine.stats()["tokens_generated"]
    running = asyncio.create_task(engine.generate(prompt, Sampling(max_tokens=120), "runs over"))
    await until(lambda: engine.stats()["tokens_generated"] >= before + 2)
    weights = perturbed(model_weights(torch.float32), seed=6)
    await broadcast(engine, sender, weights, version=4)
    mixed = await running
    assert [span.version for span in mixed.versions] == [3, 4]
    assert mixed.versions[1].start < 56, "two blocks and more are filled after the update"
    longer = [*prompt, *mixed.token_ids]
    await assert_answered_by(weights, 4, longer, await engine.generate(longer, Sampling(max_tokens=8), "longer"))
    # What the new policy has computed alone is found again.
    cached = engine.stats()["tokens_cached"]
    await assert_answered_by(weights, 4, longer, await engine.generate(longer, Sampling(max_tokens=8), "again"))
    assert engine.stats()["tokens_cached"] > cached + len(prompt)


async def test_an_update_goes_on_when_its_caller_is_cancelled(engine: AsyncEngine, sender: WeightSender) -> None:
    prompt = engine.tokenizer.encode("Once upon a time")
    # Several, of which one at least has not come to its end by itself when the engine pauses.
    running = [asyncio.create_task(engine.generate(prompt, Sampling(max_tokens=100), f"paused {i}")) for i in range(8)]
    await until(lambda: engine.stats()["running"] > 0)
    weights = perturbed(model_weights(torch.float32), seed=7)
    manifest = manifest_of(weights.items())
    updating = asyncio.create_task(engine.update_weights(manifest, 5))
    await until(lambda: _is_ready(sender))
    updating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await updating
    submitted = asyncio.create_task(engine.generate(prompt, Sampling(max_tokens=8), "meanwhile"))
    await asyncio.to_thread(sender.send, weights.items(), manifest)
    await assert_answered_by(weights, 5, prompt, await submitted)
    assert 5 in {(await one).versions[-1].version for one in running}
    assert (await engine.versioned_checksums())[0] == 5


async def test_a_broadcast_that_breaks_after_its_caller_is_cancelled_leaves_the_old_weights(
    engine: AsyncEngine, sender: WeightSender
) -> None:
    weights = model_weights(torch.float32)
    updating = asyncio.create_task(engine.update_weights(manifest_of(weights.items()), 6))
    await until(lambda: _is_ready(sender))
    updating.cancel()
    running = asyncio.create_task(engine.generate([1, 2, 3], Sampling(max_tokens=20), "left alone"))
    sender.close()
    assert [span.version for span in (await running).versions] == [5]
    # The learner opens another group with those who are left, and sends again.
    await connect(engine, sender)
    again = perturbed(model_weights(torch.float32), seed=8)
    await broadcast(engine, sender, again, version=6)
    assert {span.version for span in (await engine.generate([1, 2, 3], Sampling(max_tokens=2), "on")).versions} == {6}


async def test_weights_that_never_come_leave_the_old_ones(engine: AsyncEngine, sender: WeightSender) -> None:
    prompt = engine.tokenizer.encode("Once upon a time")
    before = await engine.checksums()
    version = (await engine.generate(prompt, Sampling(max_tokens=1), "which")).versions[0].version
    weights = model_weights(torch.float32)
    # The learner closes the group while the engine waits for the first tensor.
    updating = asyncio.create_task(engine.update_weights(manifest_of(weights.items()), 7))
    await until(lambda: _is_ready(sender))
    sender.close()
    with pytest.raises(WeightUpdateFailed) as caught:
        await updating
    assert caught.value.intact
    assert caught.value.interrupted
    assert await engine.checksums() == before
    completion = await engine.generate(prompt, Sampling(max_tokens=4), "still")
    assert [span.version for span in completion.versions] == [version]


async def test_half_an_update_pauses_until_a_whole_one_comes(engine: AsyncEngine) -> None:
    prompt = engine.tokenizer.encode("Once upon a time")
    sender = WeightSender(timeout_s=60, bucket_bytes=8 << 20)
    await connect(engine, sender)
    weights = perturbed(model_weights(torch.float32), seed=2)
    manifest = manifest_of(weights.items())

    def breaks() -> Iterator[tuple[str, torch.Tensor]]:
        for index, item in enumerate(weights.items()):
            if index == 100:
                raise RuntimeError("the learner failed")
            yield item

    running = asyncio.create_task(engine.generate(prompt, Sampling(max_tokens=200), "through"))
    sending = asyncio.create_task(asyncio.to_thread(sender.send, breaks(), manifest))
    with pytest.raises(WeightUpdateFailed) as caught:
        await engine.update_weights(manifest, 2)
    assert not caught.value.intact
    assert caught.value.interrupted
    with pytest.raises(RuntimeError, match="the learner failed"):
        await sending
    done, _ = await asyncio.wait([running], timeout=0.5)
    assert not done, "nobody may sample from half an update"

    await connect(engine, sender)
    with pytest.raises(
        WeightUpdateFailed, match=r"leaves 1 parameters as they were: \['model.norm.weight'\]"
    ) as caught:
        await broadcast(engine, sender, {n: w for n, w in weights.items() if n != "model.norm.weight"}, version=2)
    assert not caught.value.interrupted, "what arrived could not be loaded"
    assert not running.done()

    await connect(engine, sender)
    await broadcast(engine, sender, weights, version=2)
    completion = await running
    assert len(completion.versions) <= 2 and completion.versions[-1].version == 2
    held = await weights_of(engine)
    assert all(torch.equal(held[name], weights[name]) for name in weights)
    sender.close()


async def test_an_engine_that_gets_only_what_has_changed_has_the_new_weights(engine: AsyncEngine) -> None:
    sender = WeightSender(timeout_s=60, delta="auto")
    weights = perturbed(model_weights(torch.float32), seed=3)
    sparse = []
    for version in (3, 4, 5):
        if version != 4:
            await connect(engine, sender)  # what the engine keeps outlives the group
        for weight in weights.values():
            weight.view(-1)[version::500] *= -1
        await broadcast(engine, sender, weights, version=version)
        held = await weights_of(engine)
        assert all(torch.equal(held[name], weights[name]) for name in weights)
        sparse.append(sender.sent.sparse_bytes / sender.sent.weights_bytes)
    assert sparse == [0.0, 1.0, 1.0]
    sender.close()


async def test_a_group_that_does_not_come_together_is_an_error(engine: AsyncEngine) -> None:
    sender = WeightSender(timeout_s=0.5)
    spec = sender.open(3)
    joining = asyncio.create_task(engine.join(spec, 1))
    with pytest.raises(WeightSyncError) as caught:
        await asyncio.to_thread(sender.connect)
    assert caught.value.missing == [2]
    with pytest.raises(WeightUpdateFailed, match=r"for ranks \[2\]") as failed:
        await joining
    assert failed.value.intact and failed.value.interrupted
    with pytest.raises(WeightUpdateFailed, match="joined no group") as failed:
        await engine.update_weights([], 9)
    assert failed.value.intact and failed.value.interrupted
    sender.close()


async def test_closing_aborts_what_runs(engine: AsyncEngine) -> None:
    running = asyncio.create_task(engine.generate([1, 2, 3], Sampling(max_tokens=400), "cut"))
    await until(lambda: engine.stats()["running"] > 0)
    await engine.close()
    with pytest.raises(EngineAborted):
        await running


class ChunkingEngine(AsyncEngine):
    """Prompts come in chunks, as on a GPU."""

    def _engine_args(self) -> dict[str, Any]:
        return super()._engine_args() | {"enable_chunked_prefill": True, "max_num_batched_tokens": 32}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chunking() -> AsyncIterator[ChunkingEngine]:
    engine = ChunkingEngine(MODEL, SETTINGS, seed=1)
    await engine.start()
    yield engine
    await engine.close()


async def test_a_prompt_that_is_half_computed_starts_again_under_the_new_policy(chunking: ChunkingEngine) -> None:
    sender = WeightSender(timeout_s=60)
    await connect(chunking, sender)
    prompt = chunking.tokenizer.encode(STORY * 3)[:480]
    weights = perturbed(model_weights(torch.float32), seed=9)
    running = asyncio.create_task(chunking.generate(prompt, Sampling(max_tokens=8), "in chunks"))
    await until(lambda: chunking.stats()["running"] == 1)
    await broadcast(chunking, sender, weights, version=1)
    await assert_answered_by(weights, 1, prompt, await running)
    sender.close()


async def test_an_engine_that_is_killed_fails_whatever_waits_for_it(chunking: ChunkingEngine) -> None:
    """A request, an update of weights that is under way, and who asks whether it lives."""
    sender = WeightSender(timeout_s=60)
    await connect(chunking, sender)
    running = asyncio.create_task(chunking.generate([1, 2, 3], Sampling(max_tokens=400), "cut off"))
    died = asyncio.create_task(chunking.died())
    await until(lambda: chunking.stats()["running"] == 1)
    updating = asyncio.create_task(chunking.update_weights(manifest_of(model_weights(torch.float32).items()), 2))
    await until(lambda: _is_ready(sender))
    (process,) = chunking._llm.engine_core.resources.engine_manager.processes
    os.kill(process.pid, signal.SIGKILL)
    for waiting in (running, updating, died):
        with pytest.raises(EngineDead):
            await asyncio.wait_for(waiting, 60)
    with pytest.raises(EngineDead):
        await chunking.generate([1, 2, 3], Sampling(max_tokens=4), "too late")
    sender.close()


def _is_ready(sender: WeightSender) -> bool:
    group = sender._group
    assert group is not None
    return group._has(f"ready/{group._update + 1}/1")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def serial() -> AsyncIterator[SerialEngine]:
    engine = SerialEngine(MODEL, SETTINGS.model_copy(update={"dtype": "bfloat16"}), seed=1)
    await engine.start()
    yield engine
    await engine.close()


async def test_a_random_state_repeats_a_run_whatever_else_draws(serial: SerialEngine) -> None:
    prompts = [serial.tokenizer.encode(text) for text in ("Once upon a time", "def f(x):", "The sun")]
    state = serial.random_state

    async def run(tag: str) -> list[Completion]:
        sampling = Sampling(max_tokens=24)
        return await asyncio.gather(*(serial.generate(p, sampling, f"{tag}{i}") for i, p in enumerate(prompts)))

    first = await run("a")
    outside = torch.rand(3)
    serial.random_state = state
    second = await run("b")
    assert [(c.token_ids, c.logprobs) for c in first] == [(c.token_ids, c.logprobs) for c in second]
    third = await run("c")
    assert [c.token_ids for c in third] != [c.token_ids for c in first]
    torch.set_rng_state(torch.Generator().manual_seed(3).get_state())
    await run("d")
    assert torch.equal(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(3)))
    assert outside.numel() == 3


async def test_updates_through_a_local_channel_in_bfloat16(serial: SerialEngine) -> None:
    weights = perturbed(model_weights(torch.bfloat16), seed=3)
    channel = LocalChannel("serial-test")
    await serial.join(channel.open(2), 1)
    manifest = manifest_of(weights.items())
    prompt = serial.tokenizer.encode("Once upon a time")
    running = asyncio.create_task(serial.generate(prompt, Sampling(max_tokens=60), "across"))
    await until(lambda: serial.stats()["running"] > 0)
    channel.send(weights.items(), manifest)
    await serial.update_weights(manifest, 1)
    completion = await running
    assert [span.version for span in completion.versions] == [0, 1]
    held = await weights_of(serial)
    assert torch.equal(held.pop("lm_head.weight"), weights["model.embed_tokens.weight"])
    assert held.keys() == weights.keys()
    assert all(torch.equal(held[name], weights[name]) for name in weights)
    channel.close()


async def test_the_learner_keeps_its_threads(serial: SerialEngine) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)


async def test_cancelling_and_closing_leave_nobody_waiting(serial: SerialEngine) -> None:
    cancelled = asyncio.create_task(serial.generate([1, 2, 3], Sampling(max_tokens=400), "x"))
    running = asyncio.create_task(serial.generate([1, 2, 3], Sampling(max_tokens=400), "y"))
    await until(lambda: serial.stats()["running"] == 2)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    await serial.close()
    with pytest.raises(EngineAborted):
        await running
