"""A kind of task that no line of azr knows (`differ.py`), from its registration to a batch; only the model's words are
given."""

from __future__ import annotations

import ast
import asyncio
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.buffer.task_buffer import TaskBuffer
from actors.environment import Environment
from actors.kinds import registry
from actors.kinds.registry import KindError, kind_of, names, registered
from actors.metrics import describe_batch
from actors.parsing import answer_of
from actors.seed_file import load_seeds, save
from actors.settings import SelfPlaySettings
from executor.judge import Judge
from executor.pool import SerialPool
from executor.settings import ExecutorSettings
from executor.tasks import Proposal, Rejection, Task, Verdict
from launch.config import load
from launch.recipe import ConfigError
from launch.sft.data import examples
from learner.advantages import advantages
from learner.ledger import conserved
from learner.places import Holder
from learner.queue import BatchQueue
from learner.settings import AdvantageSettings, BatchSettings
from learner.staleness import Gate, Grant
from learner.stream.wire import grant_from_message, grant_to_message
from learner.trajectory import Cell, Role, Trajectory, decode, encode
from tests.unit.actors.kinds.differ import Differ
from tests.unit.actors.scripted import Answer, fenced, give, new_store, play, r1

ROOT = Path(__file__).parents[4]
ONE, OTHER = "def f(x):\n    return x * x", "def f(x):\n    return x * 2"
TASK = Task("differ", ONE, ("3",), ("9",), texts={"other": OTHER})
SETTINGS = SelfPlaySettings(prompt_format="completion", solutions=2)
PROPOSE, SOLVE = Cell("differ", Role.PROPOSE), Cell("differ", Role.SOLVE)


@pytest.fixture(autouse=True)
def differ() -> Iterator[None]:
    with registered(Differ()):
        yield


def script(proposal: str, answers: list[str]) -> Answer:
    """Proposes once, then answers in turn."""
    return lambda prompt, turn: answers[turn] if "For which input" in prompt else proposal


def reply(*parts: tuple[str, str]) -> str:
    return fenced(*parts).removeprefix("```python\ndef f(")


SOUND = reply(("python", ONE), ("python", OTHER), ("input", "3"))


def gate() -> Gate:
    return Gate(BatchSettings(kinds=("differ",), propose={"differ": 1}, solve={"differ": 4}), 0, solutions=2)


def test_it_is_played_from_grant_to_batch(environment: Environment, tmp_path: Path) -> None:
    """Proposed, validated, solved, judged, kept, replayed; over the wire, through the gate, into one batch."""
    holder, queue = Holder("a", 0), BatchQueue[Trajectory](gate())
    store = new_store(tmp_path)
    played = []
    while grant := queue.gate.grant(holder, 99):
        arrived = grant_from_message(grant_to_message(grant))
        assert arrived == grant
        found = play(environment, store, arrived, script(SOUND, ["3", "2"]), SETTINGS)
        for trajectory in found.out:
            assert queue.arrive(decode([bytes(frame) for frame in encode(trajectory)]), holder)
        played.append(found)
    batch = queue.batch()
    assert batch is not None
    assert [(t.cell, t.outcome, t.reward) for t in batch] == [
        (PROPOSE, "valid", 0.5),
        (SOLVE, "correct", 1.0),  # 3: 9 and 6
        (SOLVE, "wrong", -0.5),  # 2: both give 4
        (SOLVE, "correct", 1.0),
        (SOLVE, "wrong", -0.5),
    ]
    assert [t.reward_parts.get("replayed") for t in batch] == [None, 0.0, 0.0, 1.0, 1.0]
    numbers = describe_batch(batch)
    assert (numbers["valid_rate/differ"], numbers["solve_rate/differ"], numbers["replayed/differ"]) == (1.0, 0.5, 0.5)
    assert numbers["fact/other_lines/differ"] == 2.0
    assert np.allclose(advantages(batch, AdvantageSettings()), [0, 1, -1, 1, -1])
    queue.trained([t.slot for t in batch])
    queue.gate.published(1)
    assert conserved(queue.gate.ledger())
    assert queue.gate.ledger()[SOLVE].trained == 4
    assert store.sizes() == {"deduction": 1, "abduction": 1, "induction": 0, "differ": 1}
    store.close()
    again = TaskBuffer(tmp_path / "tasks.sqlite")
    assert again.replay("differ", "seed") == (3, TASK), "a replayed task is the one that was proposed, both programs"
    again.close()


