"""Values as text: a literal-only reader, the canonical writer, equality, and the codec of the process boundary.

A value is made of exact builtin types: None, bool, int, float, str, bytes, list, tuple, dict, set, frozenset. Nothing
here evaluates anything: no eval, no pickle, and no `ast` either, because a parser for all of Python can be made to
exhaust the stack of the process that runs it. Every reader has budgets for bytes, nodes, depth and integer size.

Canonical text is what `repr` gives, with the elements of sets in a fixed order: `inf` and `nan` are written bare.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable
from enum import StrEnum
from typing import Any, NoReturn

MAX_BYTES = 1 << 16
"""Default budget of one value's text (readers) or encoding (writers), in bytes."""
MAX_INPUT_BYTES = 16 * MAX_BYTES
"""Budget of an input of at most MAX_BYTES once it is in canonical form or encoded: a control character is one byte as
the model writes it, and six as an escape."""
MAX_NODES = 50_000
MAX_DEPTH = 64
MAX_INT_BITS = 14_000
MAX_DIGITS = 4_300
"""What Python converts by default; MAX_INT_BITS are fewer."""


class CodecError(ValueError):
    """Something that this codec refuses."""


class LiteralError(CodecError):
    """Text that is not a literal."""


class UnserialisableError(CodecError):
    """A value that is not made of exact builtin types."""


class BudgetError(CodecError):
    """A value or a text beyond the budgets."""


class Equality(StrEnum):
    """When two values are the same answer."""

    TYPE_AWARE = "type_aware"
    """Types agree all the way down: `True`, `1` and `1.0` all differ."""
    PYTHON = "python"
    """`1 == 1.0 == True` and `{1} == frozenset({1})`, as Python has it."""


# ------------------------------------------------------------------------------------------------ reading literals

_SPACE = re.compile(r"(?:[ \t\n\f]|\\\n|#[^\n]*)*")
_NUMBER = re.compile(
    r"(?P<float>(?:\d(?:_?\d)*\.(?:\d(?:_?\d)*)?|\.\d(?:_?\d)*)(?:[eE][+-]?\d(?:_?\d)*)?|\d(?:_?\d)*[eE][+-]?\d(?:_?\d)*)"
    r"|(?P<based>0[xX](?:_?[0-9a-fA-F])+|0[oO](?:_?[0-7])+|0[bB](?:_?[01])+)"
    r"|(?P<int>[1-9](?:_?\d)*|0(?:_?0)*)",
    re.ASCII,
)
_NUMBER_ENDS = re.compile(r"(?![\w.])")
_STRING = re.compile(
    r"(?P<prefix>[rR]?[bB]|[bB][rR]|[rRuU])?"
    r"(?:'''(?P<a>(?:[^\\]|\\[\s\S])*?)'''|\"\"\"(?P<b>(?:[^\\]|\\[\s\S])*?)\"\"\""
    r"|'(?P<c>(?:[^'\\\n]|\\[\s\S])*)'|\"(?P<d>(?:[^\"\\\n]|\\[\s\S])*)\")"
)
_WORD = re.compile(r"[A-Za-z_]\w*")
_CONSTANTS = {"None": None, "True": True, "False": False, "inf": math.inf, "nan": math.nan}
_NON_FINITE = ("inf", "infinity", "nan")
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|N\{[^}]*\}|[0-7]{1,3}|[\s\S])")
_SIMPLE_ESCAPES = {
    "\n": "", "\\": "\\", "'": "'", '"': '"', "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r",
    "t": "\t", "v": "\v",
}  # fmt: skip


def parse_literal(text: str, max_bytes: int = MAX_BYTES) -> object:
    """The value of one literal, which may span lines. `1, 2` is a tuple, as in Python.

    Raises LiteralError for anything but a literal, BudgetError beyond the budgets.
    """
    items = _read_simple(text, max_bytes)
    if items is not None:
        return items[0] if len(items) == 1 else tuple(items)
    items, is_tuple = _Reader(text, max_bytes).read_top()
    return tuple(items) if is_tuple else items[0]


def parse_args(text: str, max_bytes: int = MAX_BYTES) -> tuple[object, ...]:
    """The arguments of a call, from the text between its parentheses: `1, [2]` is two, `(1, 2)` is one tuple.

    Raises like `parse_literal`; an empty text is a LiteralError.
    """
    items = _read_simple(text, max_bytes)
    return tuple(_Reader(text, max_bytes).read_top()[0] if items is None else items)


_SIMPLE_BYTES = 4000
"""Too few for an integer beyond MAX_INT_BITS or for MAX_NODES values."""
_SIMPLE = re.compile(r"(?:[0-9eE \t\n,:\[\]{}.+'\"-]|True|False|None)*")
_loads = json.JSONDecoder().decode


