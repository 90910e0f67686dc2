"""Many sandboxes: `SandboxPool` for an event loop, `SerialPool` for deterministic single-threaded runs.

Every sandbox of a pool has a hash seed of its own, drawn at random, so any two differ in the order of their sets and in
their addresses. There are at least SEEDS of them, for checks of determinism; those beyond `executor.workers` start when
they are first asked for, and never do more than `executor.workers` of them run at once.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from executor.inspection import Facts
from executor.layers import ALL, Layer, Tier
from executor.outcomes import DeadError, InfrastructureError, Limits, Outcome, Status
from executor.sandbox.request import Request, facts_of
from executor.sandbox.sandbox import Sandbox, failed_twice
from executor.settings import ExecutorSettings

SEEDS = 8
"""Smallest number of hash seeds of a pool. A program that draws one of two values by its seed gives the same one under
all of them with a chance of 1 in 2 ** (SEEDS - 1), which is below 1%."""
MAX_STARTERS = 8
"""Threads that start sandboxes: starting many at once is bound by the cores."""


@dataclass(frozen=True)
class PoolStats:
    """Counters of a pool: work done, and requests under way and waiting."""

    executions: int
    """Children that ran a program."""
    replaced: int
    """Fork servers that died or hung, and were replaced."""
    running: int
    """Sandboxes at work."""
    waiting: int
    """Requests in the queue."""
    waiting_peak: int
    """Most requests that the queue has held."""


class Pool(Protocol):
    """Runs programs for a judge. `SandboxPool` and `SerialPool` implement it."""

    @property
    def workers(self) -> int:
        """Most programs that run at once. The sandboxes with these lowest numbers start with the pool."""

    @property
    def seeds(self) -> int:
        """Number of sandboxes, each with a hash seed of its own."""

    async def start(self) -> None:
        """Start the sandboxes. Raises InfrastructureError if a sandbox or a required layer of its wall fails."""

    async def execute(
        self,
        program: str,
        inputs: Sequence[str],
        seed: int | None = None,
        *,
        limits: Limits | None = None,
        fail_fast: bool = False,
    ) -> list[Outcome]:
        """Run `f` of `program` on every input, each in a child of its own.

        `seed`, from 0 to `seeds - 1`, names the sandbox; by default it is any that is free. `limits` are the settings',
        unless given; memory may only be less (ValueError). Returns one outcome per input, aligned; with `fail_fast`
        those up to the first that is not ok.

        Raises values.CodecError for an input that is not literals, InfrastructureError if the sandbox fails twice.
        """

    async def probe(
        self,
        program: str,
        inputs: Sequence[str],
        seed: int | None = None,
        *,
        limits: Limits | None = None,
        stop_at_difference: bool = False,
    ) -> list[Outcome]:
        """Run `f` of `program` on `inputs` one after another, in one child, within the limits of a single input.

        Cheaper than `execute`, and less exact: what a program keeps from one input can change what it does with the
        next. Returns the outcomes up to the last that there was time for, maybe none; with `stop_at_difference` up to
        the first value that is not that of an earlier input. Raises as `execute` does.
        """

    async def inspect(
        self, program: str, *, strip_comments: bool = False, strip_docstrings: bool = False
    ) -> Facts | Outcome:
        """Find the facts of the program's syntax tree in a sandbox; return the outcome if that fails.

        The outcome is ERROR for a program that does not parse; others (a timeout, a crash) may be the machine's. Raises
        InfrastructureError if the sandbox fails twice.
        """

    async def close(self) -> None:
        """End and reap every sandbox. Requests under way fail with InfrastructureError."""


class _Sandboxes:
    """The sandboxes of a pool, with their counters: the base of every pool."""

    def __init__(
        self, settings: ExecutorSettings, seed: int | None, *, gate: bool = True, layers: frozenset[Layer] = ALL
    ) -> None:
        draw = random.SystemRandom() if seed is None else random.Random(seed)
        hash_seeds = draw.sample(range(1, 1 << 32), max(settings.workers, SEEDS))
        self._sandboxes = [Sandbox(settings, hash_seed, gate, layers) for hash_seed in hash_seeds]
        self._at_once = settings.workers
        self._limits = Limits.of(settings)
        self._free = set(range(len(self._sandboxes)))
        self._waiting: deque[tuple[int | None, asyncio.Future[int]]] = deque()
        self._waiting_peak = 0

    @property
    def workers(self) -> int:
        """Most programs that run at once."""
        return self._at_once

    @property
    def seeds(self) -> int:
        """Number of sandboxes, each with a hash seed of its own."""
        return len(self._sandboxes)

    @property
    def pids(self) -> list[int | None]:
        """The fork servers' process ids; None for one that has not been started."""
        return [sandbox.pid for sandbox in self._sandboxes]

    @property
    def layers(self) -> dict[Layer, str]:
        """Every layer of the wall with "" if it is active, or else the reason why not."""
        return self._sandboxes[0].layers

    @property
    def tier(self) -> Tier:
        """The tier of the active layers."""
        return self._sandboxes[0].tier

    @property
    def stats(self) -> PoolStats:
        """The counters at this moment."""
        started = [sandbox.starts for sandbox in self._sandboxes]
        return PoolStats(
            executions=sum(sandbox.executions for sandbox in self._sandboxes),
            replaced=sum(starts - 1 for starts in started if starts),
            running=len(self._sandboxes) - len(self._free),
            waiting=len(self._waiting),
            waiting_peak=self._waiting_peak,
        )


