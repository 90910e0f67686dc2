"""The task buffer from another process: requests to the Ray actor that holds the store.

A call of Ray takes both ends about as long as the request itself, and the buffer serves every rollout actor. So an
actor has one call under way at a time, and what its episodes ask for meanwhile goes together in the next one: the
busier the buffer, the fewer calls.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from actors.buffer.task_buffer import Added, NewTask
from actors.labelled import LabelledProgram
from executor.tasks import Task

RETRY_S = 0.2
"""Seconds between two requests to a buffer that starts again."""
PATIENCE_S = 180.0
"""Seconds for which a request is repeated: enough to find that a buffer hangs, end it and start it again."""

MOST_TOGETHER = 64
"""Requests in one call: other actors wait for it."""

Request = tuple[str, tuple[Any, ...]]
"""A method of `actors.buffer.task_buffer.Buffer`, and its arguments."""


class Answer(NamedTuple):
    """What became of one request of several."""

    found: Any
    error: Exception | None = None
    """Raised to the caller of this request alone: it asked for what cannot be."""


class _Asked(NamedTuple):
    request: Request
    answer: asyncio.Future[Any]


class RemoteBuffer:
    """`Buffer` over a Ray actor that holds the store.

    While that actor starts again, requests are made again, for `patience_s` seconds; then what failed them is raised,
    or TimeoutError. One whose answer was lost with the actor may so be carried out twice: a draw is the same again, and
    a task is added once; only an attempt may count twice.
    """

    def __init__(self, handle: Any, patience_s: float = PATIENCE_S) -> None:
        self._handle = handle
        self._patience_s = patience_s
        self._waiting: deque[_Asked] = deque()
        self._calling: asyncio.Task[None] | None = None

    async def references(self, kinds: tuple[str, ...], count: int, seed: str) -> list[tuple[int, Task]]:
        """See `Buffer`."""
        found: list[tuple[int, Task]] = await self._ask_together("references", kinds, count, seed)
        return found

    async def replay(self, kind: str, seed: str) -> tuple[int, Task] | None:
        """See `Buffer`."""
        found: tuple[int, Task] | None = await self._ask_together("replay", kind, seed)
        return found

    async def add(self, new: NewTask) -> Added:
        """See `Buffer`."""
        added: Added = await self._ask_together("add", new)
        return added

    async def record(self, task_id: int, version: int, attempts: int, solved: int) -> None:
        """See `Buffer`."""
        await self._ask_together("record", task_id, version, attempts, solved)

    async def rewarded(self, task_id: int, reward: float) -> None:
        """See `Buffer`."""
        await self._ask_together("rewarded", task_id, reward)

    async def needs_label(self, normal: str, with_message: bool) -> bool:
        """See `Buffer`."""
        needed: bool = await self._ask_together("needs_label", normal, with_message)
        return needed

    async def label(self, program: LabelledProgram) -> None:
        """See `Buffer`."""
        await self._ask_together("label", program)

    async def label_tried(self, normal: str, with_message: bool) -> None:
        """See `Buffer`."""
        await self._ask_together("label_tried", normal, with_message)

    async def ask(self, request: str, *arguments: Any, **named: Any) -> Any:
        """Make any request of the actor."""
        from ray.exceptions import ActorUnavailableError

        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                answer = getattr(self._handle, request).remote(*arguments, **named)
                return await asyncio.wait_for(answer, max(0.0, deadline - time.monotonic()))
            except ActorUnavailableError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(RETRY_S)
            except TimeoutError:
                raise TimeoutError(f"the task buffer did not answer {request!r} for {self._patience_s:.0f} s") from None

    async def _ask_together(self, request: str, *arguments: Any) -> Any:
        """Make a request with those that wait for the call under way."""
        asked = _Asked((request, arguments), asyncio.get_running_loop().create_future())
        self._waiting.append(asked)
        if self._calling is None or self._calling.done():
            self._calling = asyncio.ensure_future(self._call())
        return await asked.answer

    async def _call(self) -> None:
        """Make calls as long as requests wait."""
        while self._waiting:
            together = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST_TOGETHER))]
            together = [asked for asked in together if not asked.answer.done()]  # else its caller was cancelled
            if not together:
                continue
            try:
                answers: Sequence[Answer] = await self.ask("several", [asked.request for asked in together])
            except Exception as error:
                answers = [Answer(None, error)] * len(together)
            for asked, answer in zip(together, answers, strict=True):
                if asked.answer.done():
                    continue
                if answer.error is None:
                    asked.answer.set_result(answer.found)
                else:
                    asked.answer.set_exception(answer.error)
