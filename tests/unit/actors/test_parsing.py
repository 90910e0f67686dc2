"""Reading replies: what a person would accept is accepted, and everything else is refused by name."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.parsing import FormatError, answer_of
from actors.prompts import block
from executor.tasks import Proposal
from learner.settings import BatchSettings
from tests.unit.actors.reading import ANY_TEXT, parse_proposal, parse_solution

KINDS = BatchSettings().kinds

CODE = "def f(x):\n    return x"


@given(ANY_TEXT, st.sampled_from(list(KINDS)), st.sampled_from(["completion", "r1"]))
def test_parsing_never_raises(text: str, kind: str, prompt_format: Literal["completion", "r1"]) -> None:
    answer = answer_of(text, prompt_format)
    assert answer is None or answer in text
    assert isinstance(parse_proposal(kind, text, "p", 3), (Proposal, FormatError))
    found = parse_solution(kind, text)
    assert isinstance(found, FormatError) or found


LINE = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12)
CODE_LINE = st.sampled_from(["def f(x):", "    return x", "```", "````python", "```input", "'''", "```output"])
TEXTS = (
    st.lists(st.one_of(LINE, CODE_LINE), min_size=1, max_size=8)
    .map("\n".join)
    .filter(lambda text: text.strip() and not text.strip().startswith("f"))
)


@given(TEXTS, TEXTS, st.sampled_from(["deduction", "abduction"]))
def test_a_proposal_in_our_own_format_parses_back_to_itself(program: str, given_input: str, kind: str) -> None:
    text = block("python", program) + block("input", given_input) + block("output", "1")
    assert parse_proposal(kind, text, "", 2) == Proposal(kind, program.strip("\n"), (given_input.strip(),))


@given(st.lists(TEXTS, min_size=2, max_size=12), TEXTS)
def test_an_induction_proposal_in_our_own_format_parses_back_to_itself(inputs: list[str], message: str) -> None:
    text = block("message", message) + "".join(block("input", given_input) for given_input in inputs)
    wanted = Proposal("induction", "p", tuple(text.strip() for text in inputs), message.strip())
    assert parse_proposal("induction", text, "p", len(inputs)) == wanted


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("f(1, 2)", "1, 2"),
        (" f( 'x' ) ", "'x'"),
        ("f((1, 2))", "(1, 2)"),
        ("f([\n 1,\n 2\n])", "[\n 1,\n 2\n]"),
        ("f(1)(2)", "1)(2"),  # no literals either way: the judge's to refuse
        ("f = 1", "f = 1"),
        ("print(f(1))", "print(f(1))"),
        ("(1, 2)", "(1, 2)"),
        ("'f(1)'", "'f(1)'"),
    ],
)
def test_an_input_may_be_written_as_the_call(text: str, arguments: str) -> None:
    assert parse_solution("abduction", f"```input\n{text}\n```") == arguments
    found = parse_proposal("deduction", f"```python\n{CODE}\n```\n```input\n{text}\n```", "", 2)
    assert found == Proposal("deduction", CODE, (arguments,))
    assert parse_solution("deduction", f"```output\n{text}\n```") == text.strip(), "an output is no call"


@pytest.mark.parametrize("text", ["Output: 3", "x = 3", "The answer is 3"])
def test_words_around_a_value_are_left_for_the_judge_to_refuse(text: str) -> None:
    assert parse_solution("deduction", f"```output\n{text}\n```") == text


def proposal(*parts: tuple[str, str]) -> str:
    return "\n".join(block(name, content) for name, content in parts)


@pytest.mark.parametrize("kind", ["deduction", "abduction"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (proposal(("python", CODE), ("input", "1")), (CODE, ("1",))),
        (proposal(("input", "1"), ("python", CODE)), (CODE, ("1",))),
        (proposal(("python", CODE), ("input", "1"), ("output", "2"), ("python", "b"), ("input", "3")), (CODE, ("1",))),
        (
            proposal(("python", CODE), ("input", "\n{'a': 1,\n 'b': [2,\n 3]}\n")),
            (CODE, ("{'a': 1,\n 'b': [2,\n 3]}",)),
        ),
        (f"```python\n{CODE}\n```\n```input\n1, 'x'", (CODE, ("1, 'x'",))),
        (proposal(("python", CODE), ("input", "")), (CODE, ("",))),  # the judge's to refuse
        ("", FormatError.NO_PROGRAM),
        ("f is x + 1 for 3", FormatError.NO_PROGRAM),
        (proposal(("", CODE), ("input", "1")), FormatError.NO_PROGRAM),
        (proposal(("python", CODE)), FormatError.NO_INPUT),
        (proposal(("python", CODE), ("output", "1")), FormatError.NO_INPUT),
        (proposal(("python", "  \n"), ("input", "1")), FormatError.EMPTY),
    ],
)
def test_a_proposal_is_a_program_and_an_input(kind: str, text: str, expected: object) -> None:
    wanted = Proposal(kind, *expected) if isinstance(expected, tuple) else expected
    assert parse_proposal(kind, text, "ignored", 10) == wanted


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([("message", "m"), ("input", "1"), ("input", "2")], (("1", "2"), "m")),
        ([("input", "1"), ("input", "2"), ("input", "3"), ("message", "m")], (("1", "2"), "m")),
        ([("message", "first"), ("message", "second"), ("input", "1"), ("input", "2")], (("1", "2"), "first")),
        ([("message", " two\nlines "), ("inputs", "1"), ("INPUT", "2")], (("1", "2"), "two\nlines")),
        ([("message", "m"), ("python", "not this"), ("input", "1"), ("input", "2")], (("1", "2"), "m")),
        ([("input", "1"), ("input", "2")], FormatError.NO_MESSAGE),
        ([("message", "m"), ("input", "1")], FormatError.TOO_FEW_INPUTS),
        ([("message", "m")], FormatError.TOO_FEW_INPUTS),
        ([("message", "m"), ("input", "1"), ("input", " ")], FormatError.EMPTY),
    ],
)
def test_an_induction_proposal_is_a_message_and_inputs(parts: list[tuple[str, str]], expected: object) -> None:
    wanted = Proposal("induction", CODE, *expected) if isinstance(expected, tuple) else expected
    assert parse_proposal("induction", proposal(*parts), CODE, 2) == wanted


NAMES = {"deduction": "output", "abduction": "input", "induction": "python"}
MISSING = {
    "deduction": FormatError.NO_OUTPUT,
    "abduction": FormatError.NO_INPUT,
    "induction": FormatError.NO_PROGRAM,
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_solution_is_the_last_block_of_its_name(kind: str) -> None:
    name = NAMES[kind]
    (other,) = {"output": ["input"], "input": ["python"], "python": ["output"]}[name]
    assert parse_solution(kind, f"Try\n```{name}\n1\n```\nbetter:\n```{name}\n 2\n```\n") == "2"
    assert parse_solution(kind, f"```{name}\n1\n```\n```{other}\n2\n```") == "1"
    assert parse_solution(kind, f"```{name.upper()}\n[1,\n2]") == "[1,\n2]", "left open, over two lines"
    assert parse_solution(kind, f"```{other}\n2\n```") is MISSING[kind]
    assert parse_solution(kind, "The answer is 2.") is MISSING[kind]
    assert parse_solution(kind, "") is MISSING[kind]
    assert parse_solution(kind, f"```{name}\n \n```") is FormatError.EMPTY
    assert parse_solution(kind, f"```{name}") is FormatError.EMPTY


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a</think> <answer>b</answer>", "b"),
        ("<think>a</think> <answer>b", "b"),
        ("<think>so <answer>a</answer>, no</think><answer>b</answer>", "b"),
        ("<answer>a</answer> and <answer>b</answer> done", "b"),
        ("<answer>a\n\nb</answer>", "a\n\nb"),
        ("<answer></answer>", ""),
        ("<think>a</think> b", None),
        ("<think>a", None),
        ("<Answer>a</ANSWER> b", "a"),
        ("a</answer>", None),
        ("<answer>a</answer>b</answer>", "a"),
    ],
)
def test_the_answer_of_r1(text: str, expected: str | None) -> None:
    assert answer_of(text, "r1") == expected


def test_the_answer_of_a_completion_is_all_of_it() -> None:
    assert answer_of("<answer>a</answer>", "completion") == "<answer>a</answer>"


def test_every_format_error_but_the_missing_answer_is_reached_here() -> None:
    """`NO_ANSWER` is what the episode makes of `answer_of(...) is None`."""
    reached = {
        parse_proposal("deduction", "", "", 2),
        parse_proposal("deduction", proposal(("python", CODE)), "", 2),
        parse_proposal("deduction", proposal(("python", ""), ("input", "1")), "", 2),
        parse_proposal("induction", "", "", 2),
        parse_proposal("induction", proposal(("message", "m")), "", 2),
        parse_solution("deduction", ""),
    }
    assert reached == set(FormatError) - {FormatError.NO_ANSWER}
