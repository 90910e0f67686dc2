"""The base of both inference engines: vLLM's configuration and environment, and translation to and from its types.

`AsyncEngine` (`async_engine.py`) runs vLLM in processes of its own; `SerialEngine` (`serial_engine.py`) runs it in this
process, one step at a time, so that a run with one seed repeats bit by bit. Which policy version sampled which token is
what vLLM reports, never inferred.

This is the only place that sets environment variables for vLLM, which has no other way in for these; at construction:
`VLLM_NO_USAGE_STATS`, `DO_NOT_TRACK`, `HF_HUB_OFFLINE` (nothing leaves the machine), `VLLM_ENABLE_V1_MULTIPROCESSING`
(0 for `SerialEngine`), `VLLM_LOGGING_LEVEL` (unless set: WARNING, or ERROR in this process), and on a CPU
`VLLM_CPU_OMP_THREADS_BIND=nobind` with `OMP_NUM_THREADS` (unless set): vLLM would pin every engine of a machine to the
same cores.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from actors.engine.generation import Completion, EngineAborted, EngineDead, Sampling, WeightUpdateFailed, WorkerFailed
from actors.settings import SEVERAL_ENGINES, EngineSettings
from executor.cpus import allowed_cpus
from learner.trajectory import Status, VersionSpan
from learner.weights.group import GroupSpec

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import RequestOutput

_JOIN_POLL_S = 0.05
# vLLM's default on a CPU is 128: a cached prefix counts in whole blocks, and ours are a few hundred tokens long.
_CPU_BLOCK_SIZE = 32


class VllmEngine:
    """The base of both engines: everything but how vLLM is run. Its methods are documented in
    `actors.engine.generation.Engine`."""

    def __init__(self, model_path: str | Path, settings: EngineSettings, *, seed: int = 0, in_process: bool) -> None:
        self.model_path = str(model_path)
        self.settings = settings
        self.seed = seed
        self._llm: Any = None
        self._control = asyncio.Lock()
        self._version = 0
        self._stats = dict.fromkeys(
            (
                "running",
                "waiting",
                "kv_usage",
                "preempted",
                "tokens_generated",
                "tokens_prompt",
                "tokens_cached",
                "waited_over_update",
            ),
            0.0,
        )
        _set_environment(settings, in_process)

    @cached_property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer of the model folder."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.model_path)

    @property
    def num_workers(self) -> int:
        """Ranks that this engine takes in a weight group: each worker receives whole tensors and keeps its shards."""
        return self.settings.tensor_parallel

    async def join(self, spec: GroupSpec, rank: int) -> None:
        """See `Engine.join`."""
        async with self._control:
            try:
                await self._rpc("init_weight_transfer_engine", init_info={"spec": spec.to_json(), "rank": rank})
                while not all(await self._rpc("azr_joined")):
                    await asyncio.sleep(_JOIN_POLL_S)
            except EngineDead:
                raise
            except Exception as error:
                raise update_failed(self._version, await self._rpc("azr_update_state"), error) from error

    async def checksums(self) -> dict[str, str]:
        """See `Engine.checksums`."""
        return common_digests(await self._rpc("azr_checksums"))

    async def versioned_checksums(self) -> tuple[int, dict[str, str]]:
        """The version that runs, and `checksums` of it; waits for an update that goes on."""
        async with self._control:
            return self._version, await self.checksums()

    def stats(self) -> dict[str, float]:
        """See `Engine.stats`."""
        return dict(self._stats)

    async def _rpc(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Call a method of every worker; one result a worker. Raises `WorkerFailed` where a worker raised."""
        answers = await self._ask_workers("azr_attempt", method, args, kwargs)
        if errors := dict.fromkeys(answer["error"] for answer in answers if "error" in answer):
            raise WorkerFailed("; ".join(errors))
        return [answer["result"] for answer in answers]

    async def _ask_workers(self, method: str, *args: Any) -> list[Any]:
        """Call a method that does not raise in any worker."""
        raise NotImplementedError

    def _engine_args(self) -> dict[str, Any]:
        from vllm.config import WeightTransferConfig
        from vllm.platforms import current_platform

        from actors import weight_engine
        from actors.engine.scheduler import SCHEDULER
        from actors.folder_loader import LOAD_FORMAT

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
            "logprobs_mode": "processed_logprobs",
            "disable_log_stats": True,
            "weight_transfer_config": WeightTransferConfig(backend=weight_engine.BACKEND),
            "worker_extension_cls": weight_engine.WORKER_EXTENSION,
            "scheduler_cls": SCHEDULER,
            "load_format": LOAD_FORMAT,
        }
        if current_platform.is_cpu():
            args |= {
                # Of each worker, which has its share of the key/value heads.
                "kv_cache_memory_bytes": int(settings.kv_cache_gib * 2**30 / settings.tensor_parallel),
                "block_size": _CPU_BLOCK_SIZE,
                # A seeded request whose prompt comes in chunks kills the engine: "CPU Generator does not use offset".
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(settings.max_num_batched_tokens, settings.max_model_len),
            }
            # The model in the engine's own process: one process and its polling less, and a faster start.
            args["distributed_executor_backend"] = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
        else:
            args["gpu_memory_utilization"] = settings.gpu_memory_utilization
        if settings.tensor_parallel > 1:
            # Processes of the actor's own. In a Ray actor vLLM might choose Ray, which would place them anywhere.
            args["distributed_executor_backend"] = "mp"
        return args

    def _prompt(self, prompt_ids: Sequence[int]) -> Any:
        if len(prompt_ids) >= self.settings.max_model_len:
            raise ValueError(f"a prompt of {len(prompt_ids)} tokens; max_model_len is {self.settings.max_model_len}")
        return {"prompt_token_ids": list(prompt_ids)}

    def _sampling_params(self, sampling: Sampling) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            stop=list(sampling.stop),
            seed=sampling.seed,
            logprobs=0,
            flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _completion(self, output: RequestOutput, submitted: int, queue_s: float, generate_s: float) -> Completion:
        """Translate an output. `submitted`: the version that ran when the request was handed in."""
        from vllm.logprobs import FlatLogprobs

        result = output.outputs[0]
        if result.finish_reason not in ("stop", "length"):
            raise EngineAborted(f"request {output.request_id} ended with {result.finish_reason!r}")
        token_ids = list(result.token_ids)
        logprobs, spans = result.logprobs, result.weight_versions
        if not isinstance(logprobs, FlatLogprobs) or list(logprobs.token_ids) != token_ids:
            raise EngineAborted(f"request {output.request_id}: vLLM returned no log-probability of each sampled token")
        if spans is None:
            raise EngineAborted(f"request {output.request_id}: vLLM did not report which weights sampled which token")
        self._stats["tokens_prompt"] += len(output.prompt_token_ids or ())
        self._stats["tokens_cached"] += output.num_cached_tokens or 0
        self._stats["waited_over_update"] += int(spans[0].version) != submitted
        return Completion(
            token_ids=token_ids,
            logprobs=list(logprobs.logprobs),
            text=result.text,
            finish=Status.STOPPED if result.finish_reason == "stop" else Status.TRUNCATED,
            versions=tuple(VersionSpan.of_label(int(s.version), s.start, s.end) for s in spans),
            queue_s=queue_s,
            generate_s=generate_s,
        )


