"""Fenced blocks: what a person would read is read, at whatever places a model puts its fences."""

from __future__ import annotations

import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from actors.fences import Block, blocks
from actors.prompts import block
from executor.tasks import Proposal
from tests.unit.actors.reading import ANY_TEXT, parse_proposal, parse_solution


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("no fence `x` ``y``", []),
        ("```python\na\n```", [Block("python", "a")]),
        ("```\na\n```", [Block("", "a")]),
        ("``` Python \na\n```", [Block("python", "a")]),
        ("```PY\na\n```", [Block("python", "a")]),
        ("```python3\na\n```", [Block("python", "a")]),
        ("```inputs\n1\n```\n```Outputs\n2\n```", [Block("input", "1"), Block("output", "2")]),
        ("```input 1:\n7\n```", [Block("input", "7")]),
        ("`````python\na\n`````", [Block("python", "a")]),
        ("````python\n```\n````", [Block("python", "```")]),
        ("```python\na\n`````", [Block("python", "a")]),
        ("  ```python\n  a\n  ```", [Block("python", "a")]),
        ("```python\n\n\na\n\n b\n\n```", [Block("python", "a\n\n b")]),
        ("```python\n```", [Block("python", "")]),
        ("```py3\na\n```", [Block("python", "a")]),
        ("```input2\n7\n```", [Block("input", "7")]),
        ("```utf8\n7\n```", [Block("utf", "7")]),
        ("```python\r\na\r\n  b\r\n```\r\n", [Block("python", "a\n  b")]),
        ("```input\r1\r```", [Block("input", "1")]),
        ("Sure!```python\na\n```", [Block("", "")]),
    ],
)
def test_blocks(text: str, expected: list[Block]) -> None:
    assert blocks(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```output\n42", [Block("output", "42")]),
        ("```output\n42\n", [Block("output", "42")]),
        ("```output", [Block("output", "")]),
        ("```python\na\n```\n```input\n1", [Block("python", "a"), Block("input", "1")]),
        ("```python\na\n```input\n1\n```", [Block("python", "a"), Block("input", "1")]),
        ("```input\n1\n```python3\na\n```", [Block("input", "1"), Block("python", "a")]),
        ("```message\nm\n```inputs\n1\n```input2\n2", [
            Block("message", "m"), Block("input", "1"), Block("input", "2"),
        ]),
        ("```python\na\n```output\n1\n```\ntext\n```input\n2\n```", [
            Block("python", "a"), Block("output", "1"), Block("input", "2"),
        ]),
        ("```python\ns = '''\n```sh\n'''\n```", [Block("python", "s = '''\n```sh\n'''")]),
    ],
)  # fmt: skip
def test_blocks_that_were_left_open(text: str, expected: list[Block]) -> None:
    assert blocks(text) == expected


@given(ANY_TEXT)
def test_any_text_is_read(text: str) -> None:
    for found in blocks(text):
        assert all(line.strip() in text for line in found.text.split("\n"))
        assert found.name == found.name.lower()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["python", "input", "output", "message"]),
            st.lists(st.text(alphabet="`ab\t", max_size=5), max_size=3).map("\n".join),
        ),
        max_size=4,
    )
)
def test_what_prompts_write_is_what_parsing_reads(pairs: list[tuple[str, str]]) -> None:
    text = "and\n".join(block(name, content) for name, content in pairs)
    assert blocks(text) == [Block(name, content.strip("\n")) for name, content in pairs]


CODE = "def f(x):\n    return x"
IN_A_DOCSTRING = '''def f(x):
    """Doubles x.

    ```{name}
    f(99)
    ```
    """
    return x'''


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```output\n[1, 2]```", "[1, 2]"),
        ("```output\n[1,\n 2] ```\nso it is\n```\n7\n```", "[1,\n 2]"),
        ("```output\n5\n``` That's it.", "5"),
        ("```output\n5\n```That's it.", "5"),
        ("```output\n5\n``` Output is 5.", "5"),
        ("```output\n5\n```output", "5"),
        ("```output\n5\n```json\n{}\n```", "5"),
        ("```output\n5\n    ```\nSo 5.", "5"),
        ("```output 5```", "5"),
        ("``` Output  [1, 2] ``` is it", "[1, 2]"),
        ("```output 5\n```", "5"),
        ("```output 1:\n5\n```", "5"),
        ("~~~output\n5\n~~~", "5"),
        ("~~~~ output\n5\n~~~~~\n7", "5"),
        ("~~~\n```output\n5\n```\n~~~", "5"),
        ("- ```output\n  5\n  ```", "5"),
        ("2. ```output\n   [5,\n    6]\n   ```\n3. that is all", "[5,\n 6]"),
        ("> ```output\n> 5\n> ```\n> So it is.", "5"),
        (">> - ```output\n>>   5\n>>   ```", "5"),
        ("> ```output\n5\n> ```\n7", "5"),
        ("````output\n5\n```\nThat is it.", "5"),
        ("````output\n5```\nThat is it.", "5"),
        ("````output\n5\n```\n````message\n1\n````", "5"),
        ("```output\n'a```'\n```", "'a```'"),
        ("```output\n'''a\n```\nb'''\n```", "'''a\n```\nb'''"),
        ("```output\n'\\\\```'\n```", "'\\\\```'"),
    ],
)
def test_an_answer_in_an_odd_fence_is_read(text: str, expected: str) -> None:
    assert parse_solution("deduction", text) == expected
    assert parse_solution("abduction", text.replace("output", "input").replace("Output", "Input")) == expected
    assert parse_solution("deduction", f"Let me see.\n{text}") == expected


