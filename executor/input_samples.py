"""Random inputs of the same types and about the same size as a given one, to learn more of a program than one pair.

`variants.py` changes an input strongly, to see whether a program uses it. Here the values stay ordinary: small numbers,
words, short lists. They are made from decoded values, outside the sandbox; nothing is parsed or run.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from executor.values import CodecError, canonical_args

MAX_INPUT_BYTES = 1 << 10
"""Largest length of an input that is sampled, and of a given one that gets any."""
_TRIES = 4
"""Draws for each input that is wanted: some come twice."""
_MAX_ITEMS = 8
"""Items of a list or set, and words of a text, from which a sample is hardly longer."""
_WORDS = (
    "apple", "tree", "river", "stone", "green", "house", "seven", "music", "paper", "cloud", "bread", "garden",
    "winter", "Sunday", "tiger", "orange", "window", "little", "yellow", "bird", "cat", "table", "north", "hello",
    "world", "python", "code", "data", "level", "abc", "xyz", "ab", "noon", "Zoe", "Paris", "red", "blue",
)  # fmt: skip


def sample_inputs(args: Sequence[object], count: int, draw: random.Random) -> list[str]:
    """Sample up to `count` canonical inputs of the same number and types as `args`, all different, and from `args` too.

    Fewer where there are no more, as for `None` or a bool; none if `args` are longer than MAX_INPUT_BYTES. A function
    of the arguments and of the state of `draw`.
    """
    given = canonical_args(tuple(args))
    if len(given) > MAX_INPUT_BYTES:
        return []
    found: dict[str, None] = {}
    for _ in range(_TRIES * count):
        if len(found) == count:
            break
        try:
            text = canonical_args(tuple(_sample(value, draw) for value in args))
        except (CodecError, TypeError):  # beyond the budgets; a set of what cannot be in one
            continue
        if text != given and len(text) <= MAX_INPUT_BYTES:
            found[text] = None
    return list(found)


def _sample(value: Any, draw: random.Random) -> Any:
    """A value of the same type."""
    make = _SAMPLE.get(type(value))
    return make(value, draw) if make else value


def _bool(value: bool, draw: random.Random) -> bool:
    return draw.random() < 0.5


def _int(value: int, draw: random.Random) -> int:
    # Up to twice as large, and single digits become ones of two at most; seldom of the other sign.
    size = draw.randint(0, max(12, 2 * abs(value)))
    return size if (value < 0) == (draw.random() < 0.15) else -size


def _float(value: float, draw: random.Random) -> float:
    largest = int(min(max(10.0, 2 * abs(value)), 1e6)) if math.isfinite(value) else 10
    size = draw.randint(0, 4 * largest) / 4
    return size if (value < 0) == (draw.random() < 0.15) else -size


def _str(value: str, draw: random.Random) -> str:
    if value.isdigit():
        return "".join(draw.choice("0123456789") for _ in value)
    chance = draw.random()
    if chance < 0.2 and len(value) > 1:
        return "".join(draw.sample(value, len(value)))
    if chance < 0.3:
        return value[: draw.randint(1, len(value))] if value else draw.choice(_WORDS)
    many = min(_MAX_ITEMS, value.count(" ") + 1)
    count = draw.randint(max(1, many - 1), many + 1) if many > 1 else 1
    return " ".join(draw.choice(_WORDS) for _ in range(count))


def _bytes(value: bytes, draw: random.Random) -> bytes:
    return draw.choice(_WORDS).encode()


def _length(value: Any, draw: random.Random) -> int:
    usual = min(_MAX_ITEMS, len(value))
    return draw.randint(max(0, usual - 2), usual + 2)


def _list(value: list[Any], draw: random.Random) -> list[Any]:
    kinds = value or [draw.choice([1, "word"])]
    return [_sample(draw.choice(kinds), draw) for _ in range(_length(value, draw))]


def _tuple(value: tuple[Any, ...], draw: random.Random) -> tuple[Any, ...]:
    """A tuple is taken for a record: it keeps its length and the types of its places."""
    return tuple(_sample(item, draw) for item in value)


def _set(value: Any, draw: random.Random) -> Any:
    return type(value)(_list(sorted(value, key=repr), draw))


def _dict(value: dict[Any, Any], draw: random.Random) -> dict[Any, Any]:
    kept = [key for key in value if draw.random() < 0.8]
    found = {key: _sample(value[key], draw) for key in kept}
    if value and draw.random() < 0.5:
        key, item = draw.choice(list(value.items()))
        found[_sample(key, draw)] = _sample(item, draw)
    return found


_SAMPLE: dict[type, Callable[[Any, random.Random], Any]] = {
    bool: _bool, int: _int, float: _float, str: _str, bytes: _bytes, list: _list, tuple: _tuple, set: _set,
    frozenset: _set, dict: _dict,
}  # fmt: skip