@pytest.mark.parametrize(
    ("proposal", "outcome"),
    [
        (reply(("python", ONE), ("python", f"# the same\n{ONE}"), ("input", "3")), "same_output"),
        (reply(("python", ONE), ("python", OTHER), ("input", "2")), "same_output"),
        (reply(("python", ONE), ("input", "3")), "no_program"),
        (reply(("python", ONE), ("python", OTHER)), "no_input"),
        (reply(("python", ONE), ("python", "def f(x): return hash('a')"), ("input", "3")), "nondeterministic"),
        (reply(("python", ONE), ("python", "def f(x): return eval('x')"), ("input", "3")), "unsafe"),
    ],
)
def test_what_is_no_task_is_named_and_not_kept(
    environment: Environment, tmp_path: Path, proposal: str, outcome: str
) -> None:
    store = new_store(tmp_path)
    played = play(environment, store, Grant(1, "differ", 0, (0,), (1, 2)), script(proposal, []), SETTINGS)
    assert (played.outcomes(), played.rewards(Role.PROPOSE), played.returned) == ({0: outcome}, [-1.0], [1, 2])
    assert store.sizes()["differ"] == 0
    store.close()


def test_answers_are_judged_by_both_programs(environment: Environment, tmp_path: Path) -> None:
    store = new_store(tmp_path)
    give(store, TASK)
    settings = SelfPlaySettings(prompt_format="r1")
    answers = [r1(fenced(("input", text))) for text in ("-1", "f(5)", "0", "'a'", "x")] + [r1("none")]
    played = play(environment, store, Grant(1, "differ", 0, (), tuple(range(6))), script("", answers), settings)
    assert list(played.outcomes().values()) == ["correct", "correct", "wrong", "error", "unparseable", "no_input"]
    assert [prompt.count("```python") for prompt in played.engine.prompts] == [2] * 6
    store.close()


def test_its_proposers_see_its_own_past_tasks(environment: Environment, tmp_path: Path) -> None:
    store = new_store(tmp_path)
    first, second = [
        play(environment, store, Grant(turn, "differ", 0, (0,), ()), script(SOUND, ["3", "2"]), SETTINGS)
        for turn in (1, 2)
    ]
    assert ONE not in first.engine.prompts[0], "there is no zero task of this kind"
    assert ONE in second.engine.prompts[0] and OTHER in second.engine.prompts[0]
    assert [played.proposal.reward_parts["duplicate"] for played in (first, second)] == [0.0, 1.0]
    store.close()


