"""Many sandboxes: `SandboxPool` for an event loop, `SerialPool` for deterministic single-threaded runs.

Worker i runs under hash seed i + 1, so any two workers differ in the order of their sets and in their addresses.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from executor.layers import ALL, Layer, Tier
from executor.sandbox import InfrastructureError, Limits, Outcome, Sandbox, Status
from executor.settings import ExecutorSettings

__all__ = ["InfrastructureError", "Limits", "Outcome", "Pool", "PoolStats", "SandboxPool", "SerialPool", "Status"]


@dataclass(frozen=True)
class PoolStats:
    """What a pool has done so far, and what it has before it."""

    executions: int
    """Inputs that were run."""
    replaced: int
    """Fork servers that died or were wedged, and were replaced."""
    running: int
    """Sandboxes at work."""
    waiting: int
    """Requests in the queue."""
    waiting_peak: int
    """The longest that the queue has been."""


class Pool(Protocol):
    """What the judge needs of a pool."""

    @property
    def workers(self) -> int:
        """How many sandboxes there are."""

    async def start(self) -> None:
        """Start every sandbox. Raises InfrastructureError where the wall can't be had."""

    async def execute(
        self,
        program: str,
        inputs: Sequence[str],
        worker: int | None = None,
        *,
        limits: Limits | None = None,
        fail_fast: bool = False,
    ) -> list[Outcome]:
        """Run `f` of `program` on every input, all in one sandbox: `worker`, or any that is free.

        `limits` are the settings', unless given. Returns one outcome per input, aligned; with `fail_fast` those up to the
        first that is not ok. Raises values.CodecError for an input that is not literals, InfrastructureError if the
        sandbox fails twice.
        """

    async def close(self) -> None:
        """End and reap every sandbox. Requests under way fail with InfrastructureError."""


