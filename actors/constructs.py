"""Python constructs that a proposer is asked to use (`selfplay.constructs`), so that its programs differ.

A small model that is only shown two programs writes a third one like them. Named constructs move it elsewhere: each
prompt names others, and says of the examples which ones they use. The list is Python's own vocabulary, no set of tasks.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from itertools import islice

_FUNCTIONS = (
    "abs", "all", "any", "bool", "divmod", "enumerate", "float", "int", "len", "list", "map", "max", "min", "range",
    "reversed", "round", "set", "sorted", "str", "sum", "tuple", "zip",
)  # fmt: skip
_METHODS = (
    "append", "capitalize", "count", "endswith", "extend", "find", "get", "index", "insert", "isalpha", "isdigit",
    "items", "join", "keys", "lower", "pop", "replace", "split", "startswith", "strip", "swapcase", "title", "upper",
    "values",
)  # fmt: skip
_SYNTAX = (
    "+", "-", "*", "//", "%", "**", "<", ">", "==", "and", "in", "not", "or", "if", "else", "for", "while", "[0]",
    "[-1]", "[1:]", "[::-1]",
)  # fmt: skip
CONSTRUCTS = (*_FUNCTIONS, *_METHODS, *_SYNTAX)
"""Builtin functions, methods of text, lists and dictionaries, operators, and parts of statements."""


def uses(program: str, construct: str) -> bool:
    """Whether the text of `program`, below its first line, contains `construct`, as a word where it is one. Nothing is
    parsed, so a word in a text or a comment counts, too."""
    body = program.partition("\n")[2]
    if construct == "*":
        return re.search(r"(?<!\*)\*(?!\*)", body) is not None
    return re.search(rf"\b{construct}\b", body) is not None if construct.isalpha() else construct in body


def used(program: str, count: int | None = None) -> list[str]:
    """The constructs that `program` uses, in the order of `CONSTRUCTS`; the first `count` of them, or all for None."""
    return list(islice((construct for construct in CONSTRUCTS if uses(program, construct)), count))


def draw_constructs(count: int, seed: int) -> tuple[str, ...]:
    """`count` different constructs, uniformly drawn; a function of `seed`. All of them where `count` is larger."""
    return tuple(random.Random(seed).sample(CONSTRUCTS, min(count, len(CONSTRUCTS))))


def asked_for(program: str, count: int, draw: random.Random) -> tuple[str, ...]:
    """Up to `count` constructs that `program` uses: those that a prompt may have asked for."""
    found = used(program) if count else []
    return tuple(draw.sample(found, min(count, len(found))))


def named(constructs: Sequence[str]) -> str:
    """`constructs` as part of a sentence, such as "`len`, `for` and `+`"."""
    marked = [f"`{construct}`" for construct in constructs]
    return " and ".join(part for part in (", ".join(marked[:-1]), *marked[-1:]) if part)
