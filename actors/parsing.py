"""Reading replies: fenced blocks out of model text, and what they say.

Accepts what a person would accept: any fence length, names in any case, `py` for `python`, a last block that the stop
string or the model left open. Nothing of the content is evaluated here; that is the executor's business.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Literal, NamedTuple

from executor.tasks import Kind, Proposal

_OPENING = re.compile(r"^[ \t]*(`{3,})[ \t]*([A-Za-z_]*)[^\n`]*$", re.MULTILINE)
_ALIASES = {"py": "python", "python3": "python", "inputs": "input", "outputs": "output"}


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
    """Fenced blocks in order. A block ends at a fence at least as long as its opening one, or at the end of the text."""
    found = []
    position = 0
    while opening := _OPENING.search(text, position):
        fence, name = opening.group(1), opening.group(2).lower()
        closing = re.compile(rf"^[ \t]*`{{{len(fence)},}}[ \t]*$", re.MULTILINE).search(text, opening.end())
        # A block that was not closed ends where the next one opens; a shorter fence opens nothing inside a longer one.
        openings = _OPENING_NAMED.finditer(text, opening.end())
        following = next((m for m in openings if len(m.group(1)) >= len(fence)), None)
        if closing and following and following.start() < closing.start():
            closing = following
        end = closing.start() if closing else len(text)
        found.append(Block(_ALIASES.get(name, name), text[opening.end() + 1 : end].strip("\n")))
        if closing is None:
            break
        position = closing.start() if closing is following else closing.end()
    return found


_OPENING_NAMED = re.compile(
    r"^[ \t]*(`{3,})[ \t]*(?:python|py|input|output|message)\b[^\n`]*$", re.MULTILINE | re.IGNORECASE
)


def answer_of(text: str, prompt_format: Literal["completion", "r1"]) -> str | None:
    """The part of a whole reply (with its given start) that is meant as the answer; None where there is none."""
    if prompt_format == "completion":
        return text
    _, separator, rest = text.rpartition("<answer>")
    return rest.partition("</answer>")[0] if separator else None


def parse_proposal(kind: Kind, text: str, program: str, num_inputs: int) -> Proposal | FormatError:
    """A proposal from the answer's text. `program`: that of the reference (induction); `num_inputs`: N, as asked for.

    More than N inputs are cut to N; of several programs or messages the first counts.
    """
    found = blocks(text)
    inputs = tuple(b.text.strip() for b in found if b.name == "input")
    if kind is Kind.INDUCTION:
        message = next((b.text.strip() for b in found if b.name == "message"), None)
        if message is None:
            return FormatError.NO_MESSAGE
        if len(inputs) < num_inputs:
            return FormatError.TOO_FEW_INPUTS
        if not all(inputs[:num_inputs]):
            return FormatError.EMPTY
        return Proposal(kind, program, inputs[:num_inputs], message)
    proposed = next((b.text for b in found if b.name == "python"), None)
    if proposed is None:
        return FormatError.NO_PROGRAM
    if not inputs:
        return FormatError.NO_INPUT
    if not proposed.strip():
        return FormatError.EMPTY
    return Proposal(kind, proposed, inputs[:1])


_ANSWER_BLOCK = {
    Kind.DEDUCTION: ("output", FormatError.NO_OUTPUT),
    Kind.ABDUCTION: ("input", FormatError.NO_INPUT),
    Kind.INDUCTION: ("python", FormatError.NO_PROGRAM),
}


def parse_solution(kind: Kind, text: str) -> str | FormatError:
    """The answer to a task of `kind`. The last block of the right name counts: a solver may try aloud before."""
    name, missing = _ANSWER_BLOCK[kind]
    answers = [b.text.strip() for b in blocks(text) if b.name == name]
    if not answers:
        return missing
    return answers[-1] or FormatError.EMPTY
