"""Replies read by the name of a kind."""

from __future__ import annotations

from actors.kinds.registry import kind_of
from actors.parsing import FormatError
from executor.tasks import Proposal, Task


def parse_proposal(kind: str, text: str, program: str, num_inputs: int) -> Proposal | FormatError:
    """`program`: that of the reference."""
    return kind_of(kind).read_proposal(text, [Task("deduction", program, ("1",), ("1",))], num_inputs)


def parse_solution(kind: str, text: str) -> str | FormatError:
    return kind_of(kind).read_answer(text)
