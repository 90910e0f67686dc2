"""The inference engine: vLLM behind a small protocol, with weights that change under running requests.

`AsyncEngine` runs vLLM's engine in processes of its own; `SerialEngine` runs it here, one step at a time, so that a
run with one seed repeats bit by bit. Which policy version sampled which token is what vLLM reports, never inferred.

This is the only place that sets environment variables for vLLM (it has no other way in for these), at construction:
`VLLM_NO_USAGE_STATS`, `DO_NOT_TRACK`, `HF_HUB_OFFLINE` (nothing leaves the machine), `VLLM_ENABLE_V1_MULTIPROCESSING`
(0 for `SerialEngine`), `VLLM_LOGGING_LEVEL` (unless set: WARNING, or ERROR in this
process), and on a CPU `VLLM_CPU_OMP_THREADS_BIND=nobind` with
`OMP_NUM_THREADS` (unless set): vLLM would pin every engine of a machine to the same cores.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from actors.generation import Completion, EngineAborted, Sampling, WeightUpdateFailed
from actors.settings import EngineSettings
from learner.stopwatch import Stopwatch
from learner.trajectory import Status, VersionSpan
from learner.weights.group import GroupSpec
from learner.weights.manifest import TensorSpec, manifest_to_json

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import RequestOutput

_JOIN_POLL_S = 0.05
# vLLM's default on a CPU is 128: a cached prefix counts in whole blocks, and ours are a few hundred tokens long.
_CPU_BLOCK_SIZE = 32


class _VllmEngine:
    """What both engines share: configuration, and the translation to and from vLLM's types."""

    def __init__(self, model_path: str | Path, settings: EngineSettings, *, seed: int = 0, in_process: bool) -> None:
        self.model_path = str(model_path)
        self.settings = settings
        self.seed = seed
        self._llm: Any = None
        self._control = asyncio.Lock()
        self._version = 0
        self._generation = 0
        """Counts the versions loaded. Unlike a version it never repeats: a learner that starts again from a checkpoint makes
        other weights under numbers that were there before."""
        self._stats = dict.fromkeys(
            ("running", "waiting", "kv_usage", "preempted", "tokens_generated", "tokens_prompt", "tokens_cached"), 0.0
        )
        _set_environment(settings, in_process)

    @cached_property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer of the model folder."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.model_path)

    @property
    def num_workers(self) -> int:
        """Ranks that this engine takes in a weight group."""
        return self.settings.tensor_parallel

    async def join(self, spec: GroupSpec, rank: int) -> None:
        """See `Engine.join`."""
        async with self._control:
            await self._rpc("init_weight_transfer_engine", init_info={"spec": spec.to_json(), "rank": rank})
            while not all(await self._rpc("azr_joined")):
                await asyncio.sleep(_JOIN_POLL_S)

    async def checksums(self) -> dict[str, str]:
        """See `Engine.checksums`."""
        digests: dict[str, str] = _only(await self._rpc("azr_checksums"))
        return digests

    async def versioned_checksums(self) -> tuple[int, dict[str, str]]:
        """The version that runs, and `checksums` of it; waits for an update that goes on."""
        async with self._control:
            return self._version, await self.checksums()

    async def weights(self) -> dict[str, torch.Tensor]:
        """See `Engine.weights`."""
        from safetensors.torch import load_file

        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/weights.safetensors"
            _only(await self._rpc("azr_save_weights", path))
            return {name: tensor.clone() for name, tensor in load_file(path).items()}

    def stats(self) -> dict[str, float]:
        """See `Engine.stats`."""
        return dict(self._stats)

    def _now_runs(self, version: int) -> None:
        if version != self._version:
            self._version, self._generation = version, self._generation + 1

    async def _rpc(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Call a method of every worker; one result a worker."""
        raise NotImplementedError

    def _engine_args(self) -> dict[str, Any]:
        from vllm.config import WeightTransferConfig
        from vllm.platforms import current_platform

        from actors import weight_engine

        settings = self.settings
        args: dict[str, Any] = {
            "model": self.model_path,
            "dtype": settings.dtype,
            "seed": self.seed,
            "max_model_len": settings.max_model_len,
            "max_num_seqs": settings.max_num_seqs,
            "max_num_batched_tokens": settings.max_num_batched_tokens,
            "tensor_parallel_size": settings.tensor_parallel,
            "enforce_eager": settings.enforce_eager,
            "enable_prefix_caching": True,
            "logprobs_mode": "raw_logprobs",
            "disable_log_stats": True,
            "weight_transfer_config": WeightTransferConfig(backend=weight_engine.BACKEND),
            "worker_extension_cls": weight_engine.WORKER_EXTENSION,
        }
        if current_platform.is_cpu():
            args |= {
                "kv_cache_memory_bytes": int(settings.kv_cache_gib * 2**30),
                "block_size": _CPU_BLOCK_SIZE,
                # A seeded request whose prompt comes in chunks kills the engine: "CPU Generator does not use offset".
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(settings.max_num_batched_tokens, settings.max_model_len),
            }
            if settings.tensor_parallel == 1:
                # The model in the engine's own process: one process and its polling less, and a faster start.
                args["distributed_executor_backend"] = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
        else:
            args["gpu_memory_utilization"] = settings.gpu_memory_utilization
        return args

    def _prompt(self, prompt_ids: Sequence[int]) -> Any:
        if len(prompt_ids) >= self.settings.max_model_len:
            raise ValueError(f"a prompt of {len(prompt_ids)} tokens; max_model_len is {self.settings.max_model_len}")
        # The salt keeps keys and values that an older policy left in the prefix cache from being used again.
        return {"prompt_token_ids": list(prompt_ids), "cache_salt": str(self._generation)}

    def _sampling_params(self, sampling: Sampling) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            stop=list(sampling.stop),
            seed=sampling.seed,
            logprobs=0,
            flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _completion(self, output: RequestOutput, queue_s: float, generate_s: float) -> Completion:
        from vllm.logprobs import FlatLogprobs

        result = output.outputs[0]
        if result.finish_reason not in ("stop", "length"):
            raise EngineAborted(f"request {output.request_id} ended with {result.finish_reason!r}")
        token_ids = list(result.token_ids)
        assert isinstance(result.logprobs, FlatLogprobs) and result.weight_versions is not None
        assert list(result.logprobs.token_ids) == token_ids, "one log-probability a token, that of the token"
        self._stats["tokens_prompt"] += len(output.prompt_token_ids or ())
        self._stats["tokens_cached"] += output.num_cached_tokens or 0
        return Completion(
            token_ids=token_ids,
            logprobs=list(result.logprobs.logprobs),
            text=result.text,
            finish=Status.STOPPED if result.finish_reason == "stop" else Status.TRUNCATED,
            versions=tuple(VersionSpan(int(s.version), s.start, s.end) for s in result.weight_versions),
            queue_s=queue_s,
            generate_s=generate_s,
        )


class AsyncEngine(_VllmEngine):
    """vLLM's AsyncLLM: the engine in processes of its own, requests batched continuously, updates in flight."""

    def __init__(self, model_path: str | Path, settings: EngineSettings, *, seed: int = 0) -> None:
        super().__init__(model_path, settings, seed=seed, in_process=False)

    async def start(self) -> None:
        """See `Engine.start`. The event loop keeps running meanwhile."""
        await asyncio.to_thread(self._build)
        await self.set_version(0)

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, request_id: str) -> Completion:
        """See `Engine.generate`."""
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        prompt, params = self._prompt(prompt_ids), self._sampling_params(sampling)
        final: RequestOutput | None = None
        try:
            async for output in self._llm.generate(prompt, params, request_id):
                final = output
        except (EngineDeadError, EngineGenerateError) as error:
            raise EngineAborted(f"request {request_id}: {error}") from error
        if final is None:
            raise EngineAborted(f"request {request_id} ended without an output")
        times: Any = final.metrics
        return self._completion(final, times.scheduled_ts - times.queued_ts, times.last_token_ts - times.scheduled_ts)

    async def set_version(self, version: int) -> None:
        """See `Engine.set_version`."""
        await self._llm.update_weight_version(str(version))
        self._now_runs(version)

    async def update_weights(self, manifest: Sequence[TensorSpec], version: int) -> dict[str, float]:
        """See `Engine.update_weights`."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        async with self._control:
            watch = Stopwatch()
            await self._llm.pause_generation(mode="keep", clear_cache=False)
            watch.lap("pause_s")
            intact = False
            try:
                await self._llm.start_weight_update()
                watch.lap("start_s")
                request = WeightTransferUpdateRequest(update_info={"manifest": manifest_to_json(manifest)})
                await self._llm.update_weights(request)
                watch.lap("load_s")
                await self._llm.finish_weight_update(weight_version=str(version))
                watch.lap("finish_s")
                self._now_runs(version)
                intact = True
            except Exception as error:
                states = await self._rpc("azr_update_state")
                intact = not any(state["dirty"] for state in states)
                raise WeightUpdateFailed(version, intact, error) from error
            finally:
                if intact:
                    await self._llm.resume_generation()
            watch.lap("resume_s")
            return _split_transfer(watch.seconds, (await self._rpc("azr_update_state"))[0])

    async def close(self) -> None:
        """See `Engine.close`."""
        from vllm.v1.engine.exceptions import EngineDeadError

        llm, self._llm = self._llm, None
        if llm is not None:
            llm.output_processor.propagate_error(EngineDeadError())
            if llm.output_handler is not None:
                llm.output_handler.cancel()  # it would report the end of the engine as a failure
            await asyncio.to_thread(llm.shutdown)

    async def _rpc(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        results: list[Any] = await self._llm.collective_rpc(method, args=args, kwargs=kwargs)
        return results

    def _build(self) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        args = AsyncEngineArgs(**self._engine_args())
        self._llm = AsyncLLM.from_engine_args(args, stat_loggers=[self._stat_logger])

    def _stat_logger(self, vllm_config: Any, engine_index: int = 0) -> Any:
        from vllm.v1.metrics.loggers import StatLoggerBase

        stats = self._stats

        class Recorder(StatLoggerBase):  # type: ignore[misc]
            """Keeps the newest numbers; vLLM hands them over with every step's outputs."""

            def __init__(self) -> None:
                pass

            def record(self, scheduler_stats: Any, iteration_stats: Any, *args: Any, **kwargs: Any) -> None:
                if scheduler_stats is not None:
                    stats["running"] = scheduler_stats.num_running_reqs
                    stats["waiting"] = scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs
                    stats["kv_usage"] = scheduler_stats.kv_cache_usage
                if iteration_stats is not None:
                    stats["tokens_generated"] += iteration_stats.num_generation_tokens
                    stats["preempted"] += iteration_stats.num_preempted_reqs

            def log_engine_initialized(self) -> None:
                pass

        return Recorder()


