"""azr's side of `azr bench peer`: its engine, learner and weight broadcast, one step for each request.

Answers a JSON line with a JSON line: `load`, then any of `step`, `async`. Two processes, as in a run: vLLM under
`AsyncEngine`, and this one with `Trainer` and `WeightSender`. The stream, Ray and the sandbox are left out.

A synchronous step is TRL's: responses, training, new weights for the engine (which count as generation), each with all
cores. Asynchronous, two batches are open at once, as with `learner.max_staleness = 1`: while one is trained, the next
is generated, and weights are changed under it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.engine.async_engine import AsyncEngine
from actors.engine.generation import Completion, Sampling
from launch.bench.peer_trl import reward_of
from launch.bench.peer_work import Work
from learner.trajectory import Cell, Role, Trajectory
from learner.weights.manifest import checksum, manifest_of
from learner.weights.transfer import WeightSender

if TYPE_CHECKING:
    from vllm import SamplingParams

OPEN_BATCHES = 2
"""Batches that are generated or trained at once: `max_staleness` + 1."""


class FixedLengthEngine(AsyncEngine):
    """The engine with responses that go on after an end-of-text token, up to their limit."""

    def _sampling_params(self, sampling: Sampling) -> SamplingParams:
        params = super()._sampling_params(sampling)
        params.ignore_eos = True
        return params


class Ours:
    """The loaded side."""

    def __init__(self, order: dict[str, Any]) -> None:
        """`order`: the request `load`."""
        from launch.config import load
        from launch.run.assemble import make_trainer
        from learner.device import keep_memory

        self._work = Work.from_json(order["work"])
        sequences = len(self._work.prompts) * self._work.responses
        config = load(
            order["recipe"],
            [
                f"learner.optimizer.lr={order['lr']}",
                f"learner.threads={order['threads']}",
                f"engine.threads={order['threads']}",
                f"engine.max_num_seqs={OPEN_BATCHES * sequences}",
                f"engine.max_model_len={max(load(order['recipe']).engine.max_model_len, self._work.longest)}",
            ],
        )
        keep_memory()
        self._trainer = make_trainer(config, Path(order["model_dir"]))
        self._policy = self._trainer.policy
        self._manifest = manifest_of(self._policy.export())
        self._sender = WeightSender()
        self._engine = FixedLengthEngine(order["model_dir"], config.engine)
        self._requests = 0
        self._checksums = checksum(self._policy.export())

    async def start(self) -> None:
        """Start the engine and connect it to the learner."""
        await self._engine.start()
        spec = self._sender.open(1 + self._engine.num_workers)
        await asyncio.gather(self._engine.join(spec, 1), asyncio.to_thread(self._sender.connect))

    async def close(self) -> None:
        """Stop the engine."""
        self._sender.close()
        await self._engine.close()

    async def step(self) -> dict[str, Any]:
        """One synchronous step."""
        started = time.perf_counter()
        batch = await self._generate()
        generated = time.perf_counter()
        metrics = self._trainer.train(batch)
        trained = time.perf_counter()
        await self._publish()
        seconds, train_s = time.perf_counter() - started, trained - generated
        times = {"seconds": seconds, "generate_s": seconds - train_s, "train_s": train_s}
        return times | self._changed() | _describe(batch, metrics)

    async def overlapped(self, steps: int) -> dict[str, Any]:
        """`steps` steps with `OPEN_BATCHES` batches open, timed from the end of the step before the first of them to
        the end of the last; the batches that are open then are generated to their end, untimed."""
        opened: deque[asyncio.Task[list[Trajectory]]] = deque()
        done: list[dict[str, Any]] = []
        self._changed()
        ages: list[int] = []
        started = 0.0
        for number in range(steps + 1):
            while len(opened) < OPEN_BATCHES:
                opened.append(asyncio.create_task(self._generate()))
            batch = await opened.popleft()
            ages.append(max(self._trainer.version - trajectory.oldest_version for trajectory in batch))
            metrics = await asyncio.to_thread(self._trainer.train, batch)
            await self._publish()
            if number == 0:
                started = time.perf_counter()
            else:
                done.append(_describe(batch, metrics))
        seconds = time.perf_counter() - started
        await asyncio.gather(*opened)
        changed = self._changed()
        return {
            "seconds": seconds,
            "steps": [changed | step for step in done],
            "oldest": max(ages),
            "mean_age": float(np.mean(ages[1:])),
        }

    async def _publish(self) -> None:
        """Bring the engine to the trainer's version."""
        send = asyncio.to_thread(self._sender.send, self._policy.export(), self._manifest)
        await asyncio.gather(self._engine.update_weights(self._manifest, self._trainer.version), send)

    async def _generate(self) -> list[Trajectory]:
        """The responses of one batch."""
        sampling = Sampling(max_tokens=self._work.tokens)
        prompts = [prompt for prompt in self._work.prompts for _ in range(self._work.responses)]
        first = self._requests
        self._requests += len(prompts)
        completions = await asyncio.gather(
            *(self._engine.generate(prompt, sampling, f"bench-{first + i}") for i, prompt in enumerate(prompts))
        )
        return [_trajectory(first + i, *pair) for i, pair in enumerate(zip(prompts, completions, strict=True))]

    def _changed(self) -> dict[str, int]:
        """Of how many `tensors` how many have `changed` since the last call."""
        before, self._checksums = self._checksums, checksum(self._policy.export())
        return {
            "changed": sum(before[name] != value for name, value in self._checksums.items()),
            "tensors": len(before),
        }


def _describe(batch: list[Trajectory], metrics: dict[str, float]) -> dict[str, Any]:
    finite = {name: metrics[name] if np.isfinite(metrics[name]) else None for name in ("loss", "grad_norm")}
    done = [[one.prompt_ids.tolist(), len(one.response_ids)] for one in batch]
    return finite | {"done": done, "rows": metrics["tokens_computed"]}


def _trajectory(number: int, prompt: tuple[int, ...], completion: Completion) -> Trajectory:
    return Trajectory(
        run_id="bench",
        actor_id="bench",
        incarnation=0,
        slot=number,
        episode_id=str(number),
        cell=Cell("deduction", Role.SOLVE),
        prompt_ids=np.array(prompt, dtype=np.int32),
        response_ids=np.array(completion.token_ids, dtype=np.int32),
        logprobs=np.array(completion.logprobs, dtype=np.float32),
        versions=completion.versions,
        reward=reward_of(completion.token_ids),
    )


async def serve() -> None:
    """Serve the parent's requests until it closes its end. The parent's command has said that this process is ready."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(text: dict[str, Any]) -> None:
        print(json.dumps(text, allow_nan=False), file=answers, flush=True)

    side: Ours | None = None
    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            request = json.loads(line)
            if request["op"] == "load":
                side = Ours(request)
                await side.start()
                answer({})
            elif request["op"] == "step":
                assert side
                answer(await side.step())
            else:
                assert side
                answer(await side.overlapped(request["steps"]))
    except Exception as error:
        import traceback

        traceback.print_exc()
        answer({"error": f"{type(error).__name__}: {error}"})
    finally:
        if side is not None:
            await side.close()


def main() -> None:
    """Run `serve`."""
    asyncio.run(serve())
