"""Values across the process boundary: tagged JSON, read without trust.

A child encodes what its program returned; the supervisor decodes it. No pickle, no eval. Only exact types of the
interpreter are encoded, by functions of those types and not by a program's: besides the builtin types of a value
(`values.py`), the containers of `collections`, each as the plain value that it is a form of.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable
from typing import Any

from executor.values import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_INT_BITS,
    MAX_NODES,
    BudgetError,
    CodecError,
    Containers,
    LiteralError,
    UnserialisableError,
    type_name,
)

_loads = json.JSONDecoder().decode


def encode(value: object, max_bytes: int = MAX_BYTES) -> str:
    """`value` as tagged JSON in ASCII: scalars as they are, containers as lists that begin with their tag.

    Raises like `canonical`; BudgetError also where the text would be longer than `max_bytes`.
    """
    text = _tagged(value, [MAX_NODES, max_bytes], 0)
    if len(text) > max_bytes:
        raise BudgetError(f"encoding longer than {max_bytes} bytes")
    return text


def decode(text: str, max_bytes: int = MAX_BYTES) -> object:
    """The inverse of `encode`, for text from a process that is not trusted: everything is checked.

    Raises CodecError.
    """
    if len(text) > max_bytes:
        raise BudgetError(f"encoding longer than {max_bytes} bytes")
    try:
        return from_tagged(_loads(text))
    except CodecError:
        raise
    except (ValueError, RecursionError, TypeError) as error:
        raise LiteralError(f"not an encoded value: {type(error).__name__}") from None


def from_tagged(node: object) -> object:
    """The value of an encoding that has been read as JSON already. Raises CodecError, TypeError or ValueError."""
    return _untag(node, [MAX_NODES], Containers(), 0)


_TAGS: dict[Any, str] = {list: "l", tuple: "t", set: "s", frozenset: "f", dict: "d", bytes: "b"}
# JSON makes one character of two surrogates in a row.
_SURROGATES = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_CONSTANT_TEXTS = {None: "null", True: "true", False: "false"}
_quoted = json.encoder.encode_basestring_ascii


def _tagged(value: Any, budget: list[int], depth: int) -> str:
    """`budget` is [nodes left, bytes left]; bytes are counted from below, so that nothing huge is built first."""
    kind: Any = type(value)
    budget[0] -= 1
    budget[1] -= len(value) if kind is str or kind is bytes else 1
    if budget[0] < 0 or budget[1] < 0:
        raise BudgetError("value too large")
    if kind is int:
        if value.bit_length() > MAX_INT_BITS:
            raise BudgetError("integer too large")
        return repr(value)
    if kind is str:
        if not value.isascii() and _SURROGATES.search(value):
            return f'["u","{value.encode("utf-8", "surrogatepass").hex()}"]'
        return _quoted(value)
    if value is None or kind is bool:
        return _CONSTANT_TEXTS[value]
    if kind is float:
        return repr(value) if math.isfinite(value) else json.dumps(value)
    if kind is bytes:
        return f'["b","{value.hex()}"]'
    tag = _TAGS.get(kind)
    if tag is None:
        tag, items = _plain(kind, value)
    else:
        items = value if kind is not dict else [part for pair in value.items() for part in pair]
    if depth >= MAX_DEPTH:
        raise BudgetError(f"nested deeper than {MAX_DEPTH}")
    parts = [f'["{tag}"', *[_tagged(item, budget, depth + 1) for item in items]]
    return ",".join(parts) + "]"


# OrderedDict keeps an order of its own beside that of dict.
_PAIRS: dict[Any, Any] = {Counter: dict.items, defaultdict: dict.items, OrderedDict: OrderedDict.items}


def _plain(kind: Any, value: Any) -> tuple[str, Iterable[object]]:
    """The tag and the items of a container of `collections`: a dict, the list of a deque, the tuple of a named tuple.

    Raises UnserialisableError for any other type.
    """
    if kind in _PAIRS:
        return "d", [part for pair in _PAIRS[kind](value) for part in pair]
    if kind is deque:
        return "l", list(value)
    # A named tuple's class is the program's, so nothing of it is called. Without a metaclass, these are `type`'s own.
    bases = kind.__mro__ if type(kind) is type else ()
    if tuple in bases and any(type(base.__dict__.get("_fields")) is tuple for base in bases):
        return "t", list(tuple.__iter__(value))
    raise UnserialisableError(type_name(value))


def _untag(node: Any, left: list[int], containers: Containers, depth: int) -> object:
    left[0] -= 1
    if left[0] < 0 or depth > MAX_DEPTH:
        raise BudgetError("value too large")
    kind = type(node)
    if kind is int:
        if node.bit_length() > MAX_INT_BITS:
            raise BudgetError("integer too large")
        return node
    if kind is not list:
        if kind is dict:
            raise LiteralError("not an encoded value: object")
        # JSON's NaN is one object; a set may have several.
        return float("nan") if kind is float and math.isnan(node) else node
    if not node:
        raise LiteralError("not an encoded value: no tag")
    tag = node[0]
    if tag == "b" and len(node) == 2:
        return bytes.fromhex(node[1])
    if tag == "u" and len(node) == 2:
        return bytes.fromhex(node[1]).decode("utf-8", "surrogatepass")
    depth += 1
    items = [_untag(item, left, containers, depth) for item in node[1:]]
    if tag == "l":
        return items
    if tag == "t":
        return tuple(items)
    made: Any
    if tag == "d" and len(items) % 2 == 0:
        keys = items[::2]
        made = containers.dict(keys, items[1::2])
    elif tag in {"s", "f"}:
        keys = items
        made = containers.set(items) if tag == "s" else containers.frozenset(items)
    else:
        raise LiteralError("not an encoded value: unknown tag")
    if len(made) < len(keys):
        raise LiteralError("not an encoded value: equal elements or keys")
    return made