def _read_simple(text: str, max_bytes: int) -> list[object] | None:
    """The items of a short text that is JSON but for its quotes and the names of its constants; None for any other.

    Most texts are of this kind, and the C parser of JSON reads them many times faster. What it does not accept, and what
    the two languages could read differently (escapes, both quotes in one text, JSON's own constants), is left to `_Reader`.
    """
    if len(text) > min(max_bytes, _SIMPLE_BYTES) or not text.isascii() or "\\" in text:
        return None
    quote = "'" if '"' not in text else '"'
    parts = text.split(quote)  # inside a string at every other one
    outside = quote.join(parts[::2])
    if (quote == '"' and "'" in text) or not _SIMPLE.fullmatch(outside):
        return None
    if outside.count("[") + outside.count("{") >= MAX_DEPTH:
        return None
    if "e" in outside or "N" in outside:
        outside = outside.replace("True", "true").replace("False", "false").replace("None", "null")
        parts[::2] = outside.split(quote)
    try:
        items: list[object] = _loads("[" + '"'.join(parts) + "]")
    except ValueError:
        return None
    return items or None


class _Reader:
    """A recursive-descent reader of literals over one text; recursion is bounded by MAX_DEPTH."""

    def __init__(self, text: str, max_bytes: int) -> None:
        if len(text) > max_bytes or len(text.encode("utf-8", "surrogatepass")) > max_bytes:
            raise BudgetError(f"text longer than {max_bytes} bytes")
        self.text = text.replace("\r\n", "\n").replace("\r", "\n")
        self.at = 0
        self.nodes = 0

    def read_top(self) -> tuple[list[object], bool]:
        """Items separated by commas up to the end of the text, and whether there was a comma."""
        items, comma = self._items("")
        if not items:
            self._refuse("empty")
        return items, comma

    def _refuse(self, why: str) -> NoReturn:
        raise LiteralError(f"{why} at character {self.at}")

    def _peek(self) -> str:
        """Skip white space and comments; the next character, or "" at the end."""
        self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]  # it matches the empty string
        return self.text[self.at : self.at + 1]

    def _take(self, character: str) -> bool:
        found = self._peek() == character
        self.at += found
        return found

    def _expect(self, character: str) -> None:
        if not self._take(character):
            self._refuse(f"expected {character!r}")

    def _items(self, end: str, depth: int = 0) -> tuple[list[object], bool]:
        """Values up to `end` ("" is the end of the text), which is consumed, and whether a comma was among them."""
        items: list[object] = []
        comma = False
        while self._peek() != end:
            items.append(self._value(depth))
            more = self._take(",")
            comma = comma or more
            if not more:
                break
        if self._peek() != end:
            self._refuse(f"expected {end!r}" if end else "unexpected text")
        self.at += len(end)
        return items, comma

    def _value(self, depth: int) -> object:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise BudgetError(f"more than {MAX_NODES} values")
        character = self._peek()
        if depth >= MAX_DEPTH and character and character in "[({":
            raise BudgetError(f"nested deeper than {MAX_DEPTH}")
        if character == "[":
            self.at += 1
            return self._items("]", depth + 1)[0]
        if character == "(":
            self.at += 1
            items, comma = self._items(")", depth + 1)
            return tuple(items) if comma or not items else items[0]
        if character == "{":
            self.at += 1
            return self._braces(depth + 1)
        if character and character in "+-":
            return self._signed(depth)
        if character and character in "0123456789.":
            return self._number()
        if _STRING.match(self.text, self.at):
            return self._strings()
        return self._word(depth)

    def _braces(self, depth: int) -> object:
        if self._take("}"):
            return {}
        first = self._value(depth)
        if not self._take(":"):
            items = [first]
            if self._take(","):
                items += self._items("}", depth)[0]
            else:
                self._expect("}")
            return self._hashed(set, items)
        pairs = [(first, self._value(depth))]
        while self._take(","):
            if self._peek() == "}":
                break
            key = self._value(depth)
            self._expect(":")
            pairs.append((key, self._value(depth)))
        self._expect("}")
        return self._hashed(dict, pairs)

    def _hashed(self, make: Any, items: Any) -> object:
        try:
            return make(items)
        except TypeError:
            self._refuse("unhashable element or key")

    def _signed(self, depth: int) -> object:
        negative = False
        while self._peek() in ("+", "-"):
            negative ^= self.text[self.at] == "-"
            self.at += 1
        value = self._number() if self._peek().isdecimal() or self._peek() == "." else self._word(depth)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self._refuse("a sign before something that is not a number")
        return -value if negative else value

    def _number(self) -> int | float:
        match = _NUMBER.match(self.text, self.at)
        if match is None or not _NUMBER_ENDS.match(self.text, match.end()):
            self._refuse("malformed number")
        self.at = match.end()
        kind, digits = match.lastgroup, match[0]
        if kind == "float":
            return float(digits)
        # Checked before the conversion, whose cost is quadratic.
        value = int(digits, 0 if kind == "based" else 10) if len(digits) <= MAX_DIGITS else None
        if value is None or value.bit_length() > MAX_INT_BITS:
            raise BudgetError("integer too large")
        return value

    def _strings(self) -> str | bytes:
        """One string literal, or several side by side, which Python joins."""
        parts: list[str | bytes] = []
        while match := _STRING.match(self.text, self.at):
            prefix = (match["prefix"] or "").lower()
            body = next(group for group in match.group("a", "b", "c", "d") if group is not None)
            is_bytes = "b" in prefix
            if is_bytes and not body.isascii():
                self._refuse("bytes literal with a character beyond ASCII")
            decoded = body if "r" in prefix else _ESCAPE.sub(lambda m, b=is_bytes: self._escape(m, b), body)
            parts.append(decoded.encode("latin-1") if is_bytes else decoded)
            self.at = match.end()
            self._peek()
        if len({type(part) for part in parts}) > 1:
            self._refuse("str and bytes side by side")
        return b"".join(parts) if isinstance(parts[0], bytes) else "".join(parts)  # type: ignore[arg-type]

    def _escape(self, match: re.Match[str], is_bytes: bool) -> str:
        code = match[1]
        if code in _SIMPLE_ESCAPES:
            return _SIMPLE_ESCAPES[code]
        if code[0] in "01234567":
            number = int(code, 8)
            return chr(number & 0xFF) if is_bytes else chr(number)
        if code[0] == "x" or (code[0] in "uUN" and not is_bytes):
            try:
                return unicodedata.lookup(code[2:-1]) if code[0] == "N" else chr(int(code[1:], 16))
            except (ValueError, KeyError, OverflowError):
                self._refuse("malformed escape sequence")
        return match[0]  # an unknown escape stands for itself, as in Python

    def _word(self, depth: int) -> object:
        match = _WORD.match(self.text, self.at)
        if match is None:
            self._refuse("not a literal")
        word = match[0]
        if word in _CONSTANTS:
            self.at = match.end()
            return _CONSTANTS[word]
        if word not in ("set", "frozenset", "float"):
            self._refuse("not a literal")
        # The calls that stand for values without a literal: set(), frozenset({...}), float('nan'). What they take must
        # begin with a quote or a bracket, so that calls don't nest, and don't count as a level.
        self.at = match.end()
        self._expect("(")
        first = self._peek()
        if first and first in ("'\"" if word == "float" else "[{()"):
            value = () if first == ")" else self._value(depth)
            self._expect(")")
            if word != "float" and isinstance(value, (list, tuple, set)):
                return self._hashed(set if word == "set" else frozenset, value)
            if word == "float" and str(value).strip().lower().removeprefix("-") in _NON_FINITE:
                return float(str(value))
        self._refuse(f"not a literal form of {word}")


