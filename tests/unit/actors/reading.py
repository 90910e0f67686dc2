"""Replies read by the name of a kind, and texts that look like replies."""

from __future__ import annotations

from hypothesis import strategies as st

from actors.kinds.registry import kind_of
from actors.parsing import FormatError
from executor.tasks import Proposal, Task

PIECES = st.sampled_from(
    [
        "```",
        "````",
        "~~~",
        "python",
        "input",
        "message",
        "output",
        "\n",
        "\r\n",
        "f(",
        ")",
        "<answer>",
        "</answer>",
        "1",
        " ",
    ]
    + ["> ", "- ", "'''", '"', "# ", "sh"]
)
ANY_TEXT = st.one_of(st.text(max_size=80), st.lists(PIECES, max_size=30).map("".join))


def parse_proposal(kind: str, text: str, program: str, num_inputs: int) -> Proposal | FormatError:
    """`program`: that of the reference."""
    return kind_of(kind).read_proposal(text, [Task("deduction", program, ("1",), ("1",))], num_inputs)


def parse_solution(kind: str, text: str) -> str | FormatError:
    return kind_of(kind).read_answer(text)
