"""Tasks whose input the executor finds (`selfplay.complete_inputs`)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from actors.completed import Completed, Completer, first_function
from actors.environment import Environment
from actors.heldout.tasks import is_held_out
from actors.settings import SelfPlaySettings
from learner.staleness import Grant
from tests.unit.actors.scripted import new_store, play


def complete(environment: Environment, text: str, seed: str = "1") -> Completed | None:
    return asyncio.run(Completer(environment).complete("deduction", text, seed))


@pytest.mark.parametrize(
    "program",
    [
        "def f(x):\n    return x * 31 + 7",
        "def f(s):\n    return s.upper() + '-' + s[:2]",
        "def f(a):\n    a.append(len(a))\n    return sorted(a)",
        "def f(words, n):\n    return [w[:n] for w in words]",
        "def f(a, b, c):\n    return (c, a + b)",
        "def f(x, by=3):\n    if x > by:\n        return x % by\n\n    return x ** by",
    ],
)
def test_a_program_that_runs_gets_an_input_and_the_executor_s_output(environment: Environment, program: str) -> None:
    found = complete(environment, f"```python\n{program}\n```\nthis is no input")
    assert found == complete(environment, f"```python\n{program}\nf(3)"), "a function of the program and the seed"
    assert found is not None and not found.task.ignores_input
    (outcome,) = asyncio.run(environment.evaluate(found.task.program, found.task.inputs))
    assert (outcome.value,) == found.task.outputs
    assert {complete(environment, program, str(seed)) for seed in range(8)} != {found}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no program",
        "def f():\n    return 1",
        "def f(*args):\n    return args",
        "def f(a, b, c, d):\n    return a",
        "def f(x):\n    return 7",
        "def f(x):\n    y = x\n    return 7",
        "def f(x):\n    return x.nothing",
        "def f(x):\n    return x +",
        "def f(x):\n    import random\n    return random.random() + x",
    ],
)
def test_what_runs_with_no_input_or_needs_none_is_left_out(environment: Environment, text: str) -> None:
    assert complete(environment, text) is None


@pytest.mark.parametrize(
    "program", ["def f(x):\n    while True:\n        y = x", "def f(x):\n    import os\n    return os.getpid() + x"]
)
def test_no_further_input_is_tried_after_a_timeout_or_a_refusal(environment: Environment, program: str) -> None:
    """Seven timeouts in a row would keep a sandbox for seconds."""
    before = environment.stats.validated
    assert complete(environment, program) is None
    assert environment.stats.validated == before + 1


def test_no_held_out_task_comes_of_it(environment: Environment) -> None:
    found = [complete(environment, "def f(x):\n    return x + 1", str(seed)) for seed in range(60)]
    assert not any(one is not None and is_held_out(one.task, one.normal) for one in found)


def test_the_first_function_ends_where_the_indentation_does() -> None:
    text = "```python\ndef f(x):\n    if x:\n\n        return 1\n    return 2\n\ndef g(y):\n    return 3\n```"
    assert first_function(text) == "def f(x):\n    if x:\n\n        return 1\n    return 2"
    assert first_function(text.replace("\n", "\r\n")) == first_function(text)
    assert first_function("def g(x):\n    return 1") is None


@pytest.mark.parametrize("completes", [False, True])
def test_an_episode_stores_and_labels_the_task_and_pays_its_proposer_nothing_more(
    environment: Environment, tmp_path: Path, completes: bool
) -> None:
    program = "def f(x):\n    return [x, 77, x]"
    settings = SelfPlaySettings(
        prompt_format="completion", solutions=2, max_prompt_tokens=4000, complete_inputs=completes, label_pairs=2
    )

    def answer(prompt: str, turn: int) -> str:
        return program.removeprefix("def f(") + "\n```\nno input" if prompt.endswith("def f(") else "8"

    store = new_store(tmp_path)
    played = play(environment, store, Grant(1, "deduction", 0, (0,), (1, 2)), answer, settings)
    assert played.proposal.outcome == "no_input"
    assert played.proposal.reward == -1.0
    assert (played.proposal.timings["execute_s"] > 0) == completes, "a reply that cannot be read runs nothing"
    found = [task for _, task in store.references(("deduction", "abduction"), 9, "s") if task.program == program]
    assert sorted(task.kind for task in found) == (["abduction", "deduction"] if completes else [])
    assert [one.program for one in store.labelled(9, "s")] == [program] * completes
    assert played.player.counts()["tasks_completed"] == completes
    store.close()


def test_a_task_enters_only_if_a_prompt_has_room_for_each_of_its_forms(
    environment: Environment, tmp_path: Path
) -> None:
    """Of this program the input is short and the output, which the solver of an abduction is shown, is long."""
    program = "def f(x):\n    return [x] * 2000"
    settings = SelfPlaySettings(prompt_format="completion", solutions=2, max_prompt_tokens=4000, complete_inputs=True)

    def answer(prompt: str, turn: int) -> str:
        return program.removeprefix("def f(") + "\n```\nno input" if prompt.endswith("def f(") else "8"

    assert complete(environment, program) is not None
    store = new_store(tmp_path)
    played = play(environment, store, Grant(1, "deduction", 0, (0,), (1, 2)), answer, settings)
    assert played.player.counts()["tasks_completed"] == 0
    assert all(task.program != program for _, task in store.references(("deduction", "abduction"), 9, "s"))
    store.close()
