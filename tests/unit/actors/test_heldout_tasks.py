"""The held-out tasks: that the file is what the sandbox says, and that no rule of thumb solves them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

import pytest

from actors.environment import Environment
from actors.heldout.tasks import HeldoutTask, digest, is_held_out, load_tasks
from actors.kinds.induction import hidden, num_shown
from actors.kinds.registry import kind_of
from executor.tasks import Task
from launch.shipped.heldout_programs import programs
from launch.shipped.heldout_tasks import make
from learner.settings import BatchSettings
from tests.unit.actors.scripted import judging

KINDS = BatchSettings().kinds


@pytest.fixture(scope="module")
def environment() -> Iterator[Environment]:
    with judging(timeout_s=60) as environment:  # a thousand executions, on a machine that may be busy
        yield environment


@pytest.mark.slow
def test_the_file_is_what_the_generator_and_the_sandbox_make(environment: Environment) -> None:
    assert asyncio.run(make(environment)) == load_tasks(), "python -m launch.shipped.heldout_tasks writes it anew"


def test_the_set_never_changes() -> None:
    assert digest(load_tasks()) == "8d950c0cde82", "other tasks are another set: give `SET` another number"


def test_there_are_enough_of_each_kind_and_difficulty() -> None:
    tasks = load_tasks()
    assert len({entry.name for entry in tasks}) == len(tasks) >= 600
    assert min(Counter(entry.task.kind for entry in tasks).values()) >= 210
    by_difficulty = Counter((entry.task.kind, entry.difficulty) for entry in tasks)
    assert all(by_difficulty[kind, difficulty] >= 40 for kind in KINDS for difficulty in (1, 2, 3, 4))
    of_one_program = Counter((entry.task.kind, entry.normal) for entry in tasks)
    assert max(of_one_program.values()) <= 2
    assert len({entry.normal for entry in tasks}) == len(programs()) >= 210


@pytest.mark.parametrize("count", range(36, 711, 45))
def test_a_part_of_them_is_balanced_and_begins_every_larger_part(count: int) -> None:
    everything, part = load_tasks(), load_tasks(count)
    assert part == everything[:count]
    kinds = Counter(entry.task.kind for entry in part)
    assert max(kinds.values()) - min(kinds.values()) <= 1
    for difficulty in (1, 2, 3, 4):
        whole = sum(entry.difficulty == difficulty for entry in everything) / len(everything)
        assert abs(sum(entry.difficulty == difficulty for entry in part) - whole * count) < 6


def test_no_constant_and_no_identity_solves_an_induction_task() -> None:
    tasks = [entry.task for entry in load_tasks() if entry.task.kind == "induction"]
    assert all(num_shown(task) == 2 and len(hidden(task)) == 2 for task in tasks)
    assert not [task.program for task in tasks if len({output for _, output in hidden(task)}) == 1]
    assert not [task.program for task in tasks if all(given == output for given, output in hidden(task))]


def test_neither_copying_nor_one_answer_to_everything_solves_deduction() -> None:
    tasks = [entry.task for entry in load_tasks() if entry.task.kind == "deduction"]
    copied = sum(bool(kind_of("deduction").is_copy(task, task.outputs[0])) for task in tasks)
    assert copied < 0.03 * len(tasks)
    ((_, most),) = Counter(task.outputs[0] for task in tasks).most_common(1)
    assert most < 0.06 * len(tasks)


def test_neither_copying_nor_one_answer_to_everything_solves_abduction(environment: Environment) -> None:
    common = ("0", "1", "2", "4", "5", "7", "10", "'a'", "'abc'", "[]", "[1]", "[5]", "[1, 2]", "1, 2", "True")
    solved: Counter[str] = Counter()
    tasks = [entry.task for entry in load_tasks() if entry.task.kind == "abduction"][::4]
    for task in tasks:
        answers = dict.fromkeys((task.outputs[0], *common), "")
        verdicts = asyncio.run(environment.verify_all(task, list(answers)))
        assert not verdicts[0].correct, "the output, given back as the input, gives the output"
        solved.update(text for text, verdict in zip(answers, verdicts, strict=True) if verdict.correct)
    assert max(solved.values()) < 0.15 * len(tasks)


@pytest.mark.slow
def test_their_own_answers_solve_them(environment: Environment) -> None:
    for entry in load_tasks():
        task = entry.task
        answer = {
            "deduction": task.outputs[0],
            "abduction": task.inputs[0],
            "induction": task.program,
        }[task.kind]
        assert asyncio.run(environment.verify(task, answer)).correct, entry.name


def test_they_survive_the_file() -> None:
    for entry in load_tasks():
        assert HeldoutTask.from_json(entry.to_json()) == entry


def test_a_task_is_held_out_by_its_normal_form_and_any_of_its_inputs() -> None:
    entry = next(one for one in load_tasks() if one.task.kind == "induction")

    def held_out(kind: str, normal: str, *inputs: str) -> bool:
        return is_held_out(Task(kind, "", inputs, inputs), normal)

    assert held_out("deduction", entry.normal, entry.task.inputs[-1])
    assert held_out("induction", entry.normal, "'never seen'", entry.task.inputs[0])
    assert not held_out("deduction", entry.normal, "'never seen'")
    assert not held_out("deduction", entry.normal + " ", entry.task.inputs[0])
    assert not held_out("another", entry.normal, entry.task.inputs[0]), "tasks of other kinds are other tasks"
