"""Prompts, as lists of tokens, for both roles, all kinds and both formats.

A prompt is built from pieces that are tokenised one by one, so that no text of a task can blur into the frame around it
and nothing is ever split out of a prompt again. `reply_start` is the part of the reply that the prompt already gives.

`completion` continues numbered examples in fenced blocks: what small base models can do. `r1` instructs, and asks for
reasoning in <think> and the answer in <answer>.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from executor.tasks import Kind, Task

FENCE = "```"
FUNCTION_START = f"{FENCE}python\ndef f("

ZERO_TASK = Task(Kind.DEDUCTION, "def f(x):\n    return x", ("'Hello World'",), ("'Hello World'",))
"""The zero triplet: all that self-play starts from."""
ZERO_MESSAGE = "f gives back what it gets."


class PromptTooLong(ValueError):
    """The prompt does not fit, even without references."""


@dataclass(frozen=True)
class Prompt:
    """What the engine is given, and what is needed to read the reply."""

    token_ids: tuple[int, ...]
    reply_start: str
    """Text that the reply goes on from; put it before the reply to parse it."""
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

    def propose(self, kind: Kind, references: Sequence[Task]) -> Prompt:
        """Ask for a task of `kind`. Deduction, abduction: unlike `references`, oldest first; induction: about the program
        of the only reference. References are left out, oldest first, until the prompt fits; PromptTooLong if none helps."""
        least = 1 if kind is Kind.INDUCTION else 0
        for dropped in range(max(1, len(references) - least + 1)):
            pieces, reply_start, stop = self._propose(kind, references[dropped:])
            token_ids = self._tokens(pieces, reply_start)
            if len(token_ids) <= self._max_tokens:
                return Prompt(token_ids, reply_start, stop)
        raise PromptTooLong(
            f"a {kind} proposal prompt of {len(token_ids)} tokens; selfplay.max_prompt_tokens is {self._max_tokens}"
        )

    def solve(self, task: Task) -> Prompt:
        """Ask for the missing part of `task`; raises PromptTooLong."""
        pieces, reply_start, stop = self._solve(task)
        token_ids = self._tokens(pieces, reply_start)
        if len(token_ids) > self._max_tokens:
            raise PromptTooLong(
                f"a {task.kind} task of {len(token_ids)} tokens; selfplay.max_prompt_tokens is {self._max_tokens}"
            )
        return Prompt(token_ids, reply_start, stop)

    def _tokens(self, pieces: Sequence[str], reply_start: str) -> tuple[int, ...]:
        return tuple(token for piece in (*pieces, reply_start) if piece for token in self._encode(piece))

    # -- completion ----------------------------------------------------------------------------------------------

    def _propose(self, kind: Kind, references: Sequence[Task]) -> tuple[list[str], str, tuple[str, ...]]:
        if self._format == "r1":
            return _r1(_PROPOSE_R1[kind].format(n=self._num_inputs), _references_r1(kind, references))
        if kind is Kind.INDUCTION:
            (reference,) = references
            inputs = [block("input", text) for text in _ZERO_INPUTS[: self._num_inputs]]
            example = [block("python", ZERO_TASK.program), block("message", ZERO_MESSAGE), *inputs]
            pieces = [
                f"Each example is a Python function f, a message that says what f does, and {self._num_inputs} different "
                "inputs for f.\n\n",
                "Example 1\n",
                *example,
                "\nExample 2\n",
                block("python", reference.program),
            ]
            return pieces, f"{FENCE}message\n", (f"{FENCE}python", "Example")
        pieces = ["Each example is a Python function f, an input, and its output. All functions differ.\n\n"]
        for number, task in enumerate(references, start=1):
            pieces += [f"Example {number}\n", *triplet(task), "\n"]
        pieces.append(f"Example {len(references) + 1}\n")
        return pieces, FUNCTION_START, (f"{FENCE}output",)

    def _solve(self, task: Task) -> tuple[list[str], str, tuple[str, ...]]:
        if self._format == "r1":
            return _r1(_SOLVE_R1[task.kind], _given(task))
        stop = (f"\n{FENCE}",)
        zero_input, zero_output = block("input", ZERO_TASK.inputs[0]), block("output", ZERO_TASK.outputs[0])
        if task.kind is Kind.DEDUCTION:
            head = "Each example is a Python function f, an input, and the output of f for that input.\n\n"
            zero = [block("python", ZERO_TASK.program), zero_input, zero_output]
            reply_start = f"{FENCE}output\n"
        elif task.kind is Kind.ABDUCTION:
            head = "Each example is a Python function f, an output, and an input for which f gives that output.\n\n"
            zero = [block("python", ZERO_TASK.program), zero_output, zero_input]
            reply_start = f"{FENCE}input\n"
        else:
            head = "Each example is a message, inputs with their outputs, and a Python function f that gives these outputs.\n\n"
            zero = [block("message", ZERO_MESSAGE), zero_input, zero_output, block("python", ZERO_TASK.program)]
            reply_start = FUNCTION_START
        return [head, "Example 1\n", *zero, "\nExample 2\n", *_given(task)], reply_start, stop


def block(name: str, text: str) -> str:
    """A fenced block. The fence grows where the text holds one."""
    fence = FENCE
    while fence in text:
        fence += "`"
    return f"{fence}{name}\n{text}\n{fence}\n"


def triplet(task: Task) -> list[str]:
    """Program, first input and first output as blocks."""
    return [block("python", task.program), block("input", task.inputs[0]), block("output", task.outputs[0])]


def _given(task: Task) -> list[str]:
    """What the solver of `task` sees: never what it is asked for, and of an induction task never the hidden half."""
    if task.kind is Kind.DEDUCTION:
        return [block("python", task.program), block("input", task.inputs[0])]
    if task.kind is Kind.ABDUCTION:
        return [block("python", task.program), block("output", task.outputs[0])]
    pairs = [piece for given, result in task.shown for piece in (block("input", given), block("output", result))]
    return [block("message", task.message), *pairs]


_ZERO_INPUTS = ("'Hello World'", "7", "[1, 2, 3]", "{'a': 1}", "-2.5", "(1, 'x')", "True", "''", "[[0], [1]]", "None")

# -- r1 ----------------------------------------------------------------------------------------------------------------

_R1_FRAME = (
    "A user asks and an assistant answers. The assistant first thinks, between <think> and </think>, then gives the "
    "answer between <answer> and </answer>.\n\nUser: "
)

_PROPOSE_RULES = (
    "Write a Python function named f whose result takes real reasoning to work out, and one input for it. The function must "
    "be deterministic, return a value built from Python literals, and use no randomness, time, files, network or processes. "
    "The input is the text between the parentheses of the call, as Python literals. Make the function unlike the examples "
    "that follow. Answer with a fenced block named python and a fenced block named input."
)

_PROPOSE_R1 = {
    Kind.DEDUCTION: _PROPOSE_RULES + " Somebody who sees the function and the input will have to find the output.\n\n",
    Kind.ABDUCTION: _PROPOSE_RULES + " Somebody who sees the function and the output will have to find an input.\n\n",
    Kind.INDUCTION: (
        "Below is a Python function f. Write {n} inputs for it, as different from each other as possible, and a message "
        "that hints at what f does without giving its code. Somebody who sees half of the inputs with their outputs, and "
        "the message, will have to write f. Answer with one fenced block named input for each input, and one fenced block "
        "named message.\n\n"
    ),
}

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


def _r1(instruction: str, material: list[str]) -> tuple[list[str], str, tuple[str, ...]]:
    return [_R1_FRAME, instruction, *material, "\nAssistant: "], "<think>", ("</answer>",)


def _references_r1(kind: Kind, references: Sequence[Task]) -> list[str]:
    if kind is Kind.INDUCTION:
        return [block("python", reference.program) for reference in references]
    return [piece for number, task in enumerate(references, 1) for piece in (f"Example {number}\n", *triplet(task))]
