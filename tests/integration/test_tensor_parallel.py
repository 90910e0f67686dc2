"""A real engine of two workers with a tiny model: the learner's weights in both, versions, and the death of one worker.

The tests but the last share the engine, in order; the last of them ends it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file

from actors.engine.async_engine import AsyncEngine
from actors.engine.generation import Completion, EngineDead, Sampling, WeightUpdateFailed
from actors.settings import EngineSettings
from actors.worker_memory import MARK
from launch.cluster.verify import differences
from learner.batching.packing import pack
from learner.model.policy import PolicyModel
from learner.model.process_groups import init_parallel
from learner.settings import ModelSettings, OptimizerSettings, ParallelSettings
from learner.weights.manifest import checksum, manifest_of
from learner.weights.transfer import WeightSender
from tests.integration.random_model import write_random_model
from tests.integration.weight_updates import Weights, broadcast, connect

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

VOCAB = 49159
"""A multiple of nothing: the last worker's rows of the embedding are padded."""
PROMPT = list(range(100, 160))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 of two layers: biases on queries, keys and values, two key/value heads, a tied output head."""
    import transformers as tf

    config = tf.Qwen2Config(
        hidden_size=128,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCAB,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=0,
    )
    return write_random_model(tmp_path_factory.mktemp("model"), config)


@pytest.fixture(scope="module")
def policy(model: Path) -> PolicyModel:
    init_parallel(ParallelSettings(), rank=0, world_size=1)
    return PolicyModel(model, ModelSettings(dtype="float32"), OptimizerSettings(), ParallelSettings())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model: Path) -> AsyncIterator[AsyncEngine]:
    settings = EngineSettings(
        dtype="float32", max_model_len=512, max_num_seqs=8, kv_cache_gib=0.125, threads=1, tensor_parallel=2
    )
    engine = AsyncEngine(model, settings, seed=1)
    await engine.start()
    yield engine
    await engine.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sender(engine: AsyncEngine) -> AsyncIterator[WeightSender]:
    sender = WeightSender(timeout_s=60, bucket_bytes=1 << 20)
    await connect(engine, sender)
    yield sender
    sender.close()


async def until(condition: Callable[[], bool], engine: AsyncEngine) -> None:
    """Wait for a condition. Raises EngineDead where the engine dies meanwhile."""
    died = asyncio.create_task(engine.died())
    while not condition():
        await asyncio.wait({died}, timeout=0.01)
        if died.done():
            await died
    died.cancel()


def trained(policy: PolicyModel, lr: float) -> Weights:
    """What the learner exports after one more step of its optimizer."""
    tokens = np.arange(200, 240)
    (micro,) = pack([(tokens[:20], tokens[20:])], 4096)
    policy.zero_grad()
    policy.forward_backward([micro], lambda _, part, logprobs, entropy: -logprobs.mean())
    assert policy.step(lr)[1]
    return {name: tensor.clone() for name, tensor in policy.export()}


def shard(name: str, whole: torch.Tensor, rank: int) -> torch.Tensor:
    """What worker `rank` of two has to have of a tensor, by the rules of Megatron's tensor parallelism."""
    if name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = -(-VOCAB // 64) * 64 // 2
        return whole[rank * rows : (rank + 1) * rows]
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        return whole.chunk(2, dim=1)[rank]
    return whole if "norm" in name else whole.chunk(2)[rank]


def reference_logprobs(model: Path, weights: Weights, completion: Completion) -> torch.Tensor:
    """[R]: what transformers makes of the same tokens."""
    from transformers import AutoConfig, AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model), dtype=torch.float32)
    reference.load_state_dict(weights, strict=False)
    reference.tie_weights()
    tokens = torch.tensor([*PROMPT, *completion.token_ids])
    with torch.no_grad():
        logits = reference(tokens[None]).logits[0, len(PROMPT) - 1 : -1]
    logprobs: torch.Tensor = logits.log_softmax(-1).gather(1, tokens[len(PROMPT) :, None])[:, 0]
    return logprobs


async def assert_holds(engine: AsyncEngine, weights: Weights, folder: Path) -> None:
    """Each worker has its shards of `weights`, and `azr verify` finds no difference."""
    folder.mkdir()
    await engine._rpc("azr_save_weights", str(folder))
    for rank in range(2):
        held = load_file(folder / f"{rank}.safetensors")
        assert held.keys() == weights.keys() | {"lm_head.weight"}
        expected = weights | {"lm_head.weight": weights["model.embed_tokens.weight"]}
        assert [name for name in held if not torch.equal(held[name], shard(name, expected[name], rank))] == []
    assert differences(checksum(weights.items()), await engine.checksums()) == []


