"""Prompts, parsing, rewards and the buffer, each by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.buffer import TaskBuffer
from actors.parsing import Block, FormatError, answer_of, blocks, parse_proposal, parse_solution
from actors.prompts import PromptBuilder, PromptTooLong, block
from actors.rewards import propose_reward, solve_reward
from executor.tasks import Kind, Proposal, Task


class Characters:
    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return [ord(character) for character in text]


def text_of(token_ids: tuple[int, ...]) -> str:
    return "".join(map(chr, token_ids))


PROGRAM = "def f(x):\n    return x + 'SECRET'"
TASK = Task(Kind.DEDUCTION, PROGRAM, ("'GIVEN'",), ("'GIVENSECRET'",))


@pytest.mark.parametrize("prompt_format", ["completion", "r1"])
def test_solvers_see_what_is_given_and_not_the_answer(prompt_format: str) -> None:
    builder = PromptBuilder(Characters(), prompt_format, 10_000, 4)  # type: ignore[arg-type]
    deduction = text_of(builder.solve(TASK).token_ids)
    assert PROGRAM in deduction
    assert "'GIVEN'" in deduction
    assert "GIVENSECRET" not in deduction
    abduction = text_of(builder.solve(Task(Kind.ABDUCTION, PROGRAM, ("'GIVEN'",), ("'GIVENSECRET'",))).token_ids)
    assert "'GIVENSECRET'" in abduction
    assert "'GIVEN'" not in abduction
    induction = Task(Kind.INDUCTION, PROGRAM, ("'a'", "'b'", "'c'", "'d'"), ("1", "2", "3", "4"), "a hint")
    seen = text_of(builder.solve(induction).token_ids)
    assert "a hint" in seen
    assert "'a'" in seen
    assert "'b'" in seen
    assert "'c'" not in seen
    assert "'d'" not in seen
    assert PROGRAM not in seen


def test_references_are_left_out_oldest_first_until_it_fits() -> None:
    tasks = [Task(Kind.DEDUCTION, f"def f(x):\n    return {name!r}", ("1",), (repr(name),)) for name in ("old", "new")]
    whole = PromptBuilder(Characters(), "completion", 10_000, 4).propose(Kind.DEDUCTION, tasks)
    tight = PromptBuilder(Characters(), "completion", len(whole.token_ids) - 1, 4).propose(Kind.DEDUCTION, tasks)
    assert "'old'" in text_of(whole.token_ids)
    assert "'old'" not in text_of(tight.token_ids)
    assert "'new'" in text_of(tight.token_ids)
    with pytest.raises(PromptTooLong, match="max_prompt_tokens is 10"):
        PromptBuilder(Characters(), "completion", 10, 4).propose(Kind.DEDUCTION, tasks)


def test_the_fence_outgrows_the_text() -> None:
    hostile = "def f(x):\n    '''\n```\n```output\n1\n```\n'''\n    return x"
    assert blocks(block("python", hostile)) == [Block("python", hostile)]


def test_blocks_are_read_as_a_person_would() -> None:
    text = "Sure:\n```Python\na = 1\n\nb = 2\n```\nand\n  ```input\n{'x':\n 1}\n  ```\n```OUTPUT\n3"
    assert blocks(text) == [Block("python", "a = 1\n\nb = 2"), Block("input", "{'x':\n 1}"), Block("output", "3")]
    assert blocks("```py\nx\n```input\n1\n```") == [Block("python", "x"), Block("input", "1")]
    assert blocks("no fence") == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "```python\ndef f(x):\n    return x\n```\n```input\n1\n```",
            Proposal(Kind.DEDUCTION, "def f(x):\n    return x", ("1",)),
        ),
        ("```input\n1\n```", FormatError.NO_PROGRAM),
        ("```python\ndef f(x): 1\n```", FormatError.NO_INPUT),
        ("```python\n\n```\n```input\n1\n```", FormatError.EMPTY),
    ],
)
def test_proposals(text: str, expected: object) -> None:
    assert parse_proposal(Kind.DEDUCTION, text, "", 2) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "```message\nm\n```\n```input\n1\n```\n```input\n2\n```\n```input\n3\n```",
            Proposal(Kind.INDUCTION, "P", ("1", "2"), "m"),
        ),
        ("```input\n1\n```\n```input\n2\n```", FormatError.NO_MESSAGE),
        ("```message\nm\n```\n```input\n1\n```", FormatError.TOO_FEW_INPUTS),
        ("```message\nm\n```\n```input\n1\n```\n```input\n\n```", FormatError.EMPTY),
    ],
)
def test_induction_proposals(text: str, expected: object) -> None:
    assert parse_proposal(Kind.INDUCTION, text, "P", 2) == expected


def test_solutions_take_the_last_block_of_their_name() -> None:
    assert parse_solution(Kind.DEDUCTION, "```output\n1\n```\nno:\n```output\n2\n```") == "2"
    assert parse_solution(Kind.DEDUCTION, "```input\n1\n```") is FormatError.NO_OUTPUT
    assert parse_solution(Kind.ABDUCTION, "```output\n1\n```") is FormatError.NO_INPUT
    assert parse_solution(Kind.INDUCTION, "x") is FormatError.NO_PROGRAM
    assert parse_solution(Kind.DEDUCTION, "```output\n\n```") is FormatError.EMPTY


def test_r1_answers_are_what_stands_in_the_last_answer() -> None:
    assert answer_of("<think>a <answer>1</answer></think> <answer>2</answer>", "r1") == "2"
    assert answer_of("<think>a</think><answer>open", "r1") == "open"
    assert answer_of("<think>a</think>", "r1") is None
    assert answer_of("all", "completion") == "all"


def test_reward_table() -> None:
    assert propose_reward(None, "paper") == -1
    assert propose_reward([True, False, False, False], "paper") == 0.75
    assert [propose_reward([x, x], "paper") for x in (True, False)] == [0, 0]
    assert [propose_reward([x, x], "reference") for x in (True, False)] == [-0.5, -0.5]
    assert (solve_reward(True, True), solve_reward(True, False), solve_reward(False, False)) == (1, -0.5, -1)


def test_the_buffer_starts_from_the_zero_triplet_and_takes_each_task_once(tmp_path: Path) -> None:
    store = TaskBuffer(tmp_path / "tasks.sqlite")
    assert store.sizes() == {"deduction": 1, "abduction": 1, "induction": 0}
    task_id = store.add(TASK, 3, "e")
    assert task_id is not None
    assert store.add(TASK, 4, "f") is None
    assert store.replay(Kind.INDUCTION, "s") is None
    store.record(task_id, 4, 1)
    store.close()

    again = TaskBuffer(tmp_path / "tasks.sqlite")
    assert again.sizes() == {"deduction": 2, "abduction": 1, "induction": 0}
    assert (task_id, TASK) in again.references(Kind.DEDUCTION, 2, "s")
    assert len(again.references(Kind.DEDUCTION, 9, "s")) == 2
    again.close()


def test_draws_repeat_by_seed(tmp_path: Path) -> None:
    store = TaskBuffer(tmp_path / "tasks.sqlite")
    for number in range(50):
        store.add(Task(Kind.DEDUCTION, f"def f(x):\n    return {number}", ("1",), (str(number),)), 0, "e")
    draws = {seed: [i for i, _ in store.references(Kind.DEDUCTION, 5, seed)] for seed in ("a", "b", "a")}
    assert draws["a"] == [i for i, _ in store.references(Kind.DEDUCTION, 5, "a")]
    assert draws["a"] != draws["b"]
    assert len({i for i, _ in store.references(Kind.INDUCTION, 52, "x")}) == 52, "induction draws from both buffers"
    store.close()
