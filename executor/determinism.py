"""Checks that a program gives the same value again: under other hash seeds, in other memory, for other inputs too.

Every program is run twice. A program that may vary (`may_vary`) is run under every seed of the pool, at least SEEDS: it
uses sets, hashes or addresses, or something that may. A program that draws one of two values then agrees with itself
with a chance of 1 in 2 ** (SEEDS - 1), 0.8%. Two runs alone would let through every second one.

The runs beyond the second also try other inputs, since a program can be sound for its own input and random for all
others. They take all inputs in one child, which costs about one run each.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Sequence

from executor.outcomes import Limits, Outcome, Status, complete
from executor.pool import Pool

MAX_OTHERS = 8
"""Number of other inputs that the runs beyond the second try."""

Same = Callable[[str, str], bool]

# Words without which a program has no set, hash or address, no text that shows one, and does not go on when memory has
# run out, which is sooner in one sandbox than in another. A mistake in the direction of too many costs runs; a word
# that is missing here makes the second run the only check.
_WORDS = re.compile(
    r"\b(?:import|set|frozenset|keys|items|hash|id|object|repr|ascii|str|type|format|format_map|print|getattr"
    r"|MemoryError|Exception|BaseException|finally|__\w+__)\b"
    r"|except\s*:|\.args\b|%(?:\(\w*\))?[-#0+\d.*]*[sra]|!r|(?<!\w)(?:[fF][rR]?|[rR][fF])['\"]"
)
_BRACE = re.compile(r"\{")
_DICTIONARY = re.compile(r"\{\s*(?:\}|(?:'[^'\\\n]*'|\"[^\"\\\n]*\"|(?!lambda\b)[\w.+-]+)\s*:(?!=))")
"""The start of a dictionary: nothing, or one plain key and a colon. All else that begins with a brace may be a set."""


def seeds_for(program: str, inputs: Sequence[str], workers: int, seeds: int) -> list[int]:
    """All `seeds` seeds of a pool, in the order in which a program is run under them.

    Which come first depends on the program and its inputs alone, so that a verdict does not depend on what was judged
    before. The first two are those of sandboxes that run already, whose number is `workers`.
    """
    digest = hashlib.blake2b("\0".join([program, *inputs]).encode("utf-8", "surrogatepass"), digest_size=4).digest()
    first = int.from_bytes(digest, "big") % workers
    order = [first, (first + 1) % workers]
    return order + [seed for seed in range(seeds) if seed not in order]


def may_vary(program: str, inputs: Sequence[str]) -> bool:
    """Whether the text of a program and its inputs shows anything that could differ between two runs.

    By the look of the text: nothing is parsed.
    """
    texts = (program, *inputs)
    return any(
        _WORDS.search(text) is not None or len(_BRACE.findall(text)) != len(_DICTIONARY.findall(text)) for text in texts
    )


async def second_run(
    pool: Pool,
    program: str,
    inputs: Sequence[str],
    first: Sequence[Outcome],
    seed: int,
    same: Same,
    limits: Limits | None = None,
) -> Outcome | None:
    """Run `program` on `inputs` again, under `seed`; None if that agrees with the outcomes `first`, which are all ok.

    Otherwise NONDETERMINISTIC, with a detail that says what differed, or the TIMEOUT or MEMORY of this run. `same`
    compares two canonical values. Raises InfrastructureError.
    """
    second = complete(
        await pool.execute(program, inputs, seed, limits=limits, fail_fast=True), len(inputs), fail_fast=True
    )
    for one, other in zip(first, second, strict=False):
        if other.status in (Status.TIMEOUT, Status.MEMORY):
            return other
        if other.status is not Status.OK or not same(one.value, other.value):
            return _differs(one, other)
    return None


async def further_runs(
    pool: Pool,
    program: str,
    inputs: Sequence[str],
    first: Sequence[Outcome],
    seeds: Sequence[int],
    same: Same,
    limits: Limits | None = None,
) -> Outcome | None:
    """Run `inputs` under each of `seeds`, and compare with `first`, the outcomes (all ok) of the first of them.

    Each takes all inputs in one child. There may be more inputs than outcomes: for those the runs must agree with each
    other. None, or NONDETERMINISTIC. A run that does not get to an input, or has no memory left for it, says nothing.
    Raises InfrastructureError.
    """
    found = await asyncio.gather(*[pool.probe(program, inputs, seed, limits=limits) for seed in seeds])
    for place in range(len(inputs)):
        runs = [outcomes[place] for outcomes in found if place < len(outcomes)]
        runs = [one for one in runs if one.status is not Status.MEMORY]
        # An error at a later input may come of the inputs before it, which are others than in the first run.
        if place < len(first) and (place == 0 or all(one.status is Status.OK for one in runs)):
            runs.insert(0, first[place])
        for other in runs[1:]:
            if other.status is not runs[0].status or not same(runs[0].value, other.value):
                return _differs(runs[0], other)
    return None


def _differs(one: Outcome, other: Outcome) -> Outcome:
    detail = f"{short(one)} in one run, {short(other)} in the other"
    return Outcome(Status.NONDETERMINISTIC, detail=detail, isolated=one.isolated and other.isolated)


def short(outcome: Outcome) -> str:
    """An outcome in up to 60 characters, for people."""
    text = outcome.value if outcome.status is Status.OK else f"{outcome.status.value} {outcome.detail}".strip()
    return text if len(text) <= 60 else text[:57] + "..."