def split_transfer(seconds: dict[str, float], worker: dict[str, float]) -> dict[str, float]:
    """Return phases with the worker's `transfer_s` taken out of `load_s`, which is measured around both. Seconds."""
    transfer_s = min(worker["transfer_s"], seconds["load_s"])
    return seconds | {"transfer_s": transfer_s, "load_s": seconds["load_s"] - transfer_s}


def update_failed(version: int, workers: Sequence[dict[str, float]], error: BaseException) -> WeightUpdateFailed:
    """Return the error for an update that `error` ended, from `azr_update_state` of every worker. Where one worker
    failed by itself, the broadcast may break at the others; that is not an interruption."""
    dirty = any(worker["dirty"] for worker in workers)
    faulty = any(worker["faulty"] for worker in workers)
    interrupted = not faulty and any(worker["interrupted"] for worker in workers)
    return WeightUpdateFailed(version, error, intact=not dirty, interrupted=interrupted)


def common_digests(of_workers: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the digests of an engine's weights from those of whole tensors in each of its workers. A tensor on which
    the workers differ gets the digests of all, one after the other, which equal no digest."""
    names = dict.fromkeys(name for digests in of_workers for name in digests)
    return {name: " ".join(dict.fromkeys(digests.get(name, "missing") for digests in of_workers)) for name in names}


def _set_environment(settings: EngineSettings, in_process: bool) -> None:
    """See the module's docstring. Raises ValueError for an environment that gives vLLM another kind of engine."""
    if (copies := os.environ.get("VLLM_DP_SIZE", "1")) != "1":
        raise ValueError(f"the environment has VLLM_DP_SIZE={copies}: unset it. {SEVERAL_ENGINES}")
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
        else:
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, allowed_cpus() // settings.tensor_parallel)))
    # Where a worker dies the others may wait for it in a kernel: they have this long to end by themselves, in seconds.
    os.environ.setdefault("VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS", "1")
