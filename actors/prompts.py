"""Prompts, as lists of tokens, for both roles, all kinds and both formats.

A prompt is built from pieces that are tokenised one by one, so that no text of a task can blur into the frame around it,
and each piece's place is kept (`Prompt.spans`): nothing is ever split out of a prompt again. `reply_start` is the part of
the reply that the prompt already gives.

`completion` continues numbered examples in fenced blocks: what small base models can do. `r1` instructs, and asks for
reasoning in <think> and the answer in <answer>.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, NamedTuple

from actors.kinds.induction import shown
from executor.tasks import Kind, Task

FENCE = "```"
FUNCTION_START = f"{FENCE}python\ndef f("

ZERO_TASK = Task(Kind.DEDUCTION, "def f(x):\n    return x", ("'Hello World'",), ("'Hello World'",))
"""The zero triplet: all that self-play starts from."""
ZERO_NORMAL = "def f(v0):\n    return v0"
"""Its program as `Facts.normal` has it (a test holds that), for who stores it without a judge at hand."""
ZERO_MESSAGE = "f gives back what it gets."


class PromptTooLong(ValueError):
    """The prompt does not fit, even without references."""


class Part(StrEnum):
    """Whose text a piece of a prompt is."""

    FRAME = "frame"
    """Ours: instructions, headings."""
    TASK = "task"
    """A task's: program, input, output or message, in its fenced block."""
    REPLY = "reply"
    """The start of the reply."""


class Piece(NamedTuple):
    """A part of a prompt that is tokenised by itself."""

    part: Part
    text: str


class Span(NamedTuple):
    """Prompt tokens `start:end` are `part`."""

    part: Part
    start: int
    end: int


@dataclass(frozen=True)
class Prompt:
    """What the engine is given, and what is needed to read the reply."""

    token_ids: tuple[int, ...]
    reply_start: str
    """Text that the reply goes on from; put it before the reply to parse it."""
    stop: tuple[str, ...]
    spans: tuple[Span, ...] = ()
    """Where each piece lies; together they cover all tokens."""
    num_references: int = 0
    """References of a proposer's prompt that fitted: the newest ones."""


class _Draft(NamedTuple):
    pieces: list[Piece]
    reply_start: str
    stop: tuple[str, ...]


