"""Variants of an input: other inputs of the same types, to see whether a program's value depends on its input.

They are made from decoded values, outside the sandbox. The changes are strong ones (negated, zero, empty, reversed,
longer), because many programs answer yes or no, and a small step seldom changes that. Strings and integers from the
program's text are tried too, because a program often compares its input with them. Regular expressions find them;
nothing is parsed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from executor.values import CodecError, canonical_args

MAX_VARIANTS = 20
"""Largest number of variants of one input. Most programs give another value for the first, and run no more."""
MAX_VARIANT_BYTES = 1 << 10
"""Largest length of a variant, and of an input that gets any: longer ones would take too long."""
_LAYERS = 16
"""Number of changes of each argument that are tried."""
_DEPTH = 2
"""Deepest level of a nested value whose elements change: each level makes all changes of all its elements."""


_STRING = re.compile(r"'([^'\\\n]{1,40})'|\"([^\"\\\n]{1,40})\"")
_INTEGER = re.compile(r"(?<![\w.])\d{1,9}(?![\w.])", re.ASCII)
_MAX_TEXT = 1 << 13
"""Characters of a program in which literals are looked for."""


@dataclass(frozen=True)
class _Hints:
    """Literals from a program's text that it may compare its input with."""

    strings: tuple[str, ...]
    integers: tuple[int, ...]

    @classmethod
    def of(cls, program: str) -> _Hints:
        text = program[:_MAX_TEXT]
        strings = dict.fromkeys(match[1] or match[2] for match in _STRING.finditer(text))
        integers = dict.fromkeys(int(match[0]) for match in _INTEGER.finditer(text))
        return cls(tuple(strings)[:3], tuple(integers)[:3])


