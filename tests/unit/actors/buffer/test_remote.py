"""Requests to the task buffer's process: few calls for many requests, and each answer to its own caller."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from actors.buffer.remote import MOST_TOGETHER, Answer, RemoteBuffer, Request
from tests.examples import examples


class Process:
    """A task buffer that answers `replay` with its seed, and one seed with an error."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        """Requests in each call."""
        self.at_once = self.most_at_once = 0
        self.several = SimpleNamespace(remote=self._several)

    async def _several(self, requests: Sequence[Request]) -> list[Answer]:
        self.calls.append(len(requests))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        for _ in range(5):
            await asyncio.sleep(0)
        self.at_once -= 1
        return [
            Answer(None, KeyError("bad")) if seed == "bad" else Answer((1, f"{kind} {seed}"))
            for _, (kind, seed) in requests
        ]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=200), st.sets(st.integers(0, 199), max_size=20), st.booleans())
@examples(20)
def test_what_is_asked_during_a_call_goes_together_in_the_next_one(
    pauses: list[int], cancelled: set[int], one_is_bad: bool
) -> None:
    """Request i comes `pauses[i]` turns of the loop after the one before it; some callers give up at once."""
    process = Process()

    async def main() -> list[object]:
        remote = RemoteBuffer(process)
        asked = []
        for number, pause in enumerate(pauses):
            for _ in range(pause):
                await asyncio.sleep(0)
            seed = "bad" if one_is_bad and number == 0 else str(number)
            asked.append(asyncio.ensure_future(remote.replay("deduction", seed)))
            if number in cancelled:
                asked[-1].cancel()
        return list(await asyncio.gather(*asked, return_exceptions=True))

    found = asyncio.run(main())
    for number, one in enumerate(found):
        if number in cancelled:
            assert isinstance(one, asyncio.CancelledError)
        elif one_is_bad and number == 0:
            assert isinstance(one, KeyError)
        else:
            assert one == (1, f"deduction {number}")
    assert process.most_at_once <= 1 and max(process.calls, default=0) <= MOST_TOGETHER
    assert sum(process.calls) <= len(pauses)
    if not any(pauses) and not cancelled:
        assert len(process.calls) == -(-len(pauses) // MOST_TOGETHER), "all that waited went together"


def test_a_call_that_fails_fails_each_of_its_requests_and_none_after_it() -> None:
    process = Process()

    async def main() -> None:
        remote = RemoteBuffer(process)
        working, process.several.remote = process.several.remote, failing
        for found in await asyncio.gather(*(remote.replay("k", str(n)) for n in range(3)), return_exceptions=True):
            assert isinstance(found, OSError)
        process.several.remote = working
        assert await remote.replay("k", "4") == (1, "k 4")

    async def failing(requests: Sequence[Request]) -> list[Answer]:
        raise OSError("disk full")

    asyncio.run(main())