class SandboxPool:
    """An async pool. Every sandbox has a thread of its own, which starts it, waits for it, and reaps it.

    Threads, because a sandbox dies with the thread that started it and needs neither signal handlers nor a child
    watcher: the pool works on any event loop in any thread. A caller waits while every sandbox is busy: the first
    `settings.queue` of them in a queue, first come, first served, and the rest at the door, before anything of theirs is
    kept here. A cancelled caller's request still runs to its end, and its sandbox is free only then.
    """

    def __init__(self, settings: ExecutorSettings, *, gate: bool = True, layers: frozenset[Layer] = ALL) -> None:
        self._sandboxes = _sandboxes(settings, gate, layers)
        self._door = asyncio.Semaphore(settings.workers + settings.queue)
        self._waiting_peak = 0
        self._threads = [ThreadPoolExecutor(1, thread_name_prefix=f"sandbox-{i}") for i in range(settings.workers)]
        self._free = set(range(settings.workers))
        self._waiting: deque[tuple[int | None, asyncio.Future[int]]] = deque()
        self._closed = False

    @property
    def workers(self) -> int:
        """How many sandboxes there are."""
        return len(self._sandboxes)

    @property
    def pids(self) -> list[int | None]:
        """The fork servers' process ids."""
        return [sandbox.pid for sandbox in self._sandboxes]

    @property
    def layers(self) -> dict[Layer, str]:
        """Every layer of the wall: "" where it is active, otherwise why it is not."""
        return self._sandboxes[0].layers

    @property
    def tier(self) -> Tier:
        """What the active layers amount to."""
        return self._sandboxes[0].tier

    @property
    def stats(self) -> PoolStats:
        """Counters, now."""
        started = [sandbox.starts for sandbox in self._sandboxes]
        return PoolStats(
            executions=sum(sandbox.executions for sandbox in self._sandboxes),
            replaced=sum(starts - 1 for starts in started if starts),
            running=len(self._sandboxes) - len(self._free),
            waiting=len(self._waiting),
            waiting_peak=self._waiting_peak,
        )

    async def start(self) -> None:
        """Start every sandbox. Raises InfrastructureError, with none left running, where one can't be had."""
        loop = asyncio.get_running_loop()
        starts = [
            loop.run_in_executor(thread, sandbox.start)
            for thread, sandbox in zip(self._threads, self._sandboxes, strict=True)
        ]
        results = await asyncio.gather(*starts, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                await self.close()
                raise result

    async def execute(
        self,
        program: str,
        inputs: Sequence[str],
        worker: int | None = None,
        *,
        limits: Limits | None = None,
        fail_fast: bool = False,
    ) -> list[Outcome]:
        """See `Pool.execute`."""
        async with self._door:
            chosen = await self._acquire(worker)
            call = functools.partial(self._sandboxes[chosen].execute, program, inputs, limits, fail_fast=fail_fast)
            run = asyncio.get_running_loop().run_in_executor(self._threads[chosen], call)
            run.add_done_callback(lambda done: self._release(chosen, done))
            return await asyncio.shield(run)

    async def close(self) -> None:
        """End and reap every sandbox. Requests under way and waiting callers fail with InfrastructureError."""
        self._closed = True
        while self._waiting:
            waiter = self._waiting.popleft()[1]
            if not waiter.done():
                waiter.set_exception(InfrastructureError("the pool was closed"))
        loop = asyncio.get_running_loop()
        for sandbox in self._sandboxes:
            sandbox.abort()
        closes = [
            loop.run_in_executor(thread, sandbox.close)
            for thread, sandbox in zip(self._threads, self._sandboxes, strict=True)
        ]
        await asyncio.gather(*closes)
        for thread in self._threads:
            thread.shutdown()

    async def _acquire(self, worker: int | None) -> int:
        """A free sandbox, or the given one once it is free; first come, first served."""
        if self._closed:
            raise InfrastructureError("the pool was closed")
        if worker is not None and worker in self._free:
            self._free.remove(worker)
            return worker
        if worker is None and self._free:
            chosen = min(self._free)
            self._free.remove(chosen)
            return chosen
        waiter: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((worker, waiter))
        self._waiting_peak = max(self._waiting_peak, len(self._waiting))
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._release(waiter.result())  # it had been handed over in the meantime
            raise

    def _release(self, worker: int, run: asyncio.Future[list[Outcome]] | None = None) -> None:
        if run is not None and not run.cancelled():
            run.exception()  # seen, even if nobody waits any more
        for entry in self._waiting:
            wanted, waiter = entry
            if wanted in (None, worker) and not waiter.done():
                self._waiting.remove(entry)
                waiter.set_result(worker)
                return
        self._free.add(worker)


class SerialPool:
    """The same without threads: `execute` blocks and never yields to the event loop; `worker=None` is worker 0.

    Start it, use it and close it in one thread: the sandboxes die with the thread that started them.
    """

    def __init__(self, settings: ExecutorSettings, *, gate: bool = True, layers: frozenset[Layer] = ALL) -> None:
        self._sandboxes = _sandboxes(settings, gate, layers)

    @property
    def workers(self) -> int:
        """How many sandboxes there are."""
        return len(self._sandboxes)

    @property
    def pids(self) -> list[int | None]:
        """The fork servers' process ids."""
        return [sandbox.pid for sandbox in self._sandboxes]

    @property
    def layers(self) -> dict[Layer, str]:
        """Every layer of the wall: "" where it is active, otherwise why it is not."""
        return self._sandboxes[0].layers

    @property
    def tier(self) -> Tier:
        """What the active layers amount to."""
        return self._sandboxes[0].tier

    @property
    def stats(self) -> PoolStats:
        """Counters, now."""
        started = [sandbox.starts for sandbox in self._sandboxes]
        return PoolStats(
            executions=sum(sandbox.executions for sandbox in self._sandboxes),
            replaced=sum(starts - 1 for starts in started if starts),
            running=0,
            waiting=0,
            waiting_peak=0,
        )

    async def start(self) -> None:
        """Start every sandbox. Raises InfrastructureError, with none left running, where one can't be had."""
        try:
            for sandbox in self._sandboxes:
                sandbox.start()
        except InfrastructureError:
            await self.close()
            raise

    async def execute(
        self,
        program: str,
        inputs: Sequence[str],
        worker: int | None = None,
        *,
        limits: Limits | None = None,
        fail_fast: bool = False,
    ) -> list[Outcome]:
        """See `Pool.execute`."""
        return self._sandboxes[worker or 0].execute(program, inputs, limits, fail_fast=fail_fast)

    async def close(self) -> None:
        """End and reap every sandbox."""
        for sandbox in self._sandboxes:
            sandbox.close()


def _sandboxes(settings: ExecutorSettings, gate: bool, layers: frozenset[Layer]) -> list[Sandbox]:
    return [Sandbox(settings, index + 1, gate, layers) for index in range(settings.workers)]
