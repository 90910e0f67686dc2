"""Labelled programs: what the executor says, of programs that teach something."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from actors.buffer.task_buffer import TaskBuffer
from actors.environment import Environment
from actors.heldout.tasks import load_tasks
from actors.kinds.registry import kind_of
from actors.labelled import LabelledProgram
from actors.labeller import Labeller
from actors.settings import SelfPlaySettings
from executor.literals import parse_args
from executor.outcomes import InfrastructureError
from executor.tasks import Task
from executor.values import canonical
from learner.staleness import Grant
from learner.trajectory import Role
from tests.unit.actors.scripted import new_store, play, reply


def label(
    environment: Environment, *sources: tuple[str, str], pairs: int = 4, seed: str = "1"
) -> list[LabelledProgram]:
    """Label `sources`: pairs of a program and one input."""

    async def run() -> list[LabelledProgram]:
        found = []
        for program, given in sources:
            outputs = tuple(outcome.value for outcome in await environment.evaluate(program, (given,)))
            facts = await environment.inspect(program)
            assert facts
            found.append((Task("deduction", program, (given,), outputs), facts.normal))
        return await Labeller(environment, pairs).label_all(found, seed)

    return asyncio.run(run())


def test_labels_are_the_executors_and_none_is_a_copy(environment: Environment) -> None:
    sources = [
        ("def f(x):\n    return x * 3 + 2", "50"),
        ("def f(s):\n    return s[::-1] if s else 1 / 0", "'tea'"),
        ("def f(a):\n    return sorted(set(a))[:2]", "[4, 1, 4]"),
        ("def f(a, b):\n    return max(a, b) * 10 + 1", "3, 4"),
    ]
    found = label(environment, *sources)
    assert [one.program for one in found] == [program for program, _ in sources]
    for one in found:
        inputs = [given for given, _ in one.pairs]
        assert 2 <= len(one.pairs) <= 4 and len(set(inputs)) == len(inputs)
        outputs = asyncio.run(environment.evaluate(one.program, inputs))
        assert [outcome.value for outcome in outputs] == [output for _, output in one.pairs]
        assert not any(output in map(canonical, parse_args(given)) for given, output in one.pairs)
    assert found == label(environment, *sources), "the same again by the same seed"
    assert found != label(environment, *sources, seed="2")


@pytest.mark.parametrize(
    ("program", "given"),
    [
        ("def f(x):\n    return x", "5"),
        ("def f(x):\n    return 7", "5"),
        ("def f(a, b):\n    return b", "1, 'x'"),
        ("def f(x):\n    return None, 42", "'a'"),
        ("def f(x):\n    y = x\n    return y", "[1, 2]"),
    ],
)
def test_what_copies_or_ignores_its_input_is_left_out(environment: Environment, program: str, given: str) -> None:
    assert label(environment, (program, given)) == []


def test_a_program_is_taken_once_whatever_its_names(environment: Environment) -> None:
    (found,) = label(
        environment, ("def f(x):\n    return x + 55", "3"), ("def f(value):\n    # more\n    return value + 55", "4")
    )
    assert found.pairs[:2] == (("3", "58"), ("4", "59")), "with the inputs of all its tasks"


def test_no_program_of_a_held_out_task_is_labelled(environment: Environment) -> None:
    entries = [entry for entry in load_tasks() if entry.difficulty > 1][:20]
    renamed = [entry.task.program.replace("def f(", "def f(  ") + "  # mine" for entry in entries]
    assert label(environment, *zip(renamed, [entry.task.inputs[0] for entry in entries], strict=True)) == []


def test_an_episode_labels_a_new_program_once_and_is_otherwise_as_without(
    environment: Environment, tmp_path: Path
) -> None:
    grant = Grant(1, "deduction", 0, (0, 1), (2, 3, 4, 5))
    settings = SelfPlaySettings(prompt_format="completion", solutions=2, max_prompt_tokens=4000)

    def answer(prompt: str, turn: int) -> str:
        if not prompt.endswith("def f("):
            return "8" if turn else "no"
        return reply("def f(x):\n    return x * 3 + 2", "2") if turn else reply("def f(x):\n    return x", "5")

    found = []
    for label_pairs in (0, 3):
        (tmp_path / f"{label_pairs}").mkdir()
        store = new_store(tmp_path / f"{label_pairs}")
        chosen = settings.model_copy(update={"label_pairs": label_pairs})
        played = play(environment, store, grant, answer, chosen)
        found.append([(t.slot, t.outcome, t.reward, t.response_ids.tolist()) for t in played.by_slot(Role.SOLVE)])
        labelled = store.labelled(9, "s")
        assert [program.program for program in labelled] == ["def f(x):\n    return x * 3 + 2"][: bool(label_pairs)]
        assert all(len(program.pairs) == 3 for program in labelled)
        store.close()
    assert found[0] == found[1]


@pytest.mark.parametrize("ended_in", ["needs_label", "label", "label_tried"])
def test_labelling_that_is_cut_short_is_done_for_the_next_task_of_the_program(
    environment: Environment, store: TaskBuffer, monkeypatch: pytest.MonkeyPatch, ended_in: str
) -> None:
    """Two proposals with the program share one labelling, and nothing of it is done again once it has ended."""
    grant = Grant(1, "deduction", 0, (0, 1), (2, 3))
    settings = SelfPlaySettings(prompt_format="completion", solutions=1, max_prompt_tokens=4000, label_pairs=3)
    program = "def f(x):\n    return x * 3 + 2"

    class Killed(Exception):
        pass

    def kill(*arguments: object) -> bool:
        raise Killed

    def answer(prompt: str, turn: int) -> str:
        return reply(program, "2") if prompt.endswith("def f(") else "8"

    def episode() -> None:
        play(environment, store, grant, answer, settings)

    with monkeypatch.context() as patch:
        patch.setattr(store, ended_in, kill)
        with pytest.raises(Killed):
            episode()
    assert all(task.program != program for _, task in store.references(("deduction",), 9, "s"))
    stored: list[LabelledProgram] = []
    store_label = store.label

    def count(found: LabelledProgram) -> None:
        stored.append(found)
        store_label(found)

    with monkeypatch.context() as patch:
        patch.setattr(store, "label", count)
        episode()
    assert len(stored) == 1, "of two proposals"
    assert [one.program for one in store.labelled(9, "s")] == [program]
    with monkeypatch.context() as patch:
        patch.setattr(store, "label", kill)
        episode()


def test_a_program_whose_labelling_fails_is_left_out_and_no_episode_fails(
    environment: Environment, store: TaskBuffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant = Grant(1, "deduction", 0, (0, 1), (2, 3))
    settings = SelfPlaySettings(prompt_format="completion", solutions=1, max_prompt_tokens=4000, label_pairs=3)
    failed = 0

    async def fail(*arguments: object) -> list[object]:
        nonlocal failed
        failed += 1
        raise InfrastructureError("the sandbox failed twice on one request")

    def answer(prompt: str, turn: int) -> str:
        return reply("def f(x):\n    return x * 3 + 2", "2") if prompt.endswith("def f(") else "8"

    monkeypatch.setattr(environment, "evaluate", fail)
    counted = [play(environment, store, grant, answer, settings).player.counts()["labels_failed"] for _ in range(2)]
    assert (counted, failed) == ([1, 0], 1), "of both proposals, and of those that come later"
    assert store.labelled(9, "s") == []


def test_pairs_are_tasks_of_every_kind(environment: Environment) -> None:
    (found,) = label(environment, ("def f(x):\n    return x * x + 1", "3"))
    (bare,) = label(environment, ("def f(x):\n    return [x, 5]", "3"))
    told = LabelledProgram(found.program, found.normal, found.pairs, "f doubles")
    assert {task.message for task in found.tasks(2)} == {"", "f uses `+` and `*`."}, "induction needs a message"
    assert {task.kind for task in bare.tasks(2)} == {"deduction", "abduction"}, "no construct to name either"
    for task in told.tasks(2):
        kind = kind_of(task.kind)
        answer = kind.read_answer(kind.answer_reply(task))
        assert isinstance(answer, str)
        assert set(zip(task.inputs, task.outputs, strict=True)) <= set(told.pairs)
        assert asyncio.run(environment.verify(task, answer)).correct
    assert [task.kind for task in told.tasks(2)].count("induction") == 1


def test_a_task_of_induction_out_of_pairs_does_not_look_like_one_that_ignores_its_input() -> None:
    pairs = (("2", "False"), ("3", "False"), ("9", "True"), ("4", "False"))
    program = LabelledProgram("def f(x):\n    return x > 5", "normal", pairs, "f compares")
    for number in (2, 3, 4):
        (task,) = [task for task in program.tasks(number) if task.kind == "induction"]
        assert len(task.inputs) == len(set(task.inputs)) == number
        assert set(task.outputs) == {"False", "True"}
        assert set(zip(task.inputs, task.outputs, strict=True)) <= set(pairs)
    same = LabelledProgram("def f(x):\n    return x > 5", "normal", pairs[:2], "f compares")
    assert [task.outputs for task in same.tasks(2) if task.kind == "induction"] == [("False", "False")]
