"""Whole episodes with fixed texts: the real judge, the real sandbox, the real buffer; only the engine is scripted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from actors.buffer import LocalBuffer, TaskBuffer
from actors.episodes import Identity, Player
from actors.generation import Completion, EngineAborted, Sampling
from actors.settings import SelfPlaySettings
from executor.judge import Judge
from executor.pool import SerialPool
from executor.settings import ExecutorSettings
from executor.tasks import Kind, Task
from learner.staleness import Grant
from learner.trajectory import Role, Status, Trajectory, VersionSpan, check


class Bytes:
    """A tokenizer of bytes: reversible, and shorter than any real one's file."""

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return list(text.encode())


class Script:
    """An engine that answers each request by what its prompt asks for."""

    tokenizer = Bytes()

    def __init__(self, answer: Callable[[str, int], str]) -> None:
        self._answer = answer
        self._asked: dict[str, int] = {}
        self.prompts: list[str] = []

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, request_id: str) -> Completion:
        prompt = bytes(prompt_ids).decode()
        self.prompts.append(prompt)
        turn = self._asked[prompt] = self._asked.get(prompt, -1) + 1
        text = self._answer(prompt, turn)
        tokens = list(text.encode()) or [0]
        spans = (VersionSpan(3, 0, len(tokens)),)
        return Completion(tokens, [-0.5] * len(tokens), text, Status.STOPPED, spans, 0.0, 0.0)


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    settings = ExecutorSettings(timeout_s=2)
    pool = SerialPool(settings)
    asyncio.run(pool.start())
    yield Judge(pool, settings)
    asyncio.run(pool.close())


SETTINGS = SelfPlaySettings(
    prompt_format="completion",
    references=1,
    solutions=4,
    induction_inputs=2,
    max_prompt_tokens=4000,
    max_propose_tokens=96,
)


def play(
    judge: Judge, store: TaskBuffer, grant: Grant, answer: Callable[[str, int], str], settings: Any = SETTINGS
) -> tuple[list[Trajectory], list[int], Script]:
    engine = Script(answer)
    seq = iter(range(1, 1000))
    player = Player(engine, judge, LocalBuffer(store), settings, Identity("run", "a", 0), lambda: next(seq), seed=1)  # type: ignore[arg-type]
    out: list[Trajectory] = []
    returned: list[int] = []

    async def emit(trajectory: Trajectory) -> None:
        check(trajectory)
        out.append(trajectory)

    async def give_back(slots: Sequence[int]) -> None:
        returned.extend(slots)

    asyncio.run(player.play(grant, emit, give_back))
    ended = sorted([t.slot for t in out] + returned)
    assert ended == sorted(grant.slots), "every slot ends exactly once"
    return out, returned, engine


def rewards(out: list[Trajectory], role: Role) -> list[float]:
    return [t.reward for t in sorted(out, key=lambda t: t.slot) if t.cell.role is role]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TaskBuffer]:
    store = TaskBuffer(tmp_path / "tasks.sqlite")
    yield store
    store.close()


DOUBLE = "x):\n    return x * 2\n```\n```input\n21\n```\n"


def test_a_valid_proposal_is_paid_by_its_difficulty(judge: Judge, store: TaskBuffer) -> None:
    def answer(prompt: str, turn: int) -> str:
        if prompt.endswith("def f("):
            return DOUBLE
        return ["42", "43", "42", "forty-two"][turn]

    out, _, _ = play(judge, store, Grant(1, Kind.DEDUCTION, 0, (0,), (1, 2, 3, 4)), answer)
    assert rewards(out, Role.SOLVE) == [1.0, -0.5, 1.0, -1.0]
    assert rewards(out, Role.PROPOSE) == [0.5]
    (proposal,) = [t for t in out if t.cell.role is Role.PROPOSE]
    assert proposal.outcome == "valid"
    assert proposal.reward_parts == {"valid": 1.0, "solve_rate": 0.5}
    assert out[-1] is proposal, "a proposal goes out once its solutions are judged"
    assert store.sizes()["deduction"] == 2


@pytest.mark.parametrize(("compat", "reward"), [("paper", 0.0), ("reference", -0.5)])
def test_a_task_that_everybody_solves_teaches_nothing(
    judge: Judge, store: TaskBuffer, compat: str, reward: float
) -> None:
    def answer(prompt: str, turn: int) -> str:
        return DOUBLE if prompt.endswith("def f(") else "42"

    settings = SETTINGS.model_copy(update={"compat": compat})
    out, _, _ = play(judge, store, Grant(1, Kind.DEDUCTION, 0, (0,), (1, 2)), answer, settings)
    assert rewards(out, Role.PROPOSE) == [reward]


