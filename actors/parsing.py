"""Reading replies: fenced blocks out of model text, and what they say.

Accepts what a person would accept without guessing: any fence length, any line ending, names in any case, `py` for
`python`, `inputs` for `input`, a last block that the stop string or the model left open, and an input that is written
as the call, `f(1, 2)`. A block says what its name says and nothing else: words before a value (`Output: 3`), several
values, or a block without a name are refused, since one would have to choose what was meant, and a proposer could learn
to live on that.

Nothing of the content is evaluated here; that is the executor's business.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Literal, NamedTuple

_ALIASES = {"py": "python", "py3": "python", "python3": "python", "inputs": "input", "outputs": "output"}
_NAMES = ("python", "input", "output", "message", *_ALIASES)
_OPENING = re.compile(r"^[ \t]*(`{3,})[ \t]*([A-Za-z_]*[0-9]?)[^\n`]*$", re.MULTILINE)
_OPENING_NAMED = re.compile(rf"^[ \t]*(`{{3,}})[ \t]*(?:{'|'.join(_NAMES)})\d*\b[^\n`]*$", re.MULTILINE | re.IGNORECASE)
_CALL = re.compile(r"f\s*\((.*)\)", re.DOTALL)
_ANSWER = re.compile(r"<(/?)answer>", re.IGNORECASE)


class FormatError(StrEnum):
    """Why a reply could not be read."""

    NO_ANSWER = "no_answer"
    """`r1`: no <answer>."""
    NO_PROGRAM = "no_program"
    NO_INPUT = "no_input"
    TOO_FEW_INPUTS = "too_few_inputs"
    NO_MESSAGE = "no_message"
    NO_OUTPUT = "no_output"
    EMPTY = "empty"
    """The block that is asked for holds nothing."""


class Block(NamedTuple):
    """One fenced block; `name` in lower case, aliases resolved, "" where the fence had none."""

    name: str
    text: str


def blocks(text: str) -> list[Block]:
    """Fenced blocks in order. A block ends at a fence at least as long as its opening one, or at the end of the
    text."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    found = []
    position = 0
    while opening := _OPENING.search(text, position):
        fence, name = opening.group(1), opening.group(2).lower()
        closing = re.compile(rf"^[ \t]*`{{{len(fence)},}}[ \t]*$", re.MULTILINE).search(text, opening.end())
        # A block that was not closed ends where the next one opens; a shorter fence opens nothing inside a longer one.
        openings = _OPENING_NAMED.finditer(text, opening.end())
        following = next((m for m in openings if len(m.group(1)) >= len(fence)), None)
        if following and (closing is None or following.start() < closing.start()):
            closing = following
        end = closing.start() if closing else len(text)
        found.append(Block(_name(name), text[opening.end() + 1 : end].strip("\n")))
        if closing is None:
            break
        position = closing.start() if closing is following else closing.end()
    return found


def _name(word: str) -> str:
    """`input1` is an input; `python3` and `py3` are Python."""
    plain = word if word in _ALIASES else word.rstrip("0123456789")
    return _ALIASES.get(plain, plain)


def answer_of(text: str, prompt_format: Literal["completion", "r1"]) -> str | None:
    """The part of a whole reply (with its given start) that is meant as the answer; None where there is none.

    `r1`: what follows the last <answer>, up to </answer> or the end.
    """
    if prompt_format == "completion":
        return text
    tags = list(_ANSWER.finditer(text))
    start = next((index for index in range(len(tags) - 1, -1, -1) if not tags[index].group(1)), None)
    if start is None:
        return None
    end = tags[start + 1].start() if start + 1 < len(tags) else len(text)
    return text[tags[start].end() : end]


def first(found: Sequence[Block], name: str) -> str | None:
    """The text of the first block called `name`; None without one."""
    return next((block.text for block in found if block.name == name), None)


def last(text: str, name: str, missing: FormatError) -> str | FormatError:
    """The last block called `name` of an answer's text: a solver may try aloud before. `missing`: where there is
    none."""
    answers = [block.text.strip() for block in blocks(text) if block.name == name]
    return (answers[-1] or FormatError.EMPTY) if answers else missing


def inputs_of(found: Sequence[Block]) -> tuple[str, ...]:
    """The inputs among blocks, in order."""
    return tuple(arguments(block.text) for block in found if block.name == "input")


def arguments(text: str) -> str:
    """The arguments of an input that is written as the call. No literal begins like a call of f, so none changes."""
    text = text.strip()
    call = _CALL.fullmatch(text)
    return call.group(1).strip() if call else text
