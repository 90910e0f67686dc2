"""vLLM in processes of its own, for a rollout actor: requests are batched continuously, weights change under them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import ExitStack
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from actors.engine.base import VllmEngine, split_transfer, update_failed
from actors.engine.generation import Completion, EngineAborted, EngineDead, Sampling
from actors.engine.step_times import STEP_TIMES
from actors.settings import EngineSettings
from actors.time_ledger import Activity, TimeLedger
from actors.token_ledger import TokenLedger
from actors.vllm_log import silence_shutdown
from executor.signals import withheld
from learner.stopwatch import Stopwatch
from learner.weights.manifest import TensorSpec, manifest_to_json

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput

T = TypeVar("T")

_DEATH_POLL_S = 0.2


class AsyncEngine(VllmEngine):
    """vLLM's AsyncLLM: the engine in processes of its own, requests batched continuously, updates in flight."""

    def __init__(
        self,
        model_path: str | Path,
        settings: EngineSettings,
        *,
        seed: int = 0,
        tokens: TokenLedger | None = None,
        time_ledger: TimeLedger | None = None,
    ) -> None:
        """`tokens`, `time_ledger`: the actor's ledgers, which this engine's work is entered in."""
        super().__init__(model_path, settings, seed=seed, in_process=False)
        self._tokens = tokens or TokenLedger()
        self._time = time_ledger or TimeLedger()
        self._death: asyncio.Task[None] | None = None
        self._updates: set[asyncio.Task[dict[str, float]]] = set()
        self._closing = False
        self._broken = False
        """The workers cannot be asked any more."""

    async def start(self) -> None:
        """See `Engine.start`. The event loop keeps running meanwhile."""
        await asyncio.to_thread(self._build)
        self._death = asyncio.create_task(self._until_dead())
        await self.set_version(0)

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, request_id: str) -> Completion:
        """See `Engine.generate`."""
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        prompt, params = self._prompt(prompt_ids), self._sampling_params(sampling)
        submitted = self._version
        final: RequestOutput | None = None
        try:
            with self._time.during(Activity.ENGINE):
                async for output in self._llm.generate(prompt, params, request_id):
                    final = output
        except EngineDeadError as error:
            raise EngineAborted("the engine was closed") if self._closing else EngineDead() from error
        except EngineGenerateError as error:
            raise EngineAborted(f"request {request_id}: {error}") from error
        finally:
            if final is None:
                self._tokens.aborted(request_id)
        if final is None:
            raise EngineAborted(f"request {request_id} ended without an output")
        times: Any = final.metrics
        queue_s, generate_s = times.scheduled_ts - times.queued_ts, times.last_token_ts - times.scheduled_ts
        try:
            completion = self._completion(final, submitted, queue_s, generate_s)
        except EngineAborted:
            self._tokens.aborted(request_id)
            raise
        self._tokens.finished(request_id, len(completion.token_ids))
        return completion

    def stats(self) -> dict[str, float]:
        """See `Engine.stats`."""
        return super().stats() | self._tokens.numbers()

    async def set_version(self, version: int) -> None:
        """See `Engine.set_version`."""
        await self._while_alive(self._llm.update_weight_version(str(version)))
        self._version = version

    async def update_weights(self, manifest: Sequence[TensorSpec], version: int) -> dict[str, float]:
        """See `Engine.update_weights`."""
        updating = asyncio.create_task(self._update(manifest, version))
        self._updates.add(updating)
        updating.add_done_callback(self._updated)
        return await asyncio.shield(updating)

    async def died(self) -> None:
        """See `Engine.died`."""
        assert self._death is not None, "start() comes first"
        await asyncio.shield(self._death)
        raise EngineDead

    async def close(self) -> None:
        """See `Engine.close`."""
        from vllm.v1.engine.exceptions import EngineDeadError

        self._closing = True
        tasks = [task for task in (*self._updates, self._death) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        llm, self._llm = self._llm, None
        if llm is not None:
            llm.output_processor.propagate_error(EngineDeadError())
            if llm.output_handler is not None:
                llm.output_handler.cancel()  # it would report the end of the engine as a failure
            # At once, by SIGKILL: the engine's processes never receive SIGTERM (see `_build`).
            await asyncio.to_thread(llm.shutdown, timeout=0)

    async def _update(self, manifest: Sequence[TensorSpec], version: int) -> dict[str, float]:
        """`update_weights`, which goes on to its end when the caller is cancelled: the pause must not outlive it."""
        async with self._control:
            watch = Stopwatch()
            with ExitStack() as still:
                worker = await self._load_and_resume(manifest, version, watch, still)
                seconds = split_transfer(watch.seconds, worker)
                self._time.waited(seconds["transfer_s"])
            return seconds

    async def _load_and_resume(
        self, manifest: Sequence[TensorSpec], version: int, watch: Stopwatch, still: ExitStack
    ) -> dict[str, float]:
        """Load new weights, and generate again where the engine has those of one version. Returns the worker's
        `azr_update_state`. `still` is entered once the engine stands still."""
        runnable = False
        try:
            await self._while_alive(self._load(manifest, version, watch, still))
            runnable = True
            # Asked while it stands still: once it goes on, the answer waits for a whole step, and the learner with it.
            worker: dict[str, float] = (await self._rpc("azr_update_state"))[0]
            watch.lap("finish_s")
        except EngineDead:
            raise
        except Exception as error:
            failure = update_failed(version, await self._rpc("azr_abandon_update"), error)
            runnable = failure.intact
            raise failure from error
        finally:
            if runnable:
                await self._while_alive(self._llm.resume_generation())
        watch.lap("resume_s")
        return worker

    def _updated(self, task: asyncio.Task[dict[str, float]]) -> None:
        self._updates.discard(task)
        if not task.cancelled():
            task.exception()  # whether or not the caller still waits for it

    async def _load(self, manifest: Sequence[TensorSpec], version: int, watch: Stopwatch, still: ExitStack) -> None:
        """Pause generation and receive one broadcast."""
        await self._llm.pause_generation(mode="keep", clear_cache=False)
        watch.lap("pause_s")
        still.enter_context(self._time.during(Activity.LOADING))
        await self._rpc("start_weight_update")
        watch.lap("start_s")
        await self._rpc("update_weights", {"manifest": manifest_to_json(manifest)})
        watch.lap("load_s")
        if not await self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache")
        await self._rpc("finish_weight_update")
        await self._llm.update_weight_version(str(version))
        self._version = version
        watch.lap("finish_s")

    async def _ask_workers(self, method: str, *args: Any) -> list[Any]:
        """See `VllmEngine`. Raises EngineDead where vLLM does not bring the workers' answers: its executor fails before
        the engine says that it has died."""
        try:
            results: list[Any] = await self._while_alive(self._llm.collective_rpc(method, args=args))
        except EngineDead:
            raise
        except Exception as error:
            self._broken = True
            raise EngineDead from error
        return results

    async def _while_alive(self, call: Coroutine[Any, Any, T]) -> T:
        """Return what `call` returns. Raises EngineDead if the engine dies first: vLLM leaves such calls waiting."""
        from vllm.v1.engine.exceptions import EngineDeadError

        assert self._death is not None, "start() comes first"
        calling = asyncio.create_task(call)
        try:
            await asyncio.wait({calling, self._death}, return_when=asyncio.FIRST_COMPLETED)
            if not calling.done():
                raise EngineDead
            return calling.result()
        except EngineDeadError as error:
            raise EngineDead from error
        finally:
            calling.cancel()

    async def _until_dead(self) -> None:
        while not (self._broken or self._llm.errored):
            await asyncio.sleep(_DEATH_POLL_S)

    def _build(self) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        args = AsyncEngineArgs(**self._engine_args())
        silence_shutdown()
        resource_tracker.ensure_running()  # the thread that starts it gets the signals back, whatever its mask was
        with withheld():
            self._llm = AsyncLLM.from_engine_args(args, stat_loggers=[self._stat_logger])
        self._count_tokens(self._llm.output_processor)

    def _count_tokens(self, processor: Any) -> None:
        """Enter every request in the ledger of tokens, with vLLM's count of its tokens, and every token that comes.

        The count outlives the request there, so that nothing is lost between its last token and `generate`.
        """
        add_request, process_outputs = processor.add_request, processor.process_outputs

        def add(request: Any, *args: Any, **kwargs: Any) -> None:
            add_request(request, *args, **kwargs)
            state = processor.request_states[request.request_id]
            self._tokens.began(state.external_req_id, state.stats)

        def process(outputs: Any, timestamp: Any, iteration_stats: Any, *args: Any, **kwargs: Any) -> Any:
            before = iteration_stats.num_generation_tokens if iteration_stats is not None else 0
            processed = process_outputs(outputs, timestamp, iteration_stats, *args, **kwargs)
            if iteration_stats is not None:
                self._tokens.generated += iteration_stats.num_generation_tokens - before
            return processed

        processor.add_request, processor.process_outputs = add, process

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
                    for part, seconds in (scheduler_stats.kv_connector_stats or {}).get(STEP_TIMES, {}).items():
                        stats[f"actor_time/{part}_actor_s"] = seconds
                if iteration_stats is not None:
                    stats["preempted"] += iteration_stats.num_preempted_reqs

            def log_engine_initialized(self) -> None:
                pass

        return Recorder()
