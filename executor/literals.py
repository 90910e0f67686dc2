"""Literals as text: a reader that accepts nothing else.

It evaluates nothing, and does not use `ast` either: a parser for all of Python can be made to exhaust the stack of the
process that runs it. There are budgets for bytes, values, depth, the size of integers, and hashing.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Sequence
from typing import NoReturn

from executor.newlines import plain_newlines
from executor.values import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_INT_BITS,
    MAX_NODES,
    BudgetError,
    Containers,
    LiteralError,
)

MAX_DIGITS = 4_300
"""Most digits of an integer, the limit of Python itself; MAX_INT_BITS allows fewer."""


_SPACE = re.compile(r"(?:[ \t\n\f]|\\\n|#[^\n]*)*")
_NUMBER = re.compile(
    r"(?P<float>(?:\d(?:_?\d)*\.(?:\d(?:_?\d)*)?|\.\d(?:_?\d)*)(?:[eE][+-]?\d(?:_?\d)*)?"
    r"|\d(?:_?\d)*[eE][+-]?\d(?:_?\d)*)"
    r"|(?P<based>0[xX](?:_?[0-9a-fA-F])+|0[oO](?:_?[0-7])+|0[bB](?:_?[01])+)"
    r"|(?P<int>[1-9](?:_?\d)*|0(?:_?0)*)",
    re.ASCII,
)
_NUMBER_ENDS = re.compile(r"(?![\w.])")
_STRING = re.compile(
    r"(?P<prefix>[rR]?[bB]|[bB][rR]|[rRuU])?"
    r"(?:'''(?P<a>(?:[^\\]|\\[\s\S])*?)'''|\"\"\"(?P<b>(?:[^\\]|\\[\s\S])*?)\"\"\""
    # Three quotes are never an empty string with another one beside it.
    r"|'(?!'')(?P<c>(?:[^'\\\n]|\\[\s\S])*)'|\"(?!\"\")(?P<d>(?:[^\"\\\n]|\\[\s\S])*)\")"
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_WORD = re.compile(r"[A-Za-z_]\w*")
_CONSTANTS = {"None": None, "True": True, "False": False, "inf": math.inf}
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

    Most texts are of this kind, and the C parser of JSON reads them many times faster. What it does not accept, and
    what the two languages could read differently (escapes, both quotes in one text, JSON's own constants), is left to
    `_Reader`.
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
        if "\0" in text or (not text.isascii() and _SURROGATE.search(text)):
            raise LiteralError("a character that no text of a program has")
        self.text = plain_newlines(text)
        self.at = 0
        self.nodes = 0
        self.containers = Containers()

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

    def _braces(self, depth: int, frozen: bool = False) -> object:
        if self._take("}"):
            return {}
        first = self._value(depth)
        if not self._take(":"):
            items = [first]
            if self._take(","):
                items += self._items("}", depth)[0]
            else:
                self._expect("}")
            return self._set(items, frozen)
        keys, items = [first], [self._value(depth)]
        while self._take(","):
            if self._peek() == "}":
                break
            keys.append(self._value(depth))
            self._expect(":")
            items.append(self._value(depth))
        self._expect("}")
        try:
            return self.containers.dict(keys, items)
        except TypeError:
            self._refuse("unhashable key")

    def _set(self, items: Sequence[object], frozen: bool = False) -> object:
        try:
            return self.containers.frozenset(items) if frozen else self.containers.set(items)
        except TypeError:
            self._refuse("unhashable element")

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
                found = unicodedata.lookup(code[2:-1]) if code[0] == "N" else chr(int(code[1:], 16))
                if len(found) == 1:  # some names are those of sequences, which Python's literals don't know
                    return found
            except (ValueError, KeyError, OverflowError):
                pass
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
        if word == "nan":
            self.at = match.end()
            return float("nan")  # a new one each time: a set may have several
        if word not in ("set", "frozenset", "float"):
            self._refuse("not a literal")
        # The calls that stand for values without a literal: set(), frozenset({...}), float('nan'). What they take must
        # begin with a quote or a bracket, so that calls don't nest, and don't count as a level.
        self.at = match.end()
        self._expect("(")
        first = self._peek()
        if word == "frozenset" and first == "{" and depth < MAX_DEPTH:
            # In one step: a set that is made first would count twice against the budgets.
            self.at += 1
            found = self._braces(depth + 1, frozen=True)
            self._expect(")")
            if isinstance(found, frozenset):
                return found
            self._refuse("not a literal form of frozenset")
        if first and first in ("'\"" if word == "float" else "[{()"):
            value = () if first == ")" else self._value(depth)
            self._expect(")")
            if word != "float" and isinstance(value, (list, tuple, set)):
                return self._set(list(value), word == "frozenset")
            if word == "float" and str(value).strip().lower().removeprefix("-") in _NON_FINITE:
                return float(str(value))
        self._refuse(f"not a literal form of {word}")