def test_tasks_that_differ_in_the_second_program_alone_are_two(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    changed = Task("differ", ONE, ("3",), ("9",), texts={"other": "def f(x):\n    return x + 1"})
    assert give(store, TASK, changed, TASK) == [3, 4, None]
    store.close()


def test_a_seed_file_carries_it(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    give(store, TASK)
    store.close()
    assert save(tmp_path / "tasks.sqlite", tmp_path / "seeds.jsonl", kinds=["differ"]) == {"differ": 1}
    second = TaskBuffer(tmp_path / "second.sqlite")
    rules = SelfPlaySettings().rules
    assert load_seeds(tmp_path / "seeds.jsonl", ExecutorSettings(), second, rules).counts()["differ"] == 1
    found = second.replay("differ", "seed")
    assert found is not None and found[1] == TASK
    second.close()


@pytest.mark.parametrize("prompt_format", ["completion", "r1"])
def test_fine_tuning_data_reads_back(prompt_format: str) -> None:
    found = list(examples([TASK, TASK], prompt_format, ("solve", "propose"), 2, 0))  # type: ignore[arg-type]
    solve, propose = found[:2]
    assert solve is not None and propose is not None
    whole = [example["prompt"][-1] + example["response"] for example in (solve, propose)]
    answer, proposal = (answer_of(text, prompt_format) for text in whole)  # type: ignore[arg-type]
    assert answer is not None and proposal is not None
    assert kind_of("differ").read_answer(answer) == "3"
    read = kind_of("differ").read_proposal(proposal, [], 2)
    assert (read.program, read.inputs, read.texts) == (ONE, ("3",), {"other": OTHER})  # type: ignore[union-attr]


def test_recorded_work_has_the_texts_that_it_adds() -> None:
    recorded: list[dict[str, Any]] = []
    environment = Environment(Judge(SerialPool(ExecutorSettings()), ExecutorSettings()), recorded.append)
    proposal = Proposal("differ", ONE, (), texts={"other": OTHER})  # without an input, so nothing runs
    assert isinstance(asyncio.run(environment.validate(proposal)), Rejection)
    assert asyncio.run(environment.verify_all(TASK, [])) == []
    assert [line["texts"] for line in recorded] == [{"other": OTHER}] * 2


def test_a_recipe_may_name_it_once_it_is_registered() -> None:
    overrides = ['learner.batch.kinds=["differ"]', "learner.batch.propose={differ=4}", "learner.batch.solve={differ=8}"]
    batch = load("smollm2-cpu", overrides).learner.batch
    assert [(cell, batch.quota(cell)) for cell in batch.cells] == [(PROPOSE, 4), (SOLVE, 8)]
    with pytest.raises(ConfigError, match="'difer'.* Did you mean differ"):
        load("smollm2-cpu", ['learner.batch.kinds=["difer"]'])


def test_a_kind_that_leaves_an_answer_without_a_verdict_is_named(environment: Environment) -> None:
    class Short(Differ):
        name = "short"

        async def verify(self, judge: Judge, task: Task, answers: Sequence[str]) -> list[Verdict]:
            return (await super().verify(judge, task, answers))[1:]

    with registered(Short()), pytest.raises(KindError, match="'short' gave 1 verdicts on 2 answers"):
        asyncio.run(environment.verify_all(replace(TASK, kind="short"), ["3", "4"]))


def test_a_name_is_taken_once_and_checked() -> None:
    class Loud(Differ):
        name = "Loud"

    with pytest.raises(KindError, match="two kinds of task are called 'differ'"), registered(Differ()):
        pass
    with pytest.raises(KindError, match="'Loud' cannot name"), registered(Loud()):
        pass
    assert names() == ("deduction", "abduction", "induction", "differ")
    with pytest.raises(KindError, match=r"'diffr' is no registered kind.* deduction, abduction, induction, differ"):
        kind_of("diffr")


def test_an_installation_without_entry_points_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: [])
    monkeypatch.setattr(registry, "_registered", {})
    with pytest.raises(KindError, match=r"no kind of task is registered: azr is not installed here.*make setup"):
        names()


def installed(folder: Path, value: str) -> subprocess.CompletedProcess[str]:
    """List the kinds in a process that finds a package in `folder` which registers `differ = value`."""
    info = folder / "differ_kind-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: differ-kind\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[azr.kinds]\ndiffer = {value}\n")
    (folder / "differ_kind.py").write_text((Path(__file__).parent / "differ.py").read_text())
    path = [str(ROOT), str(folder)]
    code = f"import sys; sys.path[:0] = {path}; from actors.kinds.registry import names; print(*names())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def test_an_installed_package_registers_it(tmp_path: Path) -> None:
    assert installed(tmp_path, "differ_kind:Differ").stdout.split() == ["deduction", "abduction", "induction", "differ"]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("no_such_module:Differ", "cannot be loaded: ModuleNotFoundError"),
        ("differ_kind:Task", "cannot be loaded: TypeError"),
        ("builtins:dict", "is not the class of a TaskKind"),
    ],
)
def test_an_entry_point_that_cannot_be_used_is_named(tmp_path: Path, value: str, why: str) -> None:
    found = installed(tmp_path, value)
    assert found.returncode != 0
    assert "KindError" in found.stderr and why in found.stderr and value in found.stderr


def statements(source: str) -> set[str]:
    """Of classes and functions, whatever their indentation: each function, and each statement of a class."""
    found = set()
    for node in ast.parse(source).body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        found |= {ast.dump(one) for one in inner}
    return found


def test_the_documentation_shows_this_kind_as_it_is() -> None:
    source = statements((Path(__file__).parent / "differ.py").read_text())
    pieces = re.findall(r"```python\n(.*?)\n```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL)
    shown = set[str]().union(*(statements(textwrap.dedent(piece)) for piece in pieces))
    assert len(shown) >= 10
    assert shown <= source
