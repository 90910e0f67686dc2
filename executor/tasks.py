"""The data types of the environment: tasks, proposals, verdicts, and the reasons of rejections.

Reasons are enums: no code decides anything by words in a message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal


@dataclass(frozen=True)
class Task:
    """A validated task. Inputs and outputs are canonical Python literals as text, pairwise aligned.

    An input is the text between the parentheses of the call: `'abc'` is one argument, `1, [2]` is two, `(1, 2)` is one.
    """

    kind: str
    """The name of its kind, which gives the other fields their meaning (`actors/kinds/`)."""
    program: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    message: str = ""
    texts: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Further texts that the kind needs, by name, such as a second program."""
    ignores_input: bool = field(default=False, compare=False)
    """Whether validation found that the value is the same for other inputs. False for a task that is read back."""

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.outputs) or not self.inputs:
            raise ValueError(f"a task needs as many inputs as outputs: {len(self.inputs)} and {len(self.outputs)}")


@dataclass(frozen=True)
class Proposal:
    """A proposer's reply, read but not checked. Inputs are the model's raw text."""

    kind: str
    program: str
    inputs: tuple[str, ...]
    message: str = ""
    texts: Mapping[str, str] = field(default_factory=dict, hash=False)
    """As in `Task`."""


@dataclass(frozen=True)
class Validated:
    """A program that is sound for its inputs: within policy and limits, and the same every time."""

    program: str
    """As it was run: comments and docstrings taken out where the rules say so."""
    inputs: tuple[str, ...]
    """Canonical."""
    outputs: tuple[str, ...]
    """Canonical, aligned with the inputs."""
    ignores_input: bool = False
    """The value is the same for other inputs, too (`ValidationRules.input_dependence`)."""


@dataclass(frozen=True)
class ValidationRules:
    """Optional rules for proposals, beyond those that make a sound task. All are off by default."""

    input_dependence: Literal["off", "measure", "reject"] = "off"
    """A value that does not change with the input is allowed (`off`), noted in `ignores_input` (`measure`), or refused
    (`reject`, IGNORES_INPUT)."""
    reject_copies: bool = False
    """A value that is one of the arguments, or the tuple of them, is refused (COPIES_INPUT); of several inputs, where
    this holds for all."""
    strip_comments: bool = False
    """The task's program is the proposal's without its comments; that is what is validated."""
    strip_docstrings: bool = False
    """The task's program is the proposal's without its docstrings; that is what is validated."""


class RejectionReason(StrEnum):
    """Why a proposal is not a task. The members from ERROR to NONDETERMINISTIC are named like the sandbox's
    findings."""

    INPUT_COUNT = "input_count"
    """Another number of inputs than the kind of task needs."""
    UNPARSEABLE_INPUT = "unparseable_input"
    """An input is not a list of Python literals, or it is beyond the codec's budgets."""
    DUPLICATE_INPUT = "duplicate_input"
    """Two inputs are the same: one could show what the other hides."""
    ERROR = "error"
    """The program does not parse, has no function `f`, or raised an exception."""
    TIMEOUT = "timeout"
    MEMORY = "memory"
    OUTPUT_TOO_LARGE = "output_too_large"
    UNSERIALISABLE = "unserialisable"
    """The return value is not made of exact builtin types."""
    UNSAFE = "unsafe"
    """Refused by the policy, or stopped by the wall."""
    CRASHED = "crashed"
    """The process died, or did not answer in the agreed form."""
    NONDETERMINISTIC = "nondeterministic"
    """Two runs under different hash seeds did not agree."""
    IGNORES_INPUT = "ignores_input"
    """The value is the same for other inputs, too; only where ValidationRules.input_dependence is `reject`."""
    COPIES_INPUT = "copies_input"
    """The value is one of the arguments; only with ValidationRules.reject_copies."""


@dataclass(frozen=True)
class Rejection:
    """Why a proposal is no task; `detail` is for people."""

    reason: StrEnum
    """A `RejectionReason`, or a member of an enum of the kind's own."""
    detail: str = ""


class VerdictReason(StrEnum):
    """Why an answer is correct or not. The members from ERROR on are named like the sandbox's findings."""

    CORRECT = "correct"
    WRONG = "wrong"
    """The answer was understood, ran where it had to, and gives another value."""
    UNPARSEABLE = "unparseable"
    """The answer is not a Python literal, where one is asked for."""
    ERROR = "error"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    OUTPUT_TOO_LARGE = "output_too_large"
    UNSERIALISABLE = "unserialisable"
    UNSAFE = "unsafe"
    CRASHED = "crashed"
    NONDETERMINISTIC = "nondeterministic"
    """A task's program, which is validated, gave two values for an input that is the answer."""


@dataclass(frozen=True)
class Verdict:
    """The judgement of one answer."""

    correct: bool
    reason: VerdictReason