@pytest.mark.parametrize("mark", ["```", "~~~", "````"])
@pytest.mark.parametrize(
    "program",
    [
        "def f(x): return x",
        "def f(x):\n    # in ```\n    return '```'",
        IN_A_DOCSTRING.format(name=""),
        IN_A_DOCSTRING.format(name="input"),
        IN_A_DOCSTRING.format(name="python"),
        IN_A_DOCSTRING.format(name="input").replace("    ```", "```"),
        IN_A_DOCSTRING.format(name="sh").replace('"""', "'''"),
        'def f(x):\n    return """\n```\n"""',
        'def f(x):\n    return """\\"""\n```\n"""',
    ],
)
def test_what_a_program_has_in_strings_closes_nothing(program: str, mark: str) -> None:
    """Nor does it open anything: a docstring's example is no input."""
    for end in (f"\n{mark}\n", mark + "\n"):
        if mark in program and "return '" in program and end[0] != "\n":
            continue
        proposal = f"{mark}python\n{program}{end}{mark}input\n1\n{mark}"
        assert parse_proposal("deduction", proposal, "", 2) == Proposal("deduction", program, ("1",))
        assert parse_solution("induction", f"{mark}python\n{program}{end}It works.") == program


def test_quotes_of_two_blocks_are_no_string() -> None:
    for program in ("'''", "x = '''", "'''\n````\n", "'''\n```\n````"):
        text = block("python", program) + block("input", "'''") + block("output", "'''")
        assert blocks(text) == [
            Block("python", program.strip("\n")), Block("input", "'''"), Block("output", "'''"),
        ]  # fmt: skip


def test_a_message_may_hold_a_block_of_another_name() -> None:
    assert blocks("```message\nUse ```x```\n```x```\nor.```\n```input\n1\n```") == [
        Block("message", "Use ```x```\n```x```\nor."), Block("input", "1"),
    ]  # fmt: skip


LINE = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12)
ODD_LINE = st.sampled_from(
    [
        "def f(x):",
        "    return x",
        "```",
        "````python",
        "```input",
        "'''",
        '"""',
        "~~~",
        "~~~~input",
        "# a ```",
        "'",
        "- ```",
    ]
)
CONTENT = st.lists(st.one_of(LINE, ODD_LINE), min_size=1, max_size=8).map("\n".join)
NAME = st.sampled_from(["python", "input", "output", "message"])
SPELLING = {"python": ["python", "Python", "py", "python3"], "input": ["input", "INPUTS", "input1"]}


@st.composite
def fenced(draw: st.DrawFn, name: str, content: str) -> str:
    """`content` in a fence that is well-formed, of any style."""
    char, length = draw(st.sampled_from("`~")), draw(st.integers(3, 5))
    while char * length in content:
        length += 1
    first = draw(st.sampled_from(["", " ", "  ", "- ", "* ", "12. ", "> ", "> > ", "> - "]))
    further = first if first.strip(" >") == "" else first.replace("-", " ").replace("*", " ").replace("12.", "   ")
    closing = further + char * (length + draw(st.integers(0, 2))) + draw(st.sampled_from(["", " ", "\t", " Done."]))
    space = draw(st.sampled_from(["", " ", "\t"]))
    opening = char * length + space + draw(st.sampled_from(SPELLING.get(name, [name])))
    lines = [first + opening, *(further + line for line in content.split("\n")), closing]
    return "".join(line + "\n" for line in lines)


@given(st.data(), st.lists(st.tuples(NAME, CONTENT), min_size=1, max_size=3))
def test_any_text_in_a_well_formed_fence_of_any_style_comes_back(
    data: st.DataObject, pairs: list[tuple[str, str]]
) -> None:
    contents = [content for _, content in pairs]
    # Indentation that every line has is a part of the content or of the place where the block stands: nobody can tell.
    assume(all(not line[:1].isspace() for content in contents for line in content.split("\n")[:1]))
    assume(all(content.split("\n")[0].strip() for content in contents))
    text = "".join(data.draw(fenced(name, content)) + "\nand\n" for name, content in pairs)
    ending = data.draw(st.sampled_from(["\n", "\r\n", "\r"]))
    assert blocks(text.replace("\n", ending)) == [Block(name, content.strip("\n")) for name, content in pairs]


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(st.sampled_from("`~'\"\\\n#ab "), max_size=12)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text("`'\"", max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    VALUES,
    st.sampled_from(["```", "~~~", "````"]),
    st.sampled_from(["```", "``` done", "\n```", " ```\n7\n", "\n```8"]),
)
def test_any_value_comes_back_wherever_its_fence_closes(value: object, fence: str, end: str) -> None:
    text = f"{fence}output\n{value!r}{end.replace('```', fence)}"
    # A value that ends with a fence is a text, and ends with its quote.
    if end == "``` done":
        text = f"{fence}output\n{value!r}\n{fence} done"
    assert parse_solution("deduction", text) == repr(value)
    assert parse_solution("deduction", f"{fence}output {value!r} {fence}") == repr(value) or fence in repr(value)


@pytest.mark.parametrize(
    "piece",
    [
        "```python\n", "```python\n'''\n", "'''\n```\n", "````python\n```\n", "> ```input\n", "```input\n\"\"\"\n'''\n",
        '```input\n\\"""\n', " ", "`", " `", '\\"', "\\'''", "> ", "1. ", "#", "```input ", "``` ",
    ],
)  # fmt: skip
def test_reading_takes_no_time_beyond_the_length_of_the_text(piece: str) -> None:
    """Fences, quotes and spaces by the ten thousand: read again and again, they would take minutes."""
    length = 100_000 if len(piece) < 5 else 20_000
    for start in ("", "```python\nx", "```message\nx"):
        before = time.process_time()
        blocks(start + piece * (length // len(piece)) + "x")
        assert time.process_time() - before < 10
