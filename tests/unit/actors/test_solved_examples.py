"""The examples of a solver's prompt: solved, of the kind, of other programs, within the limit."""

from __future__ import annotations

import asyncio

import pytest

from actors.buffer.task_buffer import LocalBuffer, NewTask, TaskBuffer
from actors.environment import Environment
from actors.prompt_builder import PromptBuilder
from actors.settings import SelfPlaySettings
from actors.solved_examples import SolvedExamples, is_copy
from executor.tasks import Task
from learner.staleness import Grant
from learner.trajectory import Role
from tests.unit.actors.scripted import Bytes, deduction, play, reply

ASKED = {
    "deduction": deduction("def f(x):\n    return x * 7", "3", "21"),
    "abduction": Task("abduction", "def f(x):\n    return x * 7", ("3",), ("21",)),
    "induction": Task("induction", "def f(x):\n    return x * 7", ("1", "2"), ("7", "14"), "sevens"),
}
"""The task asked, by kind; the buffer has the same program under another name."""


@pytest.fixture
def store(environment: Environment, store: TaskBuffer) -> TaskBuffer:
    for factor in range(2, 9):
        for name in ("y", "z"):
            program = f"def f({name}):\n    return {name} * {factor}"
            facts = asyncio.run(environment.inspect(program))
            assert facts
            given = 5 + (name == "z")
            pair = (str(given),), (str(given * factor),)
            for task in (
                Task("deduction", program, *pair),
                Task("abduction", program, *pair),
                Task("induction", program, (*pair[0], "9"), (*pair[1], str(9 * factor)), f"times {factor}"),
            ):
                store.add(NewTask(task, facts.normal, 0, "e"))
    return store


def draw(store: TaskBuffer, environment: Environment, task: Task, count: int, seed: str = "1") -> list[Task]:
    return asyncio.run(SolvedExamples(LocalBuffer(store), environment, count).draw(task, seed))


@pytest.mark.parametrize("kind", ASKED)
def test_examples_are_of_other_programs_and_no_copies(environment: Environment, store: TaskBuffer, kind: str) -> None:
    task = ASKED[kind]
    seen = set()
    for seed in map(str, range(12)):
        found = draw(store, environment, task, 3, seed)
        assert found == draw(store, environment, task, 3, seed)
        factors = [one.program[-1] for one in found]
        assert 1 <= len(found) <= 3 and len(set(factors)) == len(factors), "no program twice, whatever its names"
        assert "7" not in factors
        assert all(one.kind == kind and not is_copy(one) for one in found), "the zero triplet is a copy"
        seen |= set(factors)
    assert len(seen) == 6


@pytest.mark.parametrize("kind", ASKED)
def test_a_prompt_shows_them_solved_as_far_as_they_fit(environment: Environment, store: TaskBuffer, kind: str) -> None:
    task = ASKED[kind]
    found = draw(store, environment, task, 3)
    builder = PromptBuilder(Bytes(), "completion", 10_000, 2)
    prompts = [bytes(builder.solve(task, found[:count]).token_ids).decode() for count in range(4)]
    zero = prompts[0]
    assert "Hello World" in zero and not any("Hello World" in prompt for prompt in prompts[1:])
    last = zero.partition("Example 2\n")[2]
    for count, prompt in enumerate(prompts[1:], start=1):
        assert prompt.endswith(f"Example {count + 1}\n{last}")
        for one in found[:count]:
            assert f"```python\n{one.program}\n```" in prompt
            assert f"```output\n{one.outputs[0]}\n```" in prompt and f"```input\n{one.inputs[0]}\n```" in prompt
    for count in (3, 2):
        cut = PromptBuilder(Bytes(), "completion", len(prompts[count]) - 1, 2).solve(task, found)
        assert bytes(cut.token_ids).decode() == prompts[count - 1]


def test_an_episode_solves_with_examples_from_the_buffer(environment: Environment, store: TaskBuffer) -> None:
    settings = SelfPlaySettings(
        prompt_format="completion", solutions=2, induction_inputs=2, max_prompt_tokens=4000, examples=2, references=1
    )

    def answer(prompt: str, turn: int) -> str:
        return reply("def f(x):\n    return x - 50", "7") if prompt.endswith("def f(") else "-43"

    played = play(environment, store, Grant(1, "deduction", 0, (0,), (1, 2)), answer, settings)
    first, second = played.by_slot(Role.SOLVE)
    assert first.prompt_ids.tolist() == second.prompt_ids.tolist(), "the solutions of a task share one prompt"
    prompt = bytes(first.prompt_ids.tolist()).decode()
    assert prompt.count("```output\n") == 3 and "Example 3\n```python\ndef f(x):\n    return x - 50" in prompt
    assert first.outcome == "correct"
