"""Labelled examples: prompts of self-play with right responses, drawn by seed and step."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from actors.buffer.task_buffer import TaskBuffer
from actors.environment import Environment
from actors.kinds.registry import kind_of
from actors.labelled import LabelledProgram
from actors.labelled_examples import PER_PROGRAM, LabelledExamples
from actors.settings import SelfPlaySettings
from executor.tasks import Task
from learner.trajectory import Role
from tests.unit.actors.reading import parse_proposal
from tests.unit.actors.scripted import Bytes, new_store

SETTINGS = SelfPlaySettings(
    prompt_format="completion", references=2, induction_inputs=2, max_prompt_tokens=2000, max_solve_tokens=60,
    max_propose_tokens=200,
)  # fmt: skip
KINDS = ("deduction", "abduction", "induction")
PROGRAMS = [
    LabelledProgram(
        f"def f(x):\n    return x * {number} + 1",
        f"normal {number}",
        tuple((str(x), str(x * number + 1)) for x in (2, 5, 9, 12)),
        f"times {number}" if number % 2 else "",
    )
    for number in range(2, 12)
]
STARTS = {"```output\n": "deduction", "```input\n": "abduction", "```python\ndef f(": "induction"}


@pytest.fixture
def store(store: TaskBuffer) -> TaskBuffer:
    for program in PROGRAMS:
        store.label(program)
    return store


def source(
    store: TaskBuffer,
    kinds: tuple[str, ...] = KINDS,
    count: int = 16,
    proposed: tuple[str, ...] | None = None,
    **given: int,
) -> LabelledExamples:
    """`proposed`: the kinds of proposers; None: all of `kinds`."""
    of_roles = {Role.SOLVE: kinds, Role.PROPOSE: kinds if proposed is None else proposed}
    return LabelledExamples(store.labelled, Bytes(), SETTINGS.model_copy(update=given), of_roles, count, 1)


def texts(found: LabelledExamples, step: int) -> list[tuple[str, str]]:
    return [(bytes(e.prompt_ids.tolist()).decode(), bytes(e.response_ids.tolist()).decode()) for e in found(step)]


def test_every_response_is_judged_right(environment: Environment, store: TaskBuffer) -> None:
    """A solver's is by the environment; a proposer's reads back as a task of a labelled program with its own input."""
    examples = source(store)
    roles = {"solve": 0, "propose": 0}
    seen = set()
    for step in range(12):
        for prompt, response in texts(examples, step):
            head, _, last = prompt.rpartition("Example ")
            if "Each example is a Python function f, an input, and its output. All" in prompt:
                roles["propose"] += 1
                proposal = parse_proposal("deduction", f"```python\ndef f({response}".removesuffix("```output"), "", 1)
                assert (proposal.inputs[0], proposal.program) in {(i, p.program) for p in PROGRAMS for i, _ in p.pairs}
                assert proposal.program not in head, "its references are other programs"
            elif "message that says what" in prompt:
                roles["propose"] += 1
                if prompt.endswith("```message\n"):
                    assert response.count("```input\n") == SETTINGS.induction_inputs
            else:
                roles["solve"] += 1
                kind = next(kind for start, kind in STARTS.items() if prompt.endswith(start))
                seen.add(kind)
                asked = [(p, pair) for p in PROGRAMS for pair in p.pairs if _asked(kind, last, p, pair)]
                assert asked, (kind, last)
                program, (given, output) = asked[0]
                pairs = program.pairs if kind == "induction" else ((given, output),)
                inputs, outputs = zip(*pairs, strict=True)
                reply = next(start for start, one in STARTS.items() if one == kind) + response
                answer = kind_of(kind).read_answer(reply)
                assert isinstance(answer, str)
                task = Task(kind, program.program, inputs, outputs, program.message)
                assert asyncio.run(environment.verify(task, answer)).correct
    assert seen == set(KINDS)
    assert 0.15 < roles["propose"] / sum(roles.values()) < 0.35


def _asked(kind: str, text: str, program: LabelledProgram, pair: tuple[str, str]) -> bool:
    """Whether `text`, the last part of a solver's prompt, asks about this pair of this program."""
    given, output = pair
    if kind == "induction":
        message = program.message or "f uses `+` and `*`."
        shown = all(f"```output\n{output}\n```" in text for _, output in program.pairs[:2])
        hidden = not any(f"```output\n{output}\n```" in text for _, output in program.pairs[2:])
        return f"```message\n{message}\n```" in text and shown and hidden and pair == program.pairs[0]
    shown = f"```input\n{given}\n```" if kind == "deduction" else f"```output\n{output}\n```"
    return f"{program.program}\n```" in text and shown in text


def test_a_step_repeats_by_its_number_also_after_a_restart(tmp_path: Path, store: TaskBuffer) -> None:
    first = [texts(source(store), step) for step in (0, 1, 1)]
    assert first[0] != first[1] == first[2]
    store.snapshot(tmp_path / "copy.sqlite")
    again = TaskBuffer(tmp_path / "copy.sqlite")
    assert texts(source(again), 1) == first[1]
    again.close()


def test_few_programs_give_few_examples_and_none_give_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    store = new_store(tmp_path / "empty")
    assert source(store)(0) == []
    store.label(PROGRAMS[0])
    assert len(source(store)(0)) <= PER_PROGRAM
    store.close()


def test_limits_and_kinds_are_the_runs(store: TaskBuffer) -> None:
    for prompt, _ in texts(source(store, ("abduction",)), 0):
        assert prompt.endswith(("```input\n", "```python\ndef f("))
    assert source(store, max_prompt_tokens=40)(0) == []
    short = source(store, max_solve_tokens=5, max_propose_tokens=9)
    assert not [one for step in range(4) for one in short(step) if len(one.response_ids) > 5]


def test_a_proposer_that_is_not_trained_has_no_examples(store: TaskBuffer) -> None:
    solver = source(store, proposed=())
    found = [text for step in range(6) for text in texts(solver, step)]
    assert len(found) == 6 * 16
    assert {kind for prompt, _ in found for start, kind in STARTS.items() if prompt.endswith(start)} == set(KINDS)
    proposers = ("Each example is a Python function f, an input, and its output. All", "message that says what")
    assert not any(text in prompt for prompt, _ in found for text in proposers)
    without_induction = source(store, proposed=("deduction", "abduction"))
    found = [text for step in range(6) for text in texts(without_induction, step)]
    assert any(proposers[0] in prompt for prompt, _ in found)
    assert not any(proposers[1] in prompt for prompt, _ in found)
    proposer = source(store, kinds=(), proposed=("deduction",))
    assert all(proposers[0] in prompt for prompt, _ in texts(proposer, 0))


def test_the_draw_is_uniform_over_programs(store: TaskBuffer) -> None:
    drawn = [store.labelled(1, str(seed))[0].normal for seed in range(1000)]
    assert {drawn.count(program.normal) > 60 for program in PROGRAMS} == {True}
    assert len({one.normal for one in store.labelled(99, "all")}) == len(PROGRAMS)