async def test_the_learners_weights_reach_both_workers_under_running_requests(
    engine: AsyncEngine, sender: WeightSender, policy: PolicyModel, model: Path, tmp_path: Path
) -> None:
    await assert_holds(engine, dict(policy.export()), tmp_path / "before")
    weights = trained(policy, lr=1e-2)
    before = engine.stats()["tokens_generated"]
    lengths = (40, 80, 160, 400)  # of which the shortest that is not over yet when the weights come spans them
    running = [
        asyncio.create_task(engine.generate(PROMPT, Sampling(max_tokens=length, seed=length), f"of {length}"))
        for length in lengths
    ]
    await until(lambda: engine.stats()["tokens_generated"] >= before + 8, engine)
    await broadcast(engine, sender, weights, version=1)
    versions: list[int] = []
    for finished in asyncio.as_completed(running):
        completion = await finished
        versions = [span.version for span in completion.versions]
        ends = [span.end for span in completion.versions]
        assert [span.start for span in completion.versions] == [0, *ends[:-1]] and ends[-1] == len(completion.token_ids)
        if versions == [0, 1]:
            break
    assert versions == [0, 1], "all had ended before the weights came"
    for task in running:
        task.cancel()

    await assert_holds(engine, weights, tmp_path / "after")
    new = await engine.generate(PROMPT, Sampling(max_tokens=12), "new")
    assert [span.version for span in new.versions] == [1]
    expected = reference_logprobs(model, weights, new)
    torch.testing.assert_close(torch.tensor(new.logprobs), expected, atol=1e-4, rtol=0)


async def test_an_update_that_breaks_in_every_worker_leaves_the_next_one_whole(
    engine: AsyncEngine, sender: WeightSender, policy: PolicyModel, tmp_path: Path
) -> None:
    """Both workers answer each call that failed, so no answer is left for the next call."""
    weights = trained(policy, lr=1e-2)
    manifest = manifest_of(weights.items())

    def breaks() -> Iterator[tuple[str, torch.Tensor]]:
        for index, item in enumerate(weights.items()):
            if index == 12:
                raise RuntimeError("the learner failed")
            yield item

    sending = asyncio.create_task(asyncio.to_thread(sender.send, breaks(), manifest))
    with pytest.raises(WeightUpdateFailed) as caught:
        await engine.update_weights(manifest, 2)
    assert not caught.value.intact and caught.value.interrupted
    with pytest.raises(RuntimeError, match="the learner failed"):
        await sending
    with pytest.raises(WeightUpdateFailed, match="no group"):
        await engine.update_weights(manifest, 2)
    await connect(engine, sender)
    await broadcast(engine, sender, weights, version=2)
    await assert_holds(engine, weights, tmp_path / "whole")
    assert [span.version for span in (await engine.generate(PROMPT, Sampling(max_tokens=4), "on")).versions] == [2]


async def test_a_killed_worker_is_a_lost_engine(engine: AsyncEngine, sender: WeightSender, policy: PolicyModel) -> None:
    """Whoever waits for the engine hears of it, and nothing of it is left: no process, no shared memory."""
    (core,) = engine._llm.engine_core.resources.engine_manager.processes
    processes = [psutil.Process(core.pid), *psutil.Process(core.pid).children()]
    workers = [process for process in processes if "Worker" in "".join(process.cmdline())]
    assert len(workers) == 2
    maps = Path(f"/proc/{workers[0].pid}/maps").read_text()
    assert MARK in maps, "the workers share memory"
    assert not [path for path in Path("/dev/shm").iterdir() if MARK in path.name and str(path) in maps]
    running = asyncio.create_task(engine.generate(PROMPT, Sampling(max_tokens=400), "cut off"))
    died = asyncio.create_task(engine.died())
    await until(lambda: engine.stats()["running"] == 1, engine)
    updating = asyncio.create_task(engine.update_weights(manifest_of(policy.export()), 3))
    group = sender._group
    assert group is not None
    await until(lambda: all(group._has(f"ready/{group._update + 1}/{rank}") for rank in (1, 2)), engine)
    os.kill(workers[1].pid, signal.SIGKILL)
    for waiting in (running, updating, died):
        with pytest.raises(EngineDead):
            await asyncio.wait_for(waiting, 60)
    await engine.close()
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert alive == []


STARTS = """
import asyncio, sys
import psutil
from actors.engine.async_engine import AsyncEngine
from actors.settings import EngineSettings

async def main():
    settings = EngineSettings(dtype="float32", max_model_len=512, kv_cache_gib=0.125, threads=1, tensor_parallel=2)
    engine = AsyncEngine(sys.argv[1], settings)
    await engine.start()
    named = [process for process in psutil.Process().children(recursive=True) if "VLLM" in "".join(process.cmdline())]
    print("started", *(process.pid for process in named), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_an_engine_ends_with_the_process_that_started_it(model: Path) -> None:
    """SIGTERM ends that process; those of the engine never receive it, and have no parent left to end them."""
    with subprocess.Popen([sys.executable, "-c", STARTS, str(model)], stdout=subprocess.PIPE, text=True) as starter:
        try:
            assert starter.stdout
            started = next(line for line in starter.stdout if line.startswith("started"))
            processes = [psutil.Process(int(pid)) for pid in started.split()[1:]]
            assert len(processes) == 3, "the core and two workers"
        finally:
            starter.terminate()
    _, alive = psutil.wait_procs(processes, timeout=60)
    for process in alive:
        process.kill()
    assert alive == []