# ------------------------------------------------------------------------------------------------- writing literals


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
        # With the length, because two NaN elements have one key.
        return (set if python else kind, len(value), frozenset([_key(item, mode) for item in value]))
    if kind is dict:
        pairs = [(_key(key, mode), _key(item, mode)) for key, item in value.items()]
        return (dict, len(value), frozenset(pairs))
    if python and kind in (int, float, bool):
        return value
    return (kind, value)


# ---------------------------------------------------------------------------------- crossing the process boundary


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
    return _untag(node, [MAX_NODES], 0)


_TAGS: dict[Any, str] = {list: "l", tuple: "t", set: "s", frozenset: "f", dict: "d", bytes: "b"}
_MAKERS: dict[str, Callable[[list[object]], object]] = {"t": tuple, "s": set, "f": frozenset}
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
        return _quoted(value)
    if value is None or kind is bool:
        return _CONSTANT_TEXTS[value]
    if kind is float:
        return repr(value) if math.isfinite(value) else json.dumps(value)
    if kind is bytes:
        return f'["b","{value.hex()}"]'
    if kind not in _TAGS:
        raise UnserialisableError(type_name(value))
    if depth >= MAX_DEPTH:
        raise BudgetError(f"nested deeper than {MAX_DEPTH}")
    items = value if kind is not dict else [part for pair in value.items() for part in pair]
    parts = [f'["{_TAGS[kind]}"', *[_tagged(item, budget, depth + 1) for item in items]]
    return ",".join(parts) + "]"


def _untag(node: Any, left: list[int], depth: int) -> object:
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
        return node
    if not node:
        raise LiteralError("not an encoded value: no tag")
    tag = node[0]
    if tag == "b" and len(node) == 2:
        return bytes.fromhex(node[1])
    depth += 1
    items = [_untag(item, left, depth) for item in node[1:]]
    if tag == "l":
        return items
    if tag == "d" and len(items) % 2 == 0:
        return dict(zip(items[::2], items[1::2], strict=True))
    if type(tag) is not str or tag not in _MAKERS:
        raise LiteralError("not an encoded value: unknown tag")
    return _MAKERS[tag](items)
