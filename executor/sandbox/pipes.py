"""The supervisor's ends of a sandbox's three pipes (`frames.py`): send a request, and take what comes back.

A child's statements stay in their pipe until the child has ended, which saves most requests a wake-up. Only where that
takes longer than PATIENCE_S are they read as they come, since a full pipe makes the child wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import time
from typing import Any

from executor.outcomes import DeadError
from executor.sandbox import frames
from executor.sandbox.request import Exchange

PATIENCE_S = 0.002
"""How long statements stay in their pipe, in seconds."""
_PART = 1 << 16
_DIED, _LATE = "the fork server died", "the fork server did not answer in time"
_MAX_REPORT_BYTES = 1 << 16


class Pipes:
    """Three descriptors, which become non-blocking. Whoever made them closes them.

    Every method raises DeadError when the fork server dies or is late.
    """

    def __init__(self, requests: int, replies: int, values: int) -> None:
        self._requests, self._replies, self._values = requests, replies, values
        for fd in (requests, replies, values):
            os.set_blocking(fd, False)
        self._answer: asyncio.Future[None] | None = None

    def report(self, deadline: float) -> dict[str, Any]:
        """What the keeper and the fork server say at their start: a JSON object in a frame. Waits for it, to
        `deadline`."""
        (size,) = frames.LENGTH.unpack(self._read(frames.LENGTH.size, deadline))
        if size > _MAX_REPORT_BYTES:
            raise DeadError("the fork server sent an impossible length")
        report: dict[str, Any] = json.loads(self._read(size, deadline))
        return report

    def exchange(self, exchange: Exchange, timeout_s: float) -> None:
        """Send a request and wait for all of its answer."""
        deadline = time.monotonic() + timeout_s
        self._write(exchange.to_send(), deadline)
        poll = select.poll()
        poll.register(self._replies, select.POLLIN)
        patient = True
        while True:
            wait_s = PATIENCE_S if patient else max(0.0, deadline - time.monotonic())
            ready = [fd for fd, _ in poll.poll(wait_s * 1000)]
            if not ready and not patient:
                raise DeadError(_LATE)
            if not ready:
                patient = False
                poll.register(self._values, select.POLLIN)
            if self._values in ready and not self._take_statements(exchange):
                poll.unregister(self._values)
            if self._replies in ready and self._take_reply(exchange):
                return

    async def exchange_in_loop(self, exchange: Exchange, timeout_s: float) -> None:
        """The same in an event loop. Not to be cancelled: what is under way goes on."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[None] = loop.create_future()
        left = memoryview(exchange.to_send())

        def guarded(step: Any) -> Any:
            def run() -> None:
                if answer.done():
                    return
                try:
                    step()
                except DeadError as error:
                    answer.set_exception(error)

            return run

        def write() -> None:
            nonlocal left
            left = left[self._write_some(left) :]
            if not left:
                loop.remove_writer(self._requests)

        def read_reply() -> None:
            if self._take_reply(exchange):
                answer.set_result(None)

        def read_statements() -> None:
            if not self._take_statements(exchange):
                loop.remove_reader(self._values)

        self._answer = answer
        loop.add_reader(self._replies, guarded(read_reply))
        patience = loop.call_later(PATIENCE_S, lambda: loop.add_reader(self._values, guarded(read_statements)))
        timer = loop.call_later(timeout_s, self.abandon, _LATE)
        guarded(write)()
        if left:
            loop.add_writer(self._requests, guarded(write))
        try:
            await answer
        finally:
            self._answer = None
            patience.cancel()
            timer.cancel()
            loop.remove_reader(self._replies)
            loop.remove_reader(self._values)
            loop.remove_writer(self._requests)

    def abandon(self, why: str) -> None:
        """End an exchange that is under way in this event loop with a DeadError."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(DeadError(why))

    def _take_reply(self, exchange: Exchange) -> bool:
        """Read of the reply. Once it is complete, the child has ended: then also the statements that are still in their
        pipe."""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._replies, _PART)
            if not data:
                raise DeadError(_DIED)
            if exchange.take_reply(data):
                with contextlib.suppress(BlockingIOError):
                    while data := os.read(self._values, _PART):
                        exchange.take_statements(data)
                return True
        return False

    def _take_statements(self, exchange: Exchange) -> bool:
        """Read statements. Returns whether to go on reading: not for a child that has said more than it could have to
        say."""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._values, _PART)
            return bool(data) and exchange.take_statements(data)
        return True

    def _write_some(self, data: memoryview) -> int:
        try:
            return os.write(self._requests, data)
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            raise DeadError(_DIED) from None

    def _write(self, data: bytes, deadline: float) -> None:
        left = memoryview(data)
        while left := left[self._write_some(left) :]:
            _wait(self._requests, select.POLLOUT, deadline)

    def _read(self, size: int, deadline: float) -> bytes:
        data = b""
        while len(data) < size:
            _wait(self._replies, select.POLLIN, deadline)
            with contextlib.suppress(BlockingIOError):
                part = os.read(self._replies, size - len(data))
                if not part:
                    raise DeadError(_DIED)
                data += part
        return data


def _wait(fd: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(fd, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise DeadError(_LATE)
