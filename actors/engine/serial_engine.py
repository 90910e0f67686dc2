"""vLLM in this process and thread, for serial mode: the same seed gives the same bits."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from actors.engine.base import VllmEngine, split_transfer, update_failed
from actors.engine.generation import Completion, EngineAborted, Sampling
from actors.settings import EngineSettings
from learner.stopwatch import Stopwatch
from learner.weights.manifest import TensorSpec, manifest_to_json

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput


class SerialEngine(VllmEngine):
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
        # Asynchronous scheduling would have a step in flight when the weights change, and report it as of the new ones.
        args = EngineArgs(**self._engine_args(), async_scheduling=False)
        self._llm = LLMEngine.from_engine_args(args)
        # vLLM takes the process for its own: it seeds every random state, and disarms this function.
        torch.set_num_threads = set_num_threads
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        await self.set_version(0)

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, request_id: str) -> Completion:
        """See `Engine.generate`."""
        started, submitted = time.monotonic(), self._version
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
        return self._completion(output, submitted, 0.0, time.monotonic() - started)

    async def set_version(self, version: int) -> None:
        """See `Engine.set_version`."""
        self._llm.set_weight_version(str(version))
        self._version = version

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
            self._llm.reset_prefix_cache()
            self._llm.collective_rpc("finish_weight_update")
            watch.lap("finish_s")
        except Exception as error:
            raise update_failed(version, self._llm.collective_rpc("azr_abandon_update"), error) from error
        await self.set_version(version)
        watch.lap("resume_s")
        return split_transfer(watch.seconds, self._llm.collective_rpc("azr_update_state")[0])

    async def died(self) -> None:
        """See `Engine.died`. An engine in this process does not die by itself."""
        await asyncio.Event().wait()

    async def rest(self) -> None:
        """With no request running, be as an engine that has just started: nothing cached, no request's place in a batch
        left."""
        if self._driver is not None:
            await self._driver
        while self._llm.engine_core.engine_core.scheduler.has_requests():  # ended ones that the worker was not told of
            self._step()
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("the engine's prefix cache is in use, though no request is running")

    async def close(self) -> None:
        """See `Engine.close`."""
        if self._driver is not None:
            self._driver.cancel()
            self._driver = None
        self._fail_pending(EngineAborted("the engine was closed"))
        if self._llm is not None:
            self._llm.engine_core.shutdown()
            self._llm = None

    async def _ask_workers(self, method: str, *args: Any) -> list[Any]:
        results: list[Any] = self._llm.collective_rpc(method, args=args)
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