class PromptBuilder:
    """Builds prompts with one tokenizer, in one format, within a token budget."""

    def __init__(
        self, tokenizer: Any, prompt_format: Literal["completion", "r1"], max_tokens: int, num_inputs: int
    ) -> None:
        """`num_inputs`: N, how many inputs an induction proposer is asked for."""
        self._encode: Callable[[str], list[int]] = lambda text: tokenizer.encode(text, add_special_tokens=False)
        self._format = prompt_format
        self._max_tokens = max_tokens
        self._num_inputs = num_inputs

    def propose(self, kind: Kind, references: Sequence[Task], definitions: str = "") -> Prompt:
        """Ask for a task of `kind`. Deduction, abduction: unlike `references`, oldest first; induction: about the program
        of the only reference. References are left out, oldest first, until the prompt fits; PromptTooLong if none helps.

        `definitions`: source of g_0, g_1, ..., for the new f to call (`actors.composite`); not for induction.
        """
        least = 1 if kind is Kind.INDUCTION else 0
        for dropped in range(max(1, len(references) - least + 1)):
            kept = references[dropped:]
            prompt = self._prompt(self._propose(kind, kept, definitions), len(kept))
            if len(prompt.token_ids) <= self._max_tokens:
                return prompt
        raise PromptTooLong(
            f"a {kind} proposal prompt of {len(prompt.token_ids)} tokens; "
            f"selfplay.max_prompt_tokens is {self._max_tokens}"
        )

    def solve(self, task: Task) -> Prompt:
        """Ask for the missing part of `task`; raises PromptTooLong."""
        prompt = self._prompt(self._solve(task))
        if len(prompt.token_ids) > self._max_tokens:
            raise PromptTooLong(
                f"a {task.kind} task of {len(prompt.token_ids)} tokens; "
                f"selfplay.max_prompt_tokens is {self._max_tokens}"
            )
        return prompt

    def _prompt(self, draft: _Draft, num_references: int = 0) -> Prompt:
        tokens: list[int] = []
        spans = []
        for part, text in (*draft.pieces, Piece(Part.REPLY, draft.reply_start)):
            start = len(tokens)
            tokens += self._encode(text)
            spans.append(Span(part, start, len(tokens)))
        return Prompt(tuple(tokens), draft.reply_start, draft.stop, tuple(spans), num_references)

    def _propose(self, kind: Kind, references: Sequence[Task], definitions: str) -> _Draft:
        if self._format == "r1":
            return self._propose_r1(kind, references, definitions)
        if kind is Kind.INDUCTION:
            (reference,) = references
            return _Draft(
                [
                    _frame(
                        "Each example is a Python function f, a message that says what f does, and "
                        f"{self._num_inputs} different inputs for f.\n\n"
                    ),
                    _frame("Example 1\n"),
                    block_piece("python", ZERO_TASK.program),
                    block_piece("message", ZERO_MESSAGE),
                    *(block_piece("input", text) for text in zero_inputs(self._num_inputs)),
                    _frame("\nExample 2\n"),
                    block_piece("python", reference.program),
                ],
                f"{FENCE}message\n",
                (f"{FENCE}python", "Example"),
            )
        head = "Each example is a Python function f, an input, and its output. All functions differ."
        if definitions:
            head += " The last one makes use of the functions that are defined before it."
        pieces = [_frame(f"{head}\n\n")]
        for number, task in enumerate(references, start=1):
            pieces += [_frame(f"Example {number}\n"), *triplet(task), _frame("\n")]
        pieces.append(_frame(f"Example {len(references) + 1}\n"))
        start = FUNCTION_START
        if definitions:
            fence = _fence(definitions)
            start = f"{fence}python\n{definitions}\ndef f("
        return _Draft(pieces, start, (f"{FENCE}output",))

    def _propose_r1(self, kind: Kind, references: Sequence[Task], definitions: str) -> _Draft:
        pieces = [_frame(_PROPOSE_R1[kind].format(n=self._num_inputs))]
        if definitions:
            pieces += [_frame(_COMPOSITE_R1), block_piece("python", definitions)]
        if kind is Kind.INDUCTION:
            pieces += [block_piece("python", reference.program) for reference in references]
        else:
            for number, task in enumerate(references, start=1):
                pieces += [_frame(f"Example {number}\n"), *triplet(task)]
        return _r1(pieces)

    def _solve(self, task: Task) -> _Draft:
        if self._format == "r1":
            return _r1([_frame(_SOLVE_R1[task.kind]), *_given(task)])
        zero_program = block_piece("python", ZERO_TASK.program)
        zero_input, zero_output = block_piece("input", ZERO_TASK.inputs[0]), block_piece("output", ZERO_TASK.outputs[0])
        if task.kind is Kind.DEDUCTION:
            head = "Each example is a Python function f, an input, and the output of f for that input.\n\n"
            zero = [zero_program, zero_input, zero_output]
            reply_start = f"{FENCE}output\n"
        elif task.kind is Kind.ABDUCTION:
            head = "Each example is a Python function f, an output, and an input for which f gives that output.\n\n"
            zero = [zero_program, zero_output, zero_input]
            reply_start = f"{FENCE}input\n"
        else:
            head = "Each example is a message, inputs with their outputs, and a Python function f that gives these outputs.\n\n"
            zero = [block_piece("message", ZERO_MESSAGE), zero_input, zero_output, zero_program]
            reply_start = FUNCTION_START
        pieces = [_frame(head), _frame("Example 1\n"), *zero, _frame("\nExample 2\n"), *_given(task)]
        return _Draft(pieces, reply_start, (f"\n{FENCE}",))


def block(name: str, text: str) -> str:
    """A fenced block. The fence grows where the text holds one."""
    fence = _fence(text)
    return f"{fence}{name}\n{text}\n{fence}\n"


def block_piece(name: str, text: str) -> Piece:
    """A fenced block of a task's text."""
    return Piece(Part.TASK, block(name, text))