class SerialEngine(_VllmEngine):
    """vLLM in this process and thread: `generate` calls share steps, and the event loop turns once between two.

    Sampling has a random stream of its own, `random_state`, apart from the process's, and can be resumed from it. The
    world of one rank is met through a file and is torch's default process group, which this engine shares with the
    learner, whichever of the two makes it first; `close` takes it down, so the learner has to be done by then. Threads
    are torch's own: what wants `OMP_WAIT_POLICY=passive` here has to set it before the process starts.
    """

    def __init__(self, model_path: str | Path, settings: EngineSettings, *, seed: int = 0) -> None:
        if settings.tensor_parallel != 1:
            raise ValueError("a serial engine has one worker")
        super().__init__(model_path, settings, seed=seed, in_process=True)
        self._pending: dict[str, asyncio.Future[RequestOutput]] = {}
        self._driver: asyncio.Task[None] | None = None
        self.random_state = torch.Generator().manual_seed(seed).get_state()

    async def start(self) -> None:
        """See `Engine.start`. Blocks the event loop."""
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        set_num_threads = torch.set_num_threads
        python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
        self._llm = LLMEngine.from_engine_args(EngineArgs(**self._engine_args()))
        # vLLM takes the process for its own: it seeds every random state, and disarms this function.
        torch.set_num_threads = set_num_threads
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        await self.set_version(0)

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, request_id: str) -> Completion:
        """See `Engine.generate`."""
        started = time.monotonic()
        self._llm.add_request(request_id, self._prompt(prompt_ids), self._sampling_params(sampling))
        future: asyncio.Future[RequestOutput] = asyncio.get_running_loop().create_future()
        self._pending[request_id] = future
        if self._driver is None:
            self._driver = asyncio.create_task(self._drive())
        try:
            output = await future
        except asyncio.CancelledError:
            self._pending.pop(request_id, None)
            self._llm.abort_request([request_id])
            raise
        return self._completion(output, 0.0, time.monotonic() - started)

    async def set_version(self, version: int) -> None:
        """See `Engine.set_version`."""
        self._llm.set_weight_version(str(version))
        self._now_runs(version)

    async def update_weights(self, manifest: Sequence[TensorSpec], version: int) -> dict[str, float]:
        """See `Engine.update_weights`. Never yields to the event loop, so no step can come between."""
        watch = Stopwatch()
        watch.lap("pause_s")
        try:
            self._llm.collective_rpc("start_weight_update")
            watch.lap("start_s")
            update_info = {"manifest": manifest_to_json(manifest)}
            self._llm.collective_rpc("update_weights", kwargs={"update_info": update_info})
            watch.lap("load_s")
            self._llm.collective_rpc("finish_weight_update")
            watch.lap("finish_s")
        except Exception as error:
            state = _only(self._llm.collective_rpc("azr_update_state"))
            raise WeightUpdateFailed(version, not state["dirty"], error) from error
        await self.set_version(version)
        watch.lap("resume_s")
        return _split_transfer(watch.seconds, _only(self._llm.collective_rpc("azr_update_state")))

    async def rest(self) -> None:
        """With no request running, be as an engine that has just started: nothing cached, no request's place in a batch left."""
        if self._driver is not None:
            await self._driver
        while self._llm.engine_core.engine_core.scheduler.has_requests():  # ended ones that the worker was not told of
            self._step()
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("the engine's prefix cache is in use: a request is still running")

    async def close(self) -> None:
        """See `Engine.close`."""
        if self._driver is not None:
            self._driver.cancel()
            self._driver = None
        self._fail_pending(EngineAborted("the engine was closed"))
        if self._llm is not None:
            self._llm.engine_core.shutdown()
            self._llm = None

    async def _rpc(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        results: list[Any] = self._llm.collective_rpc(method, args=args, kwargs=kwargs)
        return results

    async def _drive(self) -> None:
        """Step the engine while anybody waits for it."""
        try:
            while self._pending:
                for output in self._step():
                    if output.finished and output.request_id in self._pending:
                        self._stats["tokens_generated"] += len(output.outputs[0].token_ids)
                        self._pending.pop(output.request_id).set_result(output)
                self._stats["running"] = len(self._pending)
                await asyncio.sleep(0)
        except Exception as error:  # whatever it is, those who wait have to hear of it
            self._fail_pending(EngineAborted(f"the engine failed: {error!r}"))
        finally:
            self._driver = None

    def _step(self) -> list[RequestOutput]:
        outside = torch.get_rng_state()
        torch.set_rng_state(self.random_state)
        try:
            return list(self._llm.step())
        finally:
            self.random_state = torch.get_rng_state()
            torch.set_rng_state(outside)

    def _fail_pending(self, error: EngineAborted) -> None:
        pending, self._pending = self._pending, {}
        for future in pending.values():
            if not future.done():
                future.set_exception(error)


def _split_transfer(seconds: dict[str, float], worker: dict[str, float]) -> dict[str, float]:
    """Take the worker's `transfer_s` out of `load_s`, which is measured around both."""
    transfer_s = min(worker["transfer_s"], seconds["load_s"])
    return seconds | {"transfer_s": transfer_s, "load_s": seconds["load_s"] - transfer_s}


def _set_environment(settings: EngineSettings, in_process: bool) -> None:
    """See the module's docstring."""
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ["DO_NOT_TRACK"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if in_process else "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR" if in_process else "WARNING")
    if not torch.cuda.is_available():
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        if settings.enforce_eager:
            os.environ["TORCH_COMPILE_DISABLE"] = "1"
        # Threads that spin while they wait make an engine several times slower where others want the same cores.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        if settings.threads:
            os.environ["OMP_NUM_THREADS"] = str(settings.threads)


def _only(results: list[Any]) -> Any:
    """The result of the only worker; reading weights back is for engines of one."""
    if len(results) != 1:
        raise ValueError(f"the engine has {len(results)} workers")
    return results[0]
