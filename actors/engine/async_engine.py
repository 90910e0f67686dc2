"""vLLM in processes of its own, for a rollout actor: requests are batched continuously, weights change under them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.engine.base import VllmEngine, split_transfer, update_failed
from actors.engine.generation import Completion, EngineAborted, Sampling
from actors.settings import EngineSettings
from learner.stopwatch import Stopwatch
from learner.weights.manifest import TensorSpec, manifest_to_json

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput


class AsyncEngine(VllmEngine):
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
                failure = update_failed(version, await self._rpc("azr_update_state"), error)
                intact = failure.intact
                raise failure from error
            finally:
                if intact:
                    await self._llm.resume_generation()
            watch.lap("resume_s")
            return split_transfer(watch.seconds, (await self._rpc("azr_update_state"))[0])

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