def test_an_invalid_proposal_leaves_its_slots_to_the_buffer(judge: Judge, store: TaskBuffer) -> None:
    def answer(prompt: str, turn: int) -> str:
        return "x):\n    return open(x)\n```\n```input\n'f'\n```\n" if prompt.endswith("def f(") else "'Hello World'"

    out, returned, _ = play(judge, store, Grant(1, Kind.DEDUCTION, 0, (0,), (1, 2)), answer)
    assert rewards(out, Role.PROPOSE) == [-1.0]
    assert rewards(out, Role.SOLVE) == [1.0, 1.0]
    assert all(t.reward_parts["replayed"] == 1.0 for t in out if t.cell.role is Role.SOLVE)
    assert returned == []
    assert store.sizes()["deduction"] == 1


def test_slots_without_any_task_go_back(judge: Judge, store: TaskBuffer) -> None:
    out, returned, _ = play(
        judge, store, Grant(1, Kind.INDUCTION, 0, (0,), (1, 2)), lambda prompt, turn: "no blocks at all"
    )
    assert rewards(out, Role.PROPOSE) == [-1.0]
    assert returned == [1, 2]


def test_abduction_takes_any_input_that_gives_the_output(judge: Judge, store: TaskBuffer) -> None:
    def answer(prompt: str, turn: int) -> str:
        if prompt.endswith("def f("):
            return "x):\n    return abs(x)\n```\n```input\n-3\n```\n"
        return ["3", "-3", "4", "x"][turn]

    out, _, engine = play(judge, store, Grant(1, Kind.ABDUCTION, 0, (0,), (1, 2, 3, 4)), answer)
    assert rewards(out, Role.SOLVE) == [1.0, 1.0, -0.5, -1.0]
    solving = [prompt for prompt in engine.prompts if prompt.endswith("```input\n")]
    assert solving
    assert all("-3" not in prompt for prompt in solving), "the solver saw the answer"


def test_induction_is_judged_on_the_hidden_half(judge: Judge, store: TaskBuffer) -> None:
    def answer(prompt: str, turn: int) -> str:
        if prompt.endswith("```message\n"):
            return "Gives it back.\n```\n```input\n'shown'\n```\n```input\n'hidden'\n```\n"
        return ["x):\n    return x\n", "x):\n    return 'shown'\n"][turn % 2]

    out, _, engine = play(judge, store, Grant(1, Kind.INDUCTION, 0, (0,), (1, 2)), answer)
    assert rewards(out, Role.SOLVE) == [1.0, -0.5]
    assert all("hidden" not in prompt for prompt in engine.prompts), "the solver saw the hidden half"
    assert store.sizes()["induction"] == 1


def test_estimates_beyond_the_slots_count_but_are_not_trained(judge: Judge, store: TaskBuffer) -> None:
    def answer(prompt: str, turn: int) -> str:
        return DOUBLE if prompt.endswith("def f(") else ("42" if turn == 3 else "0")

    out, _, _ = play(judge, store, Grant(1, Kind.DEDUCTION, 0, (0,), (1,)), answer)
    assert rewards(out, Role.PROPOSE) == [0.75]
    assert len(out) == 2


def test_proposals_of_one_prompt_go_their_own_ways(judge: Judge, store: TaskBuffer) -> None:
    def answer(prompt: str, turn: int) -> str:
        if prompt.endswith("def f("):
            return DOUBLE if turn == 0 else "nothing"
        return "42"

    out, _, _ = play(judge, store, Grant(1, Kind.DEDUCTION, 0, (0, 1), (2, 3, 4)), answer)
    assert rewards(out, Role.PROPOSE) == [0.0, -1.0]
    first, second = (t for t in sorted(out, key=lambda t: t.slot) if t.cell.role is Role.PROPOSE)
    assert first.prompt_ids.tolist() == second.prompt_ids.tolist()


def test_a_failing_engine_is_raised_never_rewarded(judge: Judge, store: TaskBuffer) -> None:
    def answer(prompt: str, turn: int) -> str:
        raise EngineAborted("gone")

    with pytest.raises(EngineAborted):
        play(judge, store, Grant(1, Kind.DEDUCTION, 0, (0,), (1,)), answer)


def test_a_replay_episode_solves_one_task(judge: Judge, store: TaskBuffer) -> None:
    task = Task(Kind.DEDUCTION, "def f(x):\n    return x + 1", ("1",), ("2",))
    store.add(task, 0, "e")
    out, _, engine = play(judge, store, Grant(1, Kind.DEDUCTION, 0, (), (0, 1, 2)), lambda prompt, turn: "2")
    assert len(set(engine.prompts)) == 1
    assert len(out) == 3
