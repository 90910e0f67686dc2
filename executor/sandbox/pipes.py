"""The supervisor's ends of a sandbox's three pipes (`frames.py`): they send requests and read the answers.

A child's statements stay in their pipe until the child has ended, which saves the supervisor a wake-up for most
requests. Where that takes longer than PATIENCE_S, they are read as they come, since a full pipe would block the child.
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
"""Seconds for which statements stay in their pipe while the child runs."""
_PART = 1 << 16
_DIED, _LATE = "the fork server died", "the fork server did not answer in time"
_MAX_REPORT_BYTES = 1 << 16


class Pipes:
    """Sends requests to a fork server and reads the answers, over three descriptors that it makes non-blocking.

    The caller closes the descriptors. Every method raises DeadError when the fork server dies or is late.
    """

    def __init__(self, requests: int, replies: int, values: int) -> None:
        self._requests, self._replies, self._values = requests, replies, values
        for fd in (requests, replies, values):
            os.set_blocking(fd, False)
        self._answer: asyncio.Future[None] | None = None

    def report(self, deadline: float) -> dict[str, Any]:
        """Read one report, a JSON object, that the keeper or the fork server sends at its start.

        Blocks up to `deadline`, in monotonic seconds.
        """
        (size,) = frames.LENGTH.unpack(self._read(frames.LENGTH.size, deadline))
        if size > _MAX_REPORT_BYTES:
            raise DeadError("the fork server sent an impossible length")
        report: dict[str, Any] = json.loads(self._read(size, deadline))
        return report

    def exchange(self, exchange: Exchange, timeout_s: float) -> None:
        """Send a request and block until its whole answer has been read."""
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
        """Do as `exchange`, in the running event loop. Not to be cancelled: the request would go on in the sandbox."""
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
        """Make the exchange that is under way in the event loop, if any, raise DeadError(`why`)."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(DeadError(why))

    def _take_reply(self, exchange: Exchange) -> bool:
        """Read from the pipe of replies. Returns whether the reply is complete.

        The child has then ended, and the statements that are still in their pipe have been read as well.
        """
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
        """Read statements. Returns whether to go on: no longer at the end of the pipe, or beyond their largest size."""
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
