"""Sampling for episodes: one engine, and names for requests and draws that make a run repeat by its seed."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from actors.engine.generation import Completion, Engine, Sampling
from actors.prompt_builder import Prompt, PromptBuilder
from actors.settings import SelfPlaySettings

T = TypeVar("T")


@dataclass(frozen=True)
class Identity:
    """The actor that plays, as every trajectory names it."""

    run_id: str
    actor_id: str
    incarnation: int


class Sampler:
    """Samples responses for the proposer and the solver of one actor: engine, prompts, seed and counts."""

    def __init__(
        self,
        engine: Engine,
        settings: SelfPlaySettings,
        identity: Identity,
        seed: int | None,
        prompts: PromptBuilder | None = None,
    ) -> None:
        """`seed`: makes every draw and sample a function of it and of the slot; None leaves sampling to the engine.
        `prompts`: in place of those that the engine's tokenizer makes."""
        self.settings = settings
        self.identity = identity
        self.prompts = prompts or PromptBuilder(
            engine.tokenizer, settings.prompt_format, settings.max_prompt_tokens, settings.induction_inputs
        )
        self.counts: Counter[str] = Counter()
        """Counts of texts that did not fit: `prompts_too_long` (drawn again), `references_left_out`, `tasks_too_long`
        (refused); and others, which `episodes.COUNTED` lists."""
        self._engine = engine
        self._seed = seed

    async def generate(self, prompt: Prompt, max_tokens: int, name: str) -> Completion:
        """Sample one response. `name`: unique among this actor's requests; the response is a function of it and the
        seed."""
        sampling = Sampling(
            max_tokens=max_tokens,
            temperature=self.settings.temperature,
            stop=prompt.stop,
            seed=None if self._seed is None else hash_seed(self._seed, name),
        )
        return await self._engine.generate(prompt.token_ids, sampling, f"{self.identity.incarnation}-{name}")

    def salt(self, number: int | str, what: str) -> str:
        """The seed of a draw from the buffer."""
        return f"{self._seed or 0}/{number}/{what}"

    def draw(self, number: int | str, what: str) -> int:
        """A pseudo-random integer from 0 to 2**63 - 1: a function of the seed, `number` and `what`."""
        return hash_seed(self._seed or 0, f"{number}/{what}")


def hash_seed(seed: int, name: str) -> int:
    """A seed of 63 bits from `seed` and `name`, the same in every process."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


async def together(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run coroutines concurrently; results in order. The first failure cancels the rest and is raised as it is."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
