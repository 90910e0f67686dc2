"""Many sandboxes: `SandboxPool` for an event loop, `SerialPool` for deterministic single-threaded runs.

Worker i runs under hash seed i + 1, so any two workers differ in the order of their sets and in their addresses.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from executor import frames
from executor.inspection import Facts
from executor.layers import ALL, Layer, Tier
from executor.sandbox import (
    MAX_REPLY_BYTES,
    DeadError,
    InfrastructureError,
    Limits,
    Outcome,
    Request,
    Sandbox,
    Status,
    facts_of,
    failed_twice,
)
from executor.settings import ExecutorSettings

__all__ = ["InfrastructureError", "Limits", "Outcome", "Pool", "PoolStats", "SandboxPool", "SerialPool", "Status"]

MAX_STARTERS = 8
"""Threads that start sandboxes: starting many at once is bound by the cores."""


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
        variants: Sequence[str] = (),
    ) -> list[Outcome]:
        """Run `f` of `program` on every input, all in one sandbox: `worker`, or any that is free.

        `limits` are the settings', unless given; memory may only be less (ValueError). Returns one outcome per input,
        aligned; with `fail_fast` those up to the first that is not ok.

        `variants` are further inputs, run after the others in the same child, whose outcomes follow. They stop at the
        first whose value is not that of the first input, so that most cost one more call; together they get a quarter of
        one input's time. So there may be fewer outcomes of variants than variants, down to none.

        Raises values.CodecError for an input that is not literals, InfrastructureError if the sandbox fails twice.
        """

    async def inspect(
        self, program: str, *, strip_comments: bool = False, strip_docstrings: bool = False
    ) -> Facts | Outcome:
        """What the program's syntax tree says, found in a sandbox; or the outcome where it says nothing.

        ERROR is a program that does not parse; others (a timeout, a crash) may be the machine's. Raises
        InfrastructureError if the sandbox fails twice.
        """

    async def close(self) -> None:
        """End and reap every sandbox. Requests under way fail with InfrastructureError."""


class _Sandboxes:
    """What every pool has: its sandboxes, and what is to be known of them."""

    def __init__(self, settings: ExecutorSettings, *, gate: bool = True, layers: frozenset[Layer] = ALL) -> None:
        self._sandboxes = [Sandbox(settings, index + 1, gate, layers) for index in range(settings.workers)]
        self._limits = Limits.of(settings)
        self._free = set(range(settings.workers))
        self._waiting: deque[tuple[int | None, asyncio.Future[int]]] = deque()
        self._waiting_peak = 0

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


class SandboxPool(_Sandboxes):
    """An async pool: the event loop itself reads and writes the sandboxes' pipes, so that a request costs no thread.

    Starting and stopping block, and are done by a few threads that live as long as the pool does: a sandbox dies with the
    thread that started it, and needs neither signal handlers nor a child watcher. A caller waits while every sandbox is
    busy: the first `settings.queue` of them in a queue, first come, first served, and the rest at the door, before anything
    of theirs is kept here. A cancelled caller's request still runs to its end, and its sandbox is free only then.
    """

    def __init__(self, settings: ExecutorSettings, *, gate: bool = True, layers: frozenset[Layer] = ALL) -> None:
        super().__init__(settings, gate=gate, layers=layers)
        self._door = asyncio.Semaphore(settings.workers + settings.queue)
        self._starters = ThreadPoolExecutor(min(settings.workers, MAX_STARTERS), thread_name_prefix="sandbox-starter")
        self._running: set[asyncio.Future[list[Outcome]]] = set()
        self._replies: set[asyncio.Future[bytes]] = set()
        self._closed = False

    async def start(self) -> None:
        """Start every sandbox. Raises InfrastructureError, with none left running, where one can't be had."""
        starts = [self._in_thread(sandbox.start) for sandbox in self._sandboxes]
        for result in await asyncio.gather(*starts, return_exceptions=True):
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
        variants: Sequence[str] = (),
    ) -> list[Outcome]:
        """See `Pool.execute`."""
        async with self._door:
            limits = limits.within(self._limits) if limits else self._limits
            return await self._answer(Request.of(program, inputs, limits, fail_fast, variants), worker)

    async def inspect(
        self, program: str, *, strip_comments: bool = False, strip_docstrings: bool = False
    ) -> Facts | Outcome:
        """See `Pool.inspect`."""
        async with self._door:
            request = Request.inspection(program, self._limits, strip_comments, strip_docstrings)
            return facts_of((await self._answer(request, None))[0])

    async def _answer(self, request: Request, worker: int | None) -> list[Outcome]:
        chosen = await self._acquire(worker)
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
        for reply in self._replies:
            if not reply.done():
                reply.set_exception(DeadError("the pool was closed"))
        for sandbox in self._sandboxes:
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
                if sandbox.pid is None:
                    await self._in_thread(sandbox.start)
                reply = await self._exchange(sandbox.pipes, request.frame(careful=attempt == 2), request.timeout_s)
                return sandbox.outcomes(request, reply)
            except DeadError as error:
                await self._in_thread(sandbox.stop)
                if attempt == 2 and not self._closed:
                    raise failed_twice(error) from None
        raise InfrastructureError("the pool was closed")

    async def _exchange(self, pipes: tuple[int, int], data: bytes, timeout_s: float) -> bytes:
        """Send a frame and return the frame that answers it, without its length. Raises DeadError."""
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[bytes] = loop.create_future()
        requests, replies = pipes
        left = memoryview(data)
        received = bytearray()

        def fail(why: str) -> None:
            if not reply.done():
                reply.set_exception(DeadError(why))

        def write() -> None:
            nonlocal left
            try:
                left = left[os.write(requests, left) :]
            except BlockingIOError:
                pass
            except BrokenPipeError:
                fail("the fork server died")
            if not left or reply.done():
                loop.remove_writer(requests)

        def read() -> None:
            try:
                part = os.read(replies, 1 << 16)
            except BlockingIOError:
                return
            if not part:
                fail("the fork server died")
                return
            received.extend(part)
            if len(received) >= frames.LENGTH.size:
                (size,) = frames.LENGTH.unpack_from(received)
                if size > MAX_REPLY_BYTES or len(received) > size + frames.LENGTH.size:
                    fail("the fork server sent an impossible frame")
                elif len(received) == size + frames.LENGTH.size and not reply.done():
                    reply.set_result(bytes(received[frames.LENGTH.size :]))

        self._replies.add(reply)
        loop.add_reader(replies, read)
        timer = loop.call_later(timeout_s, fail, "the fork server did not answer in time")
        write()
        if left and not reply.done():
            loop.add_writer(requests, write)
        try:
            return await reply
        finally:
            self._replies.discard(reply)
            timer.cancel()
            loop.remove_reader(replies)
            loop.remove_writer(requests)

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
        if run is not None:
            self._running.discard(run)
            if not run.cancelled():
                run.exception()  # seen, even if nobody waits any more
        for entry in self._waiting:
            wanted, waiter = entry
            if wanted in (None, worker) and not waiter.done():
                self._waiting.remove(entry)
                waiter.set_result(worker)
                return
        self._free.add(worker)


class SerialPool(_Sandboxes):
    """The same without threads: `execute` blocks and never yields to the event loop; `worker=None` is worker 0.

    Start it, use it and close it in one thread: the sandboxes die with the thread that started them.
    """

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
        variants: Sequence[str] = (),
    ) -> list[Outcome]:
        """See `Pool.execute`."""
        return self._sandboxes[worker or 0].execute(program, inputs, limits, fail_fast=fail_fast, variants=variants)

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