def triplet(task: Task) -> list[Piece]:
    """Program, first input and first output as blocks."""
    return [
        block_piece("python", task.program),
        block_piece("input", task.inputs[0]),
        block_piece("output", task.outputs[0]),
    ]


def zero_inputs(count: int) -> list[str]:
    """`count` different inputs of the zero program, for the example that shows how many are wanted."""
    return [*_ZERO_INPUTS[:count], *(str(100 + number) for number in range(count - len(_ZERO_INPUTS)))]


def _fence(text: str) -> str:
    fence = FENCE
    while fence in text:
        fence += "`"
    return fence


def _frame(text: str) -> Piece:
    return Piece(Part.FRAME, text)


def _given(task: Task) -> list[Piece]:
    """What the solver of `task` sees: never what it is asked for, and of an induction task never the hidden half."""
    if task.kind is Kind.DEDUCTION:
        return [block_piece("python", task.program), block_piece("input", task.inputs[0])]
    if task.kind is Kind.ABDUCTION:
        return [block_piece("python", task.program), block_piece("output", task.outputs[0])]
    pairs = [p for given, result in shown(task) for p in (block_piece("input", given), block_piece("output", result))]
    return [block_piece("message", task.message), *pairs]


_ZERO_INPUTS = ("'Hello World'", "7", "[1, 2, 3]", "{'a': 1}", "-2.5", "(1, 'x')", "True", "''", "[[0], [1]]", "None")

# -- r1 ----------------------------------------------------------------------------------------------------------------

_R1_FRAME = (
    "A user asks and an assistant answers. The assistant first thinks, between <think> and </think>, then gives the "
    "answer between <answer> and </answer>.\n\nUser: "
)

DIFFICULTY = {
    Kind.DEDUCTION: (
        "Somebody who sees the function and the input will have to find the output: let it take many steps of reasoning to "
        "follow the function from the input to its output."
    ),
    Kind.ABDUCTION: (
        "Somebody who sees the function and the output will have to find an input: let it take many steps of reasoning to go "
        "back from the output to an input that gives it."
    ),
    Kind.INDUCTION: (
        "Somebody who sees half of the inputs with their outputs, and the message, will have to write f: let the inputs "
        "together show all that f does, so that it can be found, but not at a glance."
    ),
}
"""What makes a task of a kind hard, as proposers are told."""

_PROPOSE_RULES = (
    "Write a Python function named f and one input for it. The function must be deterministic, return a value built from "
    "Python literals, make use of its input, and use no randomness, time, files, network or processes. The input is the text "
    "between the parentheses of the call, as Python literals. Make the function unlike the examples that follow. Answer with "
    "a fenced block named python and a fenced block named input. "
)

_PROPOSE_R1 = {
    Kind.DEDUCTION: f"{_PROPOSE_RULES}{DIFFICULTY[Kind.DEDUCTION]}\n\n",
    Kind.ABDUCTION: f"{_PROPOSE_RULES}{DIFFICULTY[Kind.ABDUCTION]}\n\n",
    Kind.INDUCTION: (
        "Below is a Python function f. Write {n} inputs for it, as different from each other as possible, and a message "
        "that hints at what f does without giving its code. Answer with one fenced block named input for each input, and one "
        f"fenced block named message. {DIFFICULTY[Kind.INDUCTION]}\n\n"
    ),
}

_COMPOSITE_R1 = "These functions are there already; f has to call them, and must not define them again.\n"

_SOLVE_R1 = {
    Kind.DEDUCTION: (
        "What does f return for this input? Answer with a fenced block named output that holds the value as a Python "
        "literal.\n\n"
    ),
    Kind.ABDUCTION: (
        "Find an input for which f returns this output. Answer with a fenced block named input that holds the text between "
        "the parentheses of the call, as Python literals.\n\n"
    ),
    Kind.INDUCTION: (
        "Write the Python function f that fits the message and maps each input to its output; it will be tried on further "
        "inputs. Answer with a fenced block named python.\n\n"
    ),
}


def _r1(material: list[Piece]) -> _Draft:
    return _Draft([_frame(_R1_FRAME), *material, _frame("\nAssistant: ")], "<think>", ("</answer>",))
