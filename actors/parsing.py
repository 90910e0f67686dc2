"""Reading replies: what the fenced blocks of model text (`fences.py`) say.

Accepts what a person would accept without guessing, such as an input that is written as the call, `f(1, 2)`. A block
says what its name says and nothing else: words before a value (`Output: 3`), several values, or a block without a name
are refused, since one would have to choose what was meant, and a proposer could learn to live on that.

Nothing of the content is evaluated here; that is the executor's business.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Literal

from actors.fences import Block, blocks

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
