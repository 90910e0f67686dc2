"""Prompts in both formats, through a tokenizer of characters: every token can be read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.composite import composite, definitions, fit
from actors.fences import Block, blocks
from actors.kinds.induction import zero_inputs
from actors.kinds.registry import kind_of
from actors.prompt_builder import Prompt, PromptBuilder, PromptTooLong
from actors.prompts import (
    FENCE,
    FUNCTION_START,
    ZERO_TASK,
    Part,
    block,
)
from executor.tasks import Task
from learner.settings import BatchSettings
from tests.unit.actors.reading import parse_proposal

KINDS = BatchSettings().kinds

FORMATS = ["completion", "r1"]
ANY = 100_000


class Characters:
    """Remembers the pieces that it was given, and whether somebody asked for special tokens."""

    def __init__(self) -> None:
        self.pieces: list[str] = []

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        assert not add_special_tokens
        self.pieces.append(text)
        return [ord(character) for character in text]


def builder(prompt_format: str, max_tokens: int = ANY, num_inputs: int = 4) -> PromptBuilder:
    return PromptBuilder(Characters(), prompt_format, max_tokens, num_inputs)  # type: ignore[arg-type]


def text(prompt: Prompt) -> str:
    return "".join(map(chr, prompt.token_ids))


def reference(name: str, kind: str = "deduction") -> Task:
    return Task(kind, f"def f(x):\n    return {name!r}", (f"'in {name}'",), (f"'out {name}'",))


PROGRAM = "def f(x):\n    return x + 'program'"


def task(kind: str) -> Task:
    if kind == "induction":
        return Task(
            kind, PROGRAM, ("'i0'", "'i1'", "'i2'", "'i3'", "'i4'"), ("'o0'", "'o1'", "'o2'", "'o3'", "'o4'"), "hint"
        )
    return Task(kind, PROGRAM, ("'i0'",), ("'o0'",))


VISIBLE = {
    "deduction": [PROGRAM, "'i0'"],
    "abduction": [PROGRAM, "'o0'"],
    "induction": ["hint", "'i0'", "'o0'", "'i1'", "'o1'"],
}
SECRET = {
    "deduction": ["o0"],
    "abduction": ["i0"],
    "induction": ["'program'", "i2", "i3", "i4", "o2", "o3", "o4"],
}


@pytest.mark.parametrize("prompt_format", FORMATS)
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_solver_sees_what_is_given_and_nothing_of_the_answer(kind: str, prompt_format: str) -> None:
    seen = text(builder(prompt_format).solve(task(kind)))
    assert [part for part in VISIBLE[kind] if part not in seen] == []
    assert [part for part in SECRET[kind] if part in seen] == []


@pytest.mark.parametrize("prompt_format", FORMATS)
@pytest.mark.parametrize("kind", list(KINDS))
def test_the_prompt_ends_with_the_start_of_the_reply(kind: str, prompt_format: str) -> None:
    for prompt in (builder(prompt_format).solve(task(kind)), builder(prompt_format).propose(kind, [reference("a")])):
        assert text(prompt).endswith(prompt.reply_start)
        assert prompt.reply_start
        assert prompt.stop
        assert not any(stop in prompt.reply_start for stop in prompt.stop), "it would stop before it begins"


def test_the_reply_starts_in_the_block_that_is_asked_for() -> None:
    starts = {kind: builder("completion").solve(task(kind)).reply_start for kind in KINDS}
    assert starts == {
        "deduction": f"{FENCE}output\n",
        "abduction": f"{FENCE}input\n",
        "induction": FUNCTION_START,
    }
    assert {kind: builder("completion").propose(kind, [reference("a")]).reply_start for kind in KINDS} == {
        "deduction": FUNCTION_START,
        "abduction": FUNCTION_START,
        "induction": f"{FENCE}message\n",
    }
    r1 = builder("r1").solve(task("deduction"))
    assert (r1.reply_start, r1.stop) == ("<think>", ("</answer>",))


@pytest.mark.parametrize("prompt_format", FORMATS)
@pytest.mark.parametrize("kind", ["deduction", "abduction"])
def test_a_proposer_sees_its_references_oldest_first(kind: str, prompt_format: str) -> None:
    names = ["oldest", "middle", "newest"]
    seen = text(builder(prompt_format).propose(kind, [reference(name, kind) for name in names]))
    places = [seen.index(f"'in {name}'") for name in names]
    assert places == sorted(places)
    assert all(f"'out {name}'" in seen and f"return '{name}'" in seen for name in names)


@pytest.mark.parametrize("prompt_format", FORMATS)
def test_references_go_oldest_first_and_only_as_many_as_they_must(prompt_format: str) -> None:
    references = [reference(name) for name in ("aa", "bb", "cc")]

    def kept(max_tokens: int) -> list[str]:
        seen = text(builder(prompt_format, max_tokens).propose("deduction", references))
        assert len(seen) <= max_tokens
        return [name for name in ("aa", "bb", "cc") if f"'in {name}'" in seen]

    sizes = [len(builder(prompt_format).propose("deduction", references[dropped:]).token_ids) for dropped in range(4)]
    assert kept(sizes[0]) == ["aa", "bb", "cc"]
    assert kept(sizes[0] - 1) == kept(sizes[1]) == ["bb", "cc"]
    assert kept(sizes[1] - 1) == kept(sizes[2]) == ["cc"]
    assert kept(sizes[2] - 1) == kept(sizes[3]) == []
    with pytest.raises(PromptTooLong, match=rf"{sizes[3]} tokens; selfplay.max_prompt_tokens is {sizes[3] - 1}"):
        kept(sizes[3] - 1)


@pytest.mark.parametrize("prompt_format", FORMATS)
def test_an_induction_proposer_needs_its_program(prompt_format: str) -> None:
    whole = builder(prompt_format).propose("induction", [reference("needed")])
    assert "return 'needed'" in text(whole)
    assert "'in needed'" not in text(whole), "it is to write inputs of its own"
    with pytest.raises(PromptTooLong, match="induction"):
        builder(prompt_format, len(whole.token_ids) - 1).propose("induction", [reference("needed")])


@pytest.mark.parametrize("prompt_format", FORMATS)
def test_a_task_that_does_not_fit_is_refused_at_the_token(prompt_format: str) -> None:
    size = len(builder(prompt_format).solve(task("abduction")).token_ids)
    assert len(builder(prompt_format, size).solve(task("abduction")).token_ids) == size
    with pytest.raises(PromptTooLong, match=rf"abduction task of {size} tokens"):
        builder(prompt_format, size - 1).solve(task("abduction"))


@pytest.mark.parametrize("prompt_format", FORMATS)
def test_an_induction_proposer_is_asked_for_as_many_inputs_as_set(prompt_format: str) -> None:
    seen = text(builder(prompt_format, num_inputs=3).propose("induction", [reference("a")]))
    if prompt_format == "completion":
        assert "3 different inputs" in seen
        assert seen.count(f"{FENCE}input\n") == 3, "the example shows as many"
    else:
        assert "Write 3 inputs" in seen


def test_the_text_of_a_task_is_tokenised_apart_from_the_frame() -> None:
    tokenizer = Characters()
    PromptBuilder(tokenizer, "completion", ANY, 4).solve(task("deduction"))
    assert block("python", PROGRAM) in tokenizer.pieces
    assert block("input", "'i0'") in tokenizer.pieces
    assert tokenizer.pieces[-1] == f"{FENCE}output\n"


@pytest.mark.parametrize("prompt_format", FORMATS)
def test_the_first_proposer_can_do_without_references(prompt_format: str) -> None:
    assert ZERO_TASK.program not in text(builder(prompt_format).propose("deduction", []))
    assert ZERO_TASK.program in text(builder("completion").solve(task("deduction"))), "the worked example"


def test_fences_grow_with_what_they_hold() -> None:
    assert block("python", "x") == "```python\nx\n```\n"
    assert block("python", "a ``` b") == "````python\na ``` b\n````\n"
    assert block("python", "`" * 6) == "```````python\n``````\n```````\n"


@given(st.lists(st.sampled_from(["x", " ", "`", "```", "````", "```python", "```output", "1"]), min_size=1))
def test_a_block_reads_back_as_one_block(lines: list[str]) -> None:
    content = "\n".join(lines)
    assert blocks(f"before\n{block('output', content)}after\n") == [Block("output", content)]


@pytest.mark.parametrize("prompt_format", FORMATS)
@pytest.mark.parametrize("kind", list(KINDS))
def test_every_token_is_known_to_be_the_frames_the_tasks_or_the_replys(kind: str, prompt_format: str) -> None:
    for prompt in (builder(prompt_format).solve(task(kind)), builder(prompt_format).propose(kind, [reference("a")])):
        ends = [0, *(span.end for span in prompt.spans)]
        assert [span.start for span in prompt.spans] == ends[:-1]
        assert ends[-1] == len(prompt.token_ids)
        pieces = {part: [text(prompt)[s:e] for p, s, e in prompt.spans if p is part] for part in Part}
        assert pieces[Part.REPLY] == [prompt.reply_start]
        assert all(len(blocks(piece)) == 1 for piece in pieces[Part.TASK])
        assert not any(blocks(piece) for piece in pieces[Part.FRAME])


def test_an_example_shows_as_many_inputs_as_are_asked_for() -> None:
    for count in (1, 3, 10, 11, 25):
        shown = zero_inputs(count)
        assert len(shown) == len(set(shown)) == count
    seen = text(builder("completion", num_inputs=14).propose("induction", [reference("a")]))
    assert "14 different inputs" in seen
    assert seen.count(f"{FENCE}input\n") == 14


def test_hints_of_difficulty_go_the_right_way() -> None:
    """A deduction is hard to follow forwards, an abduction hard to go back through."""
    for kind in KINDS:
        seen = text(builder("r1").propose(kind, [reference("a")]))
        assert kind_of(kind).difficulty in seen
        assert not any(kind_of(other).difficulty in seen for other in KINDS if other != kind)
    assert "from the input to its output" in kind_of("deduction").difficulty
    assert "back from the output to an input" in kind_of("abduction").difficulty


EARLIER = ["def f(x):\n    return x + 1", "def h(y):\n    return 2 * y\n\ndef f(x):\n    return h(x)"]


def run(program: str, *arguments: object) -> object:
    scope: dict[str, object] = {}
    exec(program, scope)
    return scope["f"](*arguments)  # type: ignore[operator]


def test_a_composite_is_one_self_contained_program() -> None:
    own = "def f(x):\n    return g_0(x) * 10 + g_1(x)"
    whole = composite(own, EARLIER)
    assert run(whole, 3) == 46
    assert whole.endswith(own)
    assert composite(whole, EARLIER) == whole, "a reply that repeats the definitions gets them once"


@pytest.mark.parametrize(
    ("own", "has"),
    [
        ("def f(x):\n    return x", []),
        ("def f(x):\n    return g_1(x)", [1]),
        ("def f(x):\n    return g_0(g_0(x))", [0]),
        ("def f(x):\n    return big_0(x) + g_01", []),
        ("def f(x):\n    return g_7(x)", []),
    ],
)
def test_a_composite_holds_the_definitions_that_it_names(own: str, has: list[int]) -> None:
    whole = composite(f"\n{own}\n", EARLIER)
    assert [number for number in range(2) if f"def _make_g{number}" in whole] == has
    assert whole.endswith(own)


def test_what_means_something_else_inside_a_function_becomes_no_earlier_function() -> None:
    assert all(fit(program) for program in EARLIER)
    assert not fit("from math import *\ndef f(x):\n    return sqrt(x)")
    assert not fit("total = 0\ndef f(x):\n    global total\n    return total")
    assert not fit(composite("def f(x):\n    return g_0(x)", EARLIER)), "composites do not nest"


def test_a_composite_goes_on_from_its_definitions() -> None:
    """In the completion format the reply itself begins with them, and is one program with them."""
    prompt = builder("completion").propose("deduction", [reference("a")], definitions(EARLIER))
    assert text(prompt).endswith("g_1 = _make_g1()\n\ndef f(")
    reply = f"{prompt.reply_start}x):\n    return g_1(x)\n```\n```input\n4\n```\n"
    found = parse_proposal("deduction", reply, "", 2)
    assert run(composite(found.program, EARLIER), 4) == 8  # type: ignore[union-attr]
    asked = text(builder("r1").propose("abduction", [reference("a")], definitions(EARLIER)))
    assert block("python", definitions(EARLIER)) in asked
    assert "f has to call them" in asked
