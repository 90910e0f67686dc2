"""The words and pieces that prompts are made of, whatever their kind.

A prompt is built from pieces that are tokenised one by one (`prompt_builder.py`), so that no text of a task can blur
into the frame around it. What a kind asks is in its own module (`actors/kinds/`).

`completion` continues numbered examples in fenced blocks: what small base models can do. `r1` instructs, and asks for
reasoning in <think> and the answer in <answer>.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Literal, NamedTuple

from executor.tasks import Task

PromptFormat = Literal["completion", "r1"]

FENCE = "```"
FUNCTION_START = f"{FENCE}python\ndef f("

ZERO_TASK = Task("deduction", "def f(x):\n    return x", ("'Hello World'",), ("'Hello World'",))
"""The zero triplet, from which self-play starts with an empty buffer."""
ZERO_NORMAL = "def f(v0):\n    return v0"
"""The normal form of its program (`Facts.normal`; a test compares them), for code that stores it without a judge."""
ZERO_MESSAGE = "f gives back what it gets."


class Part(StrEnum):
    """The origin of a piece of a prompt."""

    FRAME = "frame"
    """Text of azr's own: instructions, headings."""
    TASK = "task"
    """Text of a task: program, input, output or message, in its fenced block."""
    REPLY = "reply"
    """The start of the reply."""


class Piece(NamedTuple):
    """A part of a prompt that is tokenised by itself."""

    part: Part
    text: str


class PromptText(NamedTuple):
    """A prompt before it is tokenised."""

    pieces: list[Piece]
    reply_start: str
    """Text that the reply goes on from. It ends the prompt, and is put before the reply to read it."""
    stop: tuple[str, ...]
    """Texts at which the engine stops."""


def frame(text: str) -> Piece:
    """Text of ours."""
    return Piece(Part.FRAME, text)


def block(name: str, text: str) -> str:
    """A fenced block. The fence grows where the text holds one."""
    fence = fence_around(text)
    return f"{fence}{name}\n{text}\n{fence}\n"


def block_piece(name: str, text: str) -> Piece:
    """A fenced block of a task's text."""
    return Piece(Part.TASK, block(name, text))


def fence_around(text: str) -> str:
    """The shortest fence of at least three backticks that `text` does not hold."""
    fence = FENCE
    while fence in text:
        fence += "`"
    return fence


def triplet(task: Task) -> list[Piece]:
    """Program, first input and first output as blocks."""
    return [
        block_piece("python", task.program),
        block_piece("input", task.inputs[0]),
        block_piece("output", task.outputs[0]),
    ]


def r1(material: Iterable[Piece]) -> PromptText:
    """The whole `r1` prompt around its instruction and blocks."""
    return PromptText([frame(_R1_FRAME), *material, frame("\nAssistant: ")], "<think>", ("</answer>",))


def worked_examples(
    head: str, examples: Sequence[Iterable[Piece]], given: Iterable[Piece], reply_start: str
) -> PromptText:
    """A `completion` prompt of a solver: what examples are, some that are solved, and one to be gone on with."""
    pieces = [frame(f"{head}\n\n"), frame("Example 1\n")]
    for number, example in enumerate(examples, start=2):
        pieces += [*example, frame(f"\nExample {number}\n")]
    return PromptText([*pieces, *given], reply_start, (f"\n{FENCE}",))


_R1_FRAME = (
    "A user asks and an assistant answers. The assistant first thinks, between <think> and </think>, then gives the "
    "answer between <answer> and </answer>.\n\nUser: "
)
