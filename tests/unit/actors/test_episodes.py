"""Whole episodes with fixed texts: the real environment, the real sandbox, the real buffer; only the engine is
scripted."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from actors.buffer.task_buffer import LocalBuffer, TaskBuffer
from actors.engine.generation import EngineAborted
from actors.environment import Environment
from actors.episodes import Player
from actors.heldout.tasks import load_tasks
from actors.propose import RecentOutputs
from actors.roles import model_roles
from actors.sampler import Identity
from actors.settings import SelfPlaySettings
from executor.judge import Judge
from executor.outcomes import InfrastructureError
from executor.settings import ExecutorSettings
from executor.tasks import Task, Verdict
from learner.staleness import Grant
from learner.trajectory import Role, Trajectory, VersionSpan, check
from tests.unit.actors.scripted import Answer, Script, give
from tests.unit.actors.scripted import play as play_episode

SETTINGS = SelfPlaySettings(
    prompt_format="completion",
    references=1,
    solutions=4,
    induction_inputs=2,
    max_prompt_tokens=4000,
    max_propose_tokens=96,
)


def play(
    environment: Environment, store: TaskBuffer, grant: Grant, answer: Answer, settings: Any = SETTINGS
) -> tuple[list[Trajectory], list[int], Script]:
    played = play_episode(environment, store, grant, answer, settings)
    return played.out, played.returned, played.engine


def rewards(out: list[Trajectory], role: Role) -> list[float]:
    return [t.reward for t in sorted(out, key=lambda t: t.slot) if t.cell.role is role]


DOUBLE = "x):\n    return x * 2\n```\n```input\n21\n```\n"


def test_a_valid_proposal_is_paid_by_its_difficulty(environment: Environment, store: TaskBuffer) -> None:
    def answer(prompt: str, turn: int) -> str:
        if prompt.endswith("def f("):
            return DOUBLE
        return ["42", "43", "42", "forty-two"][turn]

    out, _, _ = play(environment, store, Grant(1, "deduction", 0, (0,), (1, 2, 3, 4)), answer)
    assert rewards(out, Role.SOLVE) == [1.0, -0.5, 1.0, -1.0]
    assert rewards(out, Role.PROPOSE) == [0.5]
    (proposal,) = [t for t in out if t.cell.role is Role.PROPOSE]
    assert proposal.outcome == "valid"
    computed = ("nodes", "complexity", "halstead", "distance", "program")
    measured = {name: proposal.reward_parts.pop(name) for name in computed}
    assert proposal.reward_parts == {
        "valid": 1.0, "solve_rate": 0.5, "duplicate": 0.0, "ignores_input": 0.0, "answer_diversity": 1.0,
        "reward/difficulty": 0.5,
    }  # fmt: skip
    assert measured["nodes"] > 3
    assert 0 < measured["distance"] < 1, "the zero program is near, but another"
    for solution in out[:-1]:
        parts = solution.reward_parts
        assert (parts["replayed"], parts["estimate"]) == (0.0, 1.0)
        assert parts.get("copied", 0.0) == 0.0
    assert out[-1] is proposal, "a proposal goes out once its solutions are judged"
    assert store.sizes()["deduction"] == 2


@pytest.mark.parametrize(("compat", "reward"), [("paper", 0.0), ("reference", -0.5)])
def test_a_task_that_everybody_solves_teaches_nothing(
    environment: Environment, store: TaskBuffer, compat: str, reward: float
) -> None:
    def answer(prompt: str, turn: int) -> str:
        return DOUBLE if prompt.endswith("def f(") else "42"

    settings = SETTINGS.model_copy(update={"compat": compat})
    out, _, _ = play(environment, store, Grant(1, "deduction", 0, (0,), (1, 2)), answer, settings)
    assert rewards(out, Role.PROPOSE) == [reward]


def test_an_invalid_proposal_leaves_its_slots_to_the_buffer(environment: Environment, store: TaskBuffer) -> None:
    def answer(prompt: str, turn: int) -> str:
        return "x):\n    return open(x)\n```\n```input\n'f'\n```\n" if prompt.endswith("def f(") else "'Hello World'"

    out, returned, _ = play(environment, store, Grant(1, "deduction", 0, (0,), (1, 2)), answer)
    assert rewards(out, Role.PROPOSE) == [-1.0]
    assert rewards(out, Role.SOLVE) == [1.0, 1.0]
    assert all(t.reward_parts["replayed"] == 1.0 for t in out if t.cell.role is Role.SOLVE)
    assert returned == []
    assert store.sizes()["deduction"] == 1


@pytest.mark.parametrize("kind", ["deduction", "abduction"])
def test_a_held_out_task_is_neither_stored_solved_nor_trained(
    environment: Environment, store: TaskBuffer, kind: str
) -> None:
    """Also under other names, and with an input that a task of another kind has."""
    entry = next(one for one in load_tasks() if one.task.kind == "induction" and "f(x)" in one.task.program)
    body = re.sub(r"\bx\b", "number", entry.task.program).removeprefix("def f(")

    def answer(prompt: str, turn: int) -> str:
        written = f"{body}  # by chance\n```\n```input\n{entry.task.inputs[-1]}\n```\n"
        return written if prompt.endswith("def f(") else "'Hello World'"

    player = play_episode(environment, store, Grant(1, kind, 0, (0,), (1, 2)), answer, SETTINGS)
    assert player.returned == [0]
    assert [t.cell.role for t in player.out] == [Role.SOLVE, Role.SOLVE]
    assert all(t.reward_parts["replayed"] for t in player.out)
    assert store.sizes()[kind] == 1, "the zero triplet alone"


def test_a_copied_input_is_counted(environment: Environment, store: TaskBuffer) -> None:
    def answer(prompt: str, turn: int) -> str:
        return DOUBLE if prompt.endswith("def f(") else ["21", " 21", "42", "```"][turn]

    out, _, _ = play(environment, store, Grant(1, "deduction", 0, (0,), (1, 2, 3, 4)), answer)
    solutions = [t for t in sorted(out, key=lambda t: t.slot) if t.cell.role is Role.SOLVE]
    assert [t.reward_parts.get("copied") for t in solutions] == [1.0, 1.0, 0.0, None]


def test_slots_without_any_task_go_back(environment: Environment, store: TaskBuffer) -> None:
    out, returned, _ = play(
        environment, store, Grant(1, "induction", 0, (0,), (1, 2)), lambda prompt, turn: "no blocks at all"
    )
    assert rewards(out, Role.PROPOSE) == [-1.0]
    assert returned == [1, 2]


def test_abduction_takes_any_input_that_gives_the_output(environment: Environment, store: TaskBuffer) -> None:
    def answer(prompt: str, turn: int) -> str:
        if prompt.endswith("def f("):
            return "x):\n    return abs(x)\n```\n```input\n-3\n```\n"
        return ["3", "-3", "4", "x"][turn]

    out, _, engine = play(environment, store, Grant(1, "abduction", 0, (0,), (1, 2, 3, 4)), answer)
    assert rewards(out, Role.SOLVE) == [1.0, 1.0, -0.5, -1.0]
    solving = [prompt for prompt in engine.prompts if prompt.endswith("```input\n")]
    assert solving
    assert all("-3" not in prompt for prompt in solving), "the solver saw the answer"


def test_induction_is_judged_on_the_hidden_half(environment: Environment, store: TaskBuffer) -> None:
    def answer(prompt: str, turn: int) -> str:
        if prompt.endswith("```message\n"):
            return "Gives it back.\n```\n```input\n'shown'\n```\n```input\n'hidden'\n```\n"
        return ["x):\n    return x\n", "x):\n    return 'shown'\n"][turn % 2]

    out, _, engine = play(environment, store, Grant(1, "induction", 0, (0,), (1, 2)), answer)
    assert rewards(out, Role.SOLVE) == [1.0, -0.5]
    assert all("hidden" not in prompt for prompt in engine.prompts), "the solver saw the hidden half"
    assert store.sizes()["induction"] == 1


def test_an_induction_proposal_with_one_input_twice_hides_nothing(environment: Environment, store: TaskBuffer) -> None:
    reply = "Gives it back.\n```\n```input\n'a'\n```\n```input\n \"a\"\n```\n"
    out, returned, _ = play(environment, store, Grant(1, "induction", 0, (0,), (1, 2)), lambda prompt, turn: reply)
    assert [(t.reward, t.outcome) for t in out] == [(-1.0, "duplicate_input")]
    assert returned == [1, 2]


def test_the_solutions_of_a_task_are_judged_together(
    environment: Environment, store: TaskBuffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(prompt: str, turn: int) -> str:
        if prompt.endswith("def f("):
            return "x):\n    return abs(x)\n```\n```input\n-3\n```\n"
        return ["3", "```", "4", "3"][turn]

    requests: list[list[str]] = []
    verify_all = environment.verify_all

    async def watched(task: Task, answers: Sequence[str]) -> list[Verdict]:
        requests.append(list(answers))
        return await verify_all(task, answers)

    monkeypatch.setattr(environment, "verify_all", watched)
    out, _, _ = play(environment, store, Grant(1, "abduction", 0, (0,), (1, 2, 3, 4)), answer)
    assert requests == [["3", "4", "3"]], "a reply without an answer asks the judge nothing"
    assert rewards(out, Role.SOLVE) == [1.0, -1.0, -0.5, 1.0]


def test_estimates_beyond_the_slots_count_but_are_not_trained(environment: Environment, store: TaskBuffer) -> None:
    def answer(prompt: str, turn: int) -> str:
        return DOUBLE if prompt.endswith("def f(") else ("42" if turn == 3 else "0")

    out, _, _ = play(environment, store, Grant(1, "deduction", 0, (0,), (1,)), answer)
    assert rewards(out, Role.PROPOSE) == [0.75]
    assert len(out) == 2


def test_proposals_of_one_prompt_go_their_own_ways(environment: Environment, store: TaskBuffer) -> None:
    def answer(prompt: str, turn: int) -> str:
        if prompt.endswith("def f("):
            return DOUBLE if turn == 0 else "nothing"
        return "42"

    out, _, _ = play(environment, store, Grant(1, "deduction", 0, (0, 1), (2, 3, 4)), answer)
    assert rewards(out, Role.PROPOSE) == [0.0, -1.0]
    first, second = (t for t in sorted(out, key=lambda t: t.slot) if t.cell.role is Role.PROPOSE)
    assert first.prompt_ids.tolist() == second.prompt_ids.tolist()


def test_a_failing_engine_is_raised_never_rewarded(environment: Environment, store: TaskBuffer) -> None:
    def answer(prompt: str, turn: int) -> str:
        raise EngineAborted("gone")

    with pytest.raises(EngineAborted):
        play(environment, store, Grant(1, "deduction", 0, (0,), (1,)), answer)


def test_a_replay_episode_solves_one_task(environment: Environment, store: TaskBuffer) -> None:
    task = Task("deduction", "def f(x):\n    return x + 1", ("1",), ("2",))
    give(store, task)
    out, _, engine = play(environment, store, Grant(1, "deduction", 0, (), (0, 1, 2)), lambda prompt, turn: "2")
    assert len(set(engine.prompts)) == 1
    assert len(out) == 3


def play_with(
    engine: Script,
    environment: Environment,
    store: TaskBuffer,
    grant: Grant,
    settings: SelfPlaySettings,
    seed: int | None = 1,
) -> tuple[list[Trajectory], list[int]]:
    """What was emitted and given back, by an episode that may fail: `engine` decides."""
    identity = Identity("run", "a", 0)
    buffer = LocalBuffer(store)
    roles = model_roles(engine, environment, buffer, settings)  # type: ignore[arg-type]
    player = Player(roles, buffer, identity, seed)
    out: list[Trajectory] = []
    returned: list[int] = []

    async def emit(trajectory: Trajectory) -> None:
        check(trajectory)
        out.append(trajectory)

    async def give_back(slots: Sequence[int]) -> None:
        returned.extend(slots)

    async def story() -> None:
        try:
            await player.play(grant, emit, give_back)
        except EngineAborted:
            out.append(None)  # type: ignore[arg-type]

    asyncio.run(story())
    return out, returned


@pytest.mark.parametrize("num_solutions_first", [0, 1, 3])
def test_an_engine_that_fails_among_the_solutions_rewards_nobody_for_it(
    environment: Environment, store: TaskBuffer, num_solutions_first: int
) -> None:
    """The solutions that were judged before may count; the proposal, whose difficulty nobody knows now, may not."""

    def answer(prompt: str, turn: int) -> str:
        if prompt.endswith("def f("):
            return DOUBLE
        if turn >= num_solutions_first:
            raise EngineAborted("gone")
        return "42"

    out, returned = play_with(
        Script(answer), environment, store, Grant(1, "deduction", 0, (0,), (1, 2, 3, 4)), SETTINGS
    )
    assert out[-1] is None, "the failure was not raised"
    emitted = out[:-1]
    assert len(emitted) <= num_solutions_first
    assert all(t.cell.role is Role.SOLVE and t.reward == 1.0 for t in emitted)
    assert returned == []


def test_a_failing_sandbox_is_raised_never_rewarded(store: TaskBuffer) -> None:
    class Broken:
        workers, seeds = 2, 8

        async def execute(self, *args: Any, **options: Any) -> Any:
            raise InfrastructureError("no sandbox")

    broken = Environment(Judge(Broken(), ExecutorSettings()))  # type: ignore[arg-type]
    with pytest.raises(InfrastructureError):
        play(broken, store, Grant(1, "deduction", 0, (0,), (1,)), lambda prompt, turn: DOUBLE)
    assert store.sizes()["deduction"] == 1


def test_a_task_too_long_for_a_solver_is_refused_by_name(environment: Environment, store: TaskBuffer) -> None:
    """The output alone is longer than a prompt may be: valid for the environment, but nobody can be asked to solve
    it."""
    grant = Grant(1, "abduction", 0, (0,), (1, 2))

    def answer(prompt: str, turn: int) -> str:
        if prompt.endswith("def f("):
            return "x):\n    return 'long' * x\n```\n```input\n2000\n```\n"
        return "'Hello World'"

    played = play_episode(environment, store, grant, answer, SETTINGS)
    assert (played.proposal.reward, played.proposal.outcome) == (-1.0, "too_long")
    assert played.proposal.reward_parts == {"valid": 0.0, "reward/invalid": -1.0}
    assert played.rewards(Role.SOLVE) == [1.0, 1.0], "its slots went to a task of the buffer"
    assert played.returned == []
    assert store.sizes()["abduction"] == 1
    assert played.player.counts() == {
        "prompts_too_long": 0,
        "references_left_out": 0,
        "tasks_too_long": 1,
        "tasks_held_out": 0,
        "tasks_completed": 0,
        "labels_failed": 0,
    }


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("x): return x", "no_input"),
        ("x): return x\n```\n```input\n", "unparseable_input"),  # an empty block is no input
        ("x): return x\n```\n```input\nx\n```", "unparseable_input"),
        ("x): return 1 / x\n```\n```input\n0\n```", "error"),
        ("x): return x\n```\n```input\n1, 2\n```", "error"),
        ("x):\n    import os\n    return os.getpid()\n```\n```input\n1\n```", "unsafe"),
    ],
)
def test_an_invalid_proposal_says_what_was_wrong(
    environment: Environment, store: TaskBuffer, text: str, outcome: str
) -> None:
    out, _, _ = play(environment, store, Grant(1, "deduction", 0, (0,), ()), lambda prompt, turn: text)
    ((reward, found, parts),) = [(t.reward, t.outcome, t.reward_parts) for t in out]
    assert (reward, found, parts) == (-1.0, outcome, {"valid": 0.0, "reward/invalid": -1.0})
    assert store.sizes()["deduction"] == 1


def test_a_proposal_without_solve_slots_is_still_estimated(environment: Environment, store: TaskBuffer) -> None:
    def answer(prompt: str, turn: int) -> str:
        return DOUBLE if prompt.endswith("def f(") else ("42" if turn == 0 else "0")

    out, _, engine = play(environment, store, Grant(1, "deduction", 0, (0,), ()), answer)
    assert rewards(out, Role.PROPOSE) == [0.75]
    assert len(engine.prompts) == 1 + SETTINGS.solutions


def test_the_buffer_learns_how_often_a_task_was_solved(
    environment: Environment, store: TaskBuffer, tmp_path: Path
) -> None:
    def answer(prompt: str, turn: int) -> str:
        return DOUBLE if prompt.endswith("def f(") else ("42" if turn == 0 else "0")

    play(environment, store, Grant(1, "deduction", 0, (0,), (1,)), answer)
    with sqlite3.connect(tmp_path / "tasks.sqlite") as database:
        query = "SELECT attempts, solved, proposer_version, episode_id, outputs FROM tasks WHERE program LIKE '%x * 2%'"
        assert database.execute(query).fetchall() == [(4, 1, 3, "1.0", '["42"]')]


def test_replays_are_counted_without_estimates(environment: Environment, store: TaskBuffer, tmp_path: Path) -> None:
    out, _, engine = play(
        environment, store, Grant(1, "abduction", 0, (), (0, 1)), lambda prompt, turn: ["'Hello World'", "'x'"][turn]
    )
    assert rewards(out, Role.SOLVE) == [1.0, -0.5]
    assert [t.outcome for t in sorted(out, key=lambda t: t.slot)] == ["correct", "wrong"]
    assert len(engine.prompts) == 2
    with sqlite3.connect(tmp_path / "tasks.sqlite") as database:
        query = "SELECT attempts, solved FROM tasks WHERE kind = 'abduction'"
        assert database.execute(query).fetchall() == [(2, 1)]


def test_solve_slots_of_a_kind_without_tasks_go_back(environment: Environment, store: TaskBuffer) -> None:
    out, returned, engine = play(
        environment, store, Grant(1, "induction", 0, (), (0, 1, 2)), lambda prompt, turn: "unused"
    )
    assert (out, returned, engine.prompts) == ([], [0, 1, 2], [])


def test_r1_replies_are_read_from_their_answer(environment: Environment, store: TaskBuffer) -> None:
    def answer(prompt: str, turn: int) -> str:
        if "What does f return" in prompt:
            return [
                " ```output\n0\n``` perhaps</think><answer>```output\n42\n```",
                "no</think><answer>```output\n41\n```",
                "42</think>```output\n42\n```",
                "42</think><answer>42",
            ][turn]
        return "easy</think><answer>```python\ndef f(x):\n    return x * 2\n```\n```input\n21\n```"

    settings = SETTINGS.model_copy(update={"prompt_format": "r1"})
    out, _, _ = play(environment, store, Grant(1, "deduction", 0, (0,), (1, 2, 3, 4)), answer, settings)
    assert rewards(out, Role.SOLVE) == [1.0, -0.5, -1.0, -1.0]
    assert rewards(out, Role.PROPOSE) == [0.75]
    outcomes = {t.slot: t.outcome for t in out}
    assert outcomes == {0: "valid", 1: "correct", 2: "wrong", 3: "no_answer", 4: "no_output"}


def test_seeds_are_a_function_of_the_run_and_the_slot(environment: Environment, store: TaskBuffer) -> None:
    def answer(prompt: str, turn: int) -> str:
        return DOUBLE if prompt.endswith("def f(") else "42"

    def seeds(seed: int | None, slots: tuple[int, ...]) -> list[int | None]:
        engine = Script(answer)
        play_with(engine, environment, store, Grant(1, "deduction", 0, (0,), slots), SETTINGS, seed)
        assert {s.max_tokens for s in engine.sampled.values()} == {96, SETTINGS.max_solve_tokens}
        return [sampling.seed for sampling in engine.sampled.values()]

    first = seeds(1, (1, 2))
    assert len(first) == len(set(first)) == 5, "one proposal, two slots, two estimates: all different"
    assert seeds(1, (1, 2)) == first
    assert set(seeds(2, (1, 2))).isdisjoint(first)
    assert set(seeds(1, (7, 8))) & set(first) == {first[0], *first[3:]}, "other slots, the same proposal and estimates"
    assert set(seeds(None, (1, 2))) == {None}


def test_trajectories_carry_what_the_engine_said(environment: Environment, store: TaskBuffer) -> None:
    out, _, _ = play(environment, store, Grant(4, "deduction", 2, (), (9,)), lambda prompt, turn: "'Hello World'\n```")
    (trajectory,) = out
    assert bytes(trajectory.response_ids.tolist()) == b"'Hello World'\n```"
    assert bytes(trajectory.prompt_ids.tolist()).endswith(b"```output\n")
    assert trajectory.logprobs.tolist() == [-0.5] * 17
    assert trajectory.versions == (VersionSpan(3, 0, 17),)
    assert (trajectory.run_id, trajectory.actor_id, trajectory.incarnation, trajectory.slot) == ("run", "a", 0, 9)
    assert set(trajectory.timings) == {"queue_s", "generate_s", "execute_s"}


def test_answer_diversity_is_one_minus_the_share_among_the_recent() -> None:
    recent = RecentOutputs(limit=4)
    outputs = [("1",), ("1",), ("2",), ("1",), ("3",), ("1",), ("2", "1")]
    assert [recent.diversity(one) for one in outputs] == [1.0, 0.0, 1.0, 1 - 2 / 3, 1.0, 0.5, 1.0]
    assert recent.diversity(("2",)) == 1.0, "it is forgotten by now"
