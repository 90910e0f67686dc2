"""The task buffer from another process: requests to the Ray actor that holds the store."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from actors.buffer.task_buffer import Added, NewTask
from executor.tasks import Task

RETRY_S = 0.2
"""Seconds between two requests to a buffer that starts again."""
PATIENCE_S = 180.0
"""Seconds for which a request is repeated: enough to find that a buffer hangs, end it and start it again."""


class RemoteBuffer:
    """`Buffer` over a Ray actor that holds the store.

    While that actor starts again, requests are made again, for `patience_s` seconds; then what failed them is raised,
    or TimeoutError. One whose answer was lost with the actor may so be carried out twice: a draw is the same again, and
    a task is added once; only an attempt may count twice.
    """

    def __init__(self, handle: Any, patience_s: float = PATIENCE_S) -> None:
        self._handle = handle
        self._patience_s = patience_s

    async def references(self, kinds: tuple[str, ...], count: int, seed: str) -> list[tuple[int, Task]]:
        """See `Buffer`."""
        found: list[tuple[int, Task]] = await self.ask("references", kinds, count, seed)
        return found

    async def replay(self, kind: str, seed: str) -> tuple[int, Task] | None:
        """See `Buffer`."""
        found: tuple[int, Task] | None = await self.ask("replay", kind, seed)
        return found

    async def add(self, new: NewTask) -> Added:
        """See `Buffer`."""
        added: Added = await self.ask("add", new)
        return added

    async def record(self, task_id: int, version: int, attempts: int, solved: int) -> None:
        """See `Buffer`."""
        await self.ask("record", task_id, version, attempts, solved)

    async def rewarded(self, task_id: int, reward: float) -> None:
        """See `Buffer`."""
        await self.ask("rewarded", task_id, reward)

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