def variants(args: Sequence[object], program: str = "") -> list[str]:
    """Make up to MAX_VARIANTS canonical inputs of the same number and types as `args`, all different.

    Those with every argument changed come first, then those with one. Empty if nothing can be changed, as with `None`
    alone, or if `args` are too long.
    """
    given = canonical_args(tuple(args))
    if len(given) > MAX_VARIANT_BYTES:
        return []
    hints = _Hints.of(program)
    changes = [_changes(value, 0, hints) for value in args]
    together = [
        [_pick(found, layer, value) for found, value in zip(changes, args, strict=True)] for layer in range(_LAYERS)
    ]
    single = [
        [*args[:place], found[layer], *args[place + 1 :]]
        for layer in range(_LAYERS)
        for place, found in enumerate(changes)
        if layer < len(found) and len(args) > 1
    ]
    # With several arguments, some of both.
    kept = together[: MAX_VARIANTS // 2] + single[: MAX_VARIANTS // 2] + together[MAX_VARIANTS // 2 :]
    found: dict[str, None] = {}
    for one in kept:
        try:
            text = canonical_args(tuple(one))
        except CodecError:
            continue  # beyond the budgets
        if text != given and len(text) <= MAX_VARIANT_BYTES:
            found[text] = None
    return list(found)[:MAX_VARIANTS]


def _pick(found: list[Any], layer: int, value: object) -> object:
    """The `layer`-th change, or the last one, so that other arguments that have more changes go on with theirs."""
    return found[min(layer, len(found) - 1)] if found else value


def _changes(value: Any, depth: int, hints: _Hints) -> list[Any]:
    """Other values of the same type, in the order in which they are worth trying."""
    make = _CHANGES.get(type(value))
    if make is None or depth > _DEPTH:
        return []
    return make(value, depth, hints)


def _times(value: Sequence[object]) -> int:
    """Number of repetitions that make a long value."""
    return min(40, 400 // (len(value) or 1) + 2)


def _bool(value: bool, depth: int, hints: _Hints) -> list[bool]:
    return [not value]


def _int(value: int, depth: int, hints: _Hints) -> list[int]:
    # One step and a large one, both signs, zero.
    steps = [value + 1, -value if value else -7, 0 if value else 12, value - 1, 3 * value + 9876]
    return [*steps, *hints.integers, *[number + 1 for number in hints.integers], 2, -1 - abs(value), 1]


def _float(value: float, depth: int, hints: _Hints) -> list[float]:
    steps = [value + 1.0, -value if value else -7.5, 0.0 if value else 0.5, value * 2.0, value + 1000.25]
    return [*steps, *map(float, hints.integers), *[number + 0.5 for number in hints.integers], value / 3.0, -1.5, 1.0]


def _str(value: str, depth: int, hints: _Hints) -> list[str]:
    other = "".join(chr(ord(letter) + 1) if letter.isascii() and letter.isalnum() else letter for letter in value)
    steps = [f"{value}a1", value[::-1], "", value[1:], value.swapcase()]
    own = [text for hint in hints.strings for text in (hint, f"{value}{hint}")]
    return [*steps, *own, other, f"Zebras {value} {other}!", value * _times(value), "Level 7"]


def _bytes(value: bytes, depth: int, hints: _Hints) -> list[bytes]:
    own = [hint.encode("utf-8", "replace") for hint in hints.strings]
    return [value + b"a1", value[::-1], b"", value[1:], value.swapcase(), *own, value * _times(value)]


def _list(value: Any, depth: int, hints: _Hints) -> list[Any]:
    """Changes of a list or a tuple. A tuple within another value is a record: it keeps its length."""
    kind = type(value)
    if not value:
        return [
            kind([1]),
            kind([3, -2, 5]),
            kind(["a", "b"]),
            *[kind([hint]) for hint in (*hints.strings, *hints.integers)],
        ]
    columns = [_changes(item, depth + 1, hints) for item in value]
    deepest = max(map(len, columns))
    layers = range(max(1, min(_LAYERS, deepest)))
    mapped = [kind([_pick(found, layer, item) for found, item in zip(columns, value, strict=True)]) for layer in layers]
    if kind is tuple and depth:
        return mapped
    last = kind([*value[:-1], _pick(columns[-1], 0, value[-1])])
    ends = [value + mapped[0], value + value[:1], last, value[:1], *([] if depth else [value * _times(value)])]
    return [mapped[0], value[::-1], value[:0], value[1:], *mapped[1:3], *ends, *mapped[3:]]


def _set(value: Any, depth: int, hints: _Hints) -> list[Any]:
    """Changes of a set or a frozenset."""
    kind = type(value)
    items = sorted(value, key=repr)
    return [kind(changed) for changed in _list(items, depth, hints)]


def _dict(value: dict[Any, Any], depth: int, hints: _Hints) -> list[Any]:
    if not value:
        return [{1: 2}, {"a": 1}, *[{hint: 1} for hint in (*hints.strings, *hints.integers)]]
    keys, items = list(value), list(value.values())
    columns = [_changes(item, depth + 1, hints) for item in items]
    mapped = [
        dict(zip(keys, [_pick(found, layer, item) for found, item in zip(columns, items, strict=True)], strict=True))
        for layer in range(6)
    ]
    other_keys = [_pick(_changes(key, depth + 1, hints), 0, key) for key in keys]
    rest: dict[Any, Any] = dict(list(value.items())[1:])
    own: tuple[Any, ...] = hints.strings if type(keys[0]) is str else hints.integers
    return [
        mapped[0], rest, {}, mapped[1], dict(zip(other_keys, items, strict=True)),
        *[{**value, hint: items[0]} for hint in own], dict(zip(keys, items[::-1], strict=True)),
        {**value, **dict(zip(other_keys, mapped[0].values(), strict=True))}, *mapped[2:],
    ]  # fmt: skip


_CHANGES: dict[type, Callable[[Any, int, _Hints], list[Any]]] = {
    bool: _bool, int: _int, float: _float, str: _str, bytes: _bytes, list: _list, tuple: _list, set: _set,
    frozenset: _set, dict: _dict,
}  # fmt: skip