class SandboxPool(_Sandboxes):
    """An async pool: the event loop itself reads and writes the sandboxes' pipes, so that a request costs no thread.

    Starting and stopping block, and are done by a few threads that live as long as the pool does: a sandbox dies with
    the thread that started it, and needs neither signal handlers nor a child watcher. A caller waits while every
    sandbox is busy: the first `settings.queue` of them in a queue, first come, first served, and the rest at the door,
    before anything of theirs is kept here. A cancelled caller's request still runs to its end, and its sandbox is free
    only then.
    """

    def __init__(self, settings: ExecutorSettings, *, gate: bool = True, layers: frozenset[Layer] = ALL) -> None:
        super().__init__(settings, None, gate=gate, layers=layers)
        self._door = asyncio.Semaphore(settings.workers + settings.queue)
        self._starters = ThreadPoolExecutor(min(settings.workers, MAX_STARTERS), thread_name_prefix="sandbox-starter")
        self._running: set[asyncio.Future[list[Outcome]]] = set()
        self._closed = False

    async def start(self) -> None:
        """Start a sandbox for every worker. If one fails, end the others and raise InfrastructureError."""
        starts = [self._in_thread(sandbox.start) for sandbox in self._sandboxes[: self._at_once]]
        for result in await asyncio.gather(*starts, return_exceptions=True):
            if isinstance(result, BaseException):
                await self.close()
                raise result

    async def execute(
        self,
        program: str,
        inputs: Sequence[str],
        seed: int | None = None,
        *,
        limits: Limits | None = None,
        fail_fast: bool = False,
    ) -> list[Outcome]:
        """See `Pool.execute`."""
        async with self._door:
            limits = limits.within(self._limits) if limits else self._limits
            outcomes: list[Outcome] = []
            for request in [Request.run(program, given, limits) for given in inputs]:
                outcomes += await self._answer(request, seed)
                if fail_fast and outcomes[-1].status is not Status.OK:
                    break
            return outcomes

    async def probe(
        self,
        program: str,
        inputs: Sequence[str],
        seed: int | None = None,
        *,
        limits: Limits | None = None,
        stop_at_difference: bool = False,
    ) -> list[Outcome]:
        """See `Pool.probe`."""
        async with self._door:
            limits = limits.within(self._limits) if limits else self._limits
            request = Request.probe(program, inputs, limits, stop_at_difference)
            return await self._answer(request, seed) if inputs else []

    async def inspect(
        self, program: str, *, strip_comments: bool = False, strip_docstrings: bool = False
    ) -> Facts | Outcome:
        """See `Pool.inspect`."""
        async with self._door:
            request = Request.inspection(program, self._limits, strip_comments, strip_docstrings)
            return facts_of((await self._answer(request, None))[0])

    async def _answer(self, request: Request, seed: int | None) -> list[Outcome]:
        chosen = await self._acquire(seed)
        run = asyncio.ensure_future(self._run(self._sandboxes[chosen], request))
        self._running.add(run)
        run.add_done_callback(lambda done: self._release(chosen, done))
        return await asyncio.shield(run)

    async def close(self) -> None:
        """End and reap every sandbox. Requests under way and waiting callers fail with InfrastructureError."""
        self._closed = True
        while self._waiting:
            waiter = self._waiting.popleft()[1]
            if not waiter.done():
                waiter.set_exception(InfrastructureError("the pool was closed"))
        for sandbox in self._sandboxes:
            if sandbox.pipes:
                sandbox.pipes.abandon("the pool was closed")
            sandbox.abort()
        await asyncio.gather(*self._running, return_exceptions=True)
        await asyncio.gather(*[self._in_thread(sandbox.close) for sandbox in self._sandboxes])
        self._starters.shutdown()

    def _in_thread(self, function: Callable[[], None]) -> asyncio.Future[None]:
        return asyncio.get_running_loop().run_in_executor(self._starters, function)

    async def _run(self, sandbox: Sandbox, request: Request) -> list[Outcome]:
        """One request on one sandbox, which is replaced if it dies over it."""
        for attempt in (1, 2):
            if self._closed:
                break
            try:
                if sandbox.pipes is None:
                    await self._in_thread(sandbox.start)
                assert sandbox.pipes
                exchange = sandbox.exchange(request)
                await sandbox.pipes.exchange_in_loop(exchange, request.timeout_s)
                return exchange.outcomes()
            except DeadError as error:
                await self._in_thread(sandbox.stop)
                if attempt == 2 and not self._closed:
                    raise failed_twice(error) from None
        raise InfrastructureError("the pool was closed")

    async def _acquire(self, seed: int | None) -> int:
        """A free sandbox, or the given one once it is free; first come, first served."""
        if self._closed:
            raise InfrastructureError("the pool was closed")
        if (chosen := self._available(seed)) is not None:
            self._free.remove(chosen)
            return chosen
        waiter: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((seed, waiter))
        self._waiting_peak = max(self._waiting_peak, len(self._waiting))
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._release(waiter.result())  # it had been handed over in the meantime
            raise

    def _available(self, seed: int | None) -> int | None:
        """A sandbox that may begin now: any, or the one of `seed`. Those with the lowest numbers run already."""
        if len(self._sandboxes) - len(self._free) >= self._at_once:
            return None
        return min(self._free) if seed is None else seed if seed in self._free else None

    def _release(self, sandbox: int, run: asyncio.Future[list[Outcome]] | None = None) -> None:
        if run is not None:
            self._running.discard(run)
            if not run.cancelled():
                run.exception()  # seen, even if nobody waits any more
        self._free.add(sandbox)
        for entry in [*self._waiting]:
            seed, waiter = entry
            if waiter.done():
                self._waiting.remove(entry)  # cancelled
            elif (chosen := self._available(seed)) is not None:
                self._waiting.remove(entry)
                self._free.remove(chosen)
                waiter.set_result(chosen)
                return


