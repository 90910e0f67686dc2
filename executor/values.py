"""Values: their budgets, their canonical text, when two are equal, and sets and dicts that are made in bounded time.

A value is made of exact builtin types: None, bool, int, float, str, bytes, list, tuple, dict, set, frozenset. Text is
read by `literals.py`; `codec.py` takes values across the process boundary.

Canonical text is what `repr` gives, with the elements of sets in a fixed order: `inf` and `nan` are written bare.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any

MAX_BYTES = 1 << 16
"""Default budget of one value's text (readers) or encoding (writers), in bytes."""
MAX_INPUT_BYTES = 16 * MAX_BYTES
"""Budget of an input of at most MAX_BYTES once it is in canonical form or encoded: a control character is one byte as
the model writes it, and six as an escape."""
MAX_NODES = 50_000
MAX_DEPTH = 64
MAX_INT_BITS = 14_000
MAX_HASHED = 10_000
"""Elements of sets and keys of dicts in one value. Numbers can be chosen so that each insertion into the hash table
visits all those before it: the square of this many steps takes a tenth of a second."""
MAX_COLLISIONS = 2_000
"""Elements and keys in one value that differ from another with the same hash: each costs a comparison with all of
those. Honest ones exist: of the powers of two, every 61st has the same hash."""


class CodecError(ValueError):
    """Something that this codec refuses."""


class LiteralError(CodecError):
    """Text that is not a literal."""


class UnserialisableError(CodecError):
    """A value that is not made of exact builtin types."""


class BudgetError(CodecError):
    """A value or a text beyond the budgets."""


class Equality(StrEnum):
    """A rule for when two values are the same answer."""

    TYPE_AWARE = "type_aware"
    """Types agree all the way down: `True`, `1` and `1.0` all differ."""
    PYTHON = "python"
    """`1 == 1.0 == True` and `{1} == frozenset({1})`, as Python has it."""


# ----------------------------------------------------------------------------------------------------- canonical text


def canonical(value: object) -> str:
    """The canonical text of `value`, which `parse_literal` reads back.

    Values of equal canonical text are the same to every program: types, the signs of zeros, and the order of a dict are
    in it, while sets are written in one order. (Thus not every pair that is `equal` has one text: dicts and zeros.)
    Raises UnserialisableError for other than exact builtin types, BudgetError beyond the budgets.
    """
    return _write(value, [MAX_NODES], 0)


def canonical_args(args: tuple[object, ...]) -> str:
    """The canonical text of a call's arguments, which `parse_args` reads back."""
    left = [MAX_NODES]
    return ", ".join([_write(value, left, 0) for value in args])


def gives_back(args: tuple[object, ...], value: str) -> bool:
    """Whether `value`, canonical, is one of the arguments, or the tuple of several."""
    return value in map(canonical, args) or (len(args) > 1 and value == canonical(args))


_REPR: frozenset[Any] = frozenset({str, float, bytes, bool, type(None)})


def _write(value: Any, left: list[int], depth: int) -> str:
    """`left[0]` is the number of nodes that may still be written."""
    kind: Any = type(value)
    left[0] -= 1
    if left[0] < 0:
        raise BudgetError(f"more than {MAX_NODES} values")
    if kind in _REPR:
        return repr(value)
    if kind is int:
        if value.bit_length() > MAX_INT_BITS:
            raise BudgetError("integer too large")
        return repr(value)
    if depth >= MAX_DEPTH:
        raise BudgetError(f"nested deeper than {MAX_DEPTH}")
    depth += 1
    if kind is list:
        return "[" + ", ".join([_write(item, left, depth) for item in value]) + "]"
    if kind is tuple:
        return "(" + ", ".join([_write(item, left, depth) for item in value]) + (",)" if len(value) == 1 else ")")
    if kind is dict:
        pairs = [f"{_write(k, left, depth)}: {_write(v, left, depth)}" for k, v in value.items()]
        return "{" + ", ".join(pairs) + "}"
    if kind is not set and kind is not frozenset:
        raise UnserialisableError(type_name(value))
    # A set's own order is the hash seed's. Elements that have no common order are ordered by their text.
    ordered = len({type(item) for item in value}) == 1 and type(next(iter(value))) in (int, str, bytes)
    texts = [_write(item, left, depth) for item in (sorted(value) if ordered else value)]
    if not ordered:
        texts.sort()
    if not texts:
        return "set()" if kind is set else "frozenset()"
    body = "{" + ", ".join(texts) + "}"
    return body if kind is set else f"frozenset({body})"


def type_name(value: object, _name: Any = type.__dict__["__name__"]) -> str:
    """The name of `value`'s type, through `type`'s own descriptor: a metaclass may define `__name__` as it likes."""
    return str(_name.__get__(type(value)))[:80]


# -------------------------------------------------------------------------------------------------------- equality


def equal(a: object, b: object, mode: Equality | str = Equality.TYPE_AWARE) -> bool:
    """Whether two decoded values are the same. NaN equals NaN; sets and dicts compare without order."""
    return _key(a, Equality(mode)) == _key(b, Equality(mode))


def _key(value: Any, mode: Equality) -> object:
    """A hashable stand-in for `value`: two values are equal exactly when theirs are."""
    kind: Any = type(value)
    if kind is float and math.isnan(value):
        return ("float", "nan")
    python = mode is Equality.PYTHON
    if kind is list or kind is tuple:
        return (kind, tuple([_key(item, mode) for item in value]))
    if kind is set or kind is frozenset:
        return (set if python else kind, _multiset([_key(item, mode) for item in value]))
    if kind is dict:
        return (dict, _multiset([(_key(key, mode), _key(item, mode)) for key, item in value.items()]))
    if python and kind in (int, float, bool):
        return value
    return (kind, value)


def _multiset(keys: list[Any]) -> frozenset[Any]:
    """`keys` without order. Different elements can have equal keys, if there is a NaN in them: then each with its
    number."""
    found = frozenset(keys)
    return found if len(found) == len(keys) else frozenset(Counter(keys).items())


# ------------------------------------------------------------------------------------------------------ sets and dicts


class Containers:
    """Makes the sets and dicts of one value from elements that an adversary may have chosen, in bounded time.

    The hashes of numbers, and of tuples and frozensets of them, are no secret (those of text are), and elements of one
    hash make a set's construction quadratic. Raises BudgetError beyond MAX_HASHED and MAX_COLLISIONS, TypeError for
    elements that have no hash.
    """

    def __init__(self) -> None:
        self._hashed = MAX_HASHED
        self._collisions = MAX_COLLISIONS

    def set(self, items: Sequence[Any]) -> set[Any]:
        """The set of `items`."""
        self._spend(items)
        return set(items)

    def frozenset(self, items: Sequence[Any]) -> frozenset[Any]:
        """The frozenset of `items`."""
        self._spend(items)
        return frozenset(items)

    def dict(self, keys: Sequence[Any], items: Iterable[Any]) -> dict[Any, Any]:
        """The dict of `keys` and as many `items`."""
        self._spend(keys)
        return dict(zip(keys, items, strict=True))

    def _spend(self, keys: Sequence[Any]) -> None:
        self._hashed -= len(keys)
        if self._hashed < 0:
            raise BudgetError(f"more than {MAX_HASHED} elements of sets and keys of dicts")
        if len({hash(key) for key in keys}) == len(keys):
            return
        first: dict[int, Any] = {}
        for key in keys:
            if first.setdefault(hash(key), key) != key:
                self._collisions -= 1
                if self._collisions < 0:
                    raise BudgetError(
                        f"more than {MAX_COLLISIONS} elements of sets and keys of dicts with equal hashes"
                    )