class SerialPool(_Sandboxes):
    """The same without threads: `execute` blocks and never yields to the event loop; `seed=None` is the first sandbox.

    The hash seeds are drawn from the run's `seed`, so that a run can be repeated. Start it, use it and close it in one
    thread: the sandboxes die with the thread that started them.
    """

    def __init__(
        self, settings: ExecutorSettings, seed: int = 0, *, gate: bool = True, layers: frozenset[Layer] = ALL
    ) -> None:
        super().__init__(settings, seed, gate=gate, layers=layers)

    async def start(self) -> None:
        """Start a sandbox for every worker. If one fails, end the others and raise InfrastructureError."""
        try:
            for sandbox in self._sandboxes[: self._at_once]:
                sandbox.start()
        except InfrastructureError:
            await self.close()
            raise

    async def execute(
        self,
        program: str,
        inputs: Sequence[str],
        seed: int | None = None,
        *,
        limits: Limits | None = None,
        fail_fast: bool = False,
    ) -> list[Outcome]:
        """See `Pool.execute`."""
        return self._sandboxes[seed or 0].execute(program, inputs, limits, fail_fast=fail_fast)

    async def probe(
        self,
        program: str,
        inputs: Sequence[str],
        seed: int | None = None,
        *,
        limits: Limits | None = None,
        stop_at_difference: bool = False,
    ) -> list[Outcome]:
        """See `Pool.probe`."""
        sandbox = self._sandboxes[seed or 0]
        return sandbox.probe(program, inputs, limits, stop_at_difference=stop_at_difference)

    async def inspect(
        self, program: str, *, strip_comments: bool = False, strip_docstrings: bool = False
    ) -> Facts | Outcome:
        """See `Pool.inspect`."""
        request = Request.inspection(program, self._limits, strip_comments, strip_docstrings)
        return facts_of(self._sandboxes[0].answer(request)[0])

    async def close(self) -> None:
        """End and reap every sandbox."""
        for sandbox in self._sandboxes:
            sandbox.close()
