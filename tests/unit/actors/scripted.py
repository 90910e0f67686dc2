"""A scripted engine and a whole episode around it: the real environment, sandbox and buffer; only the model's words are
given."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from actors.buffer.task_buffer import LocalBuffer, NewTask, TaskBuffer
from actors.engine.generation import Completion, Sampling
from actors.environment import Environment
from actors.episodes import Player
from actors.roles import model_roles
from actors.sampler import Identity
from actors.settings import SelfPlaySettings
from executor.judge import Judge
from executor.pool import SerialPool
from executor.settings import ExecutorSettings
from executor.tasks import Task
from learner.staleness import Grant
from learner.trajectory import Role, Status, Trajectory, VersionSpan, check

Answer = Callable[[str, int], str]
"""(prompt, how often it was asked before) -> reply."""


class Bytes:
    """A tokenizer of bytes: reversible, and shorter than any real one's file."""

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return list(text.encode())


class Script:
    """An engine that answers each request by what its prompt asks for."""

    tokenizer = Bytes()

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._asked: dict[str, int] = {}
        self.prompts: list[str] = []
        self.sampled: dict[str, Sampling] = {}

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, request_id: str) -> Completion:
        assert request_id not in self.sampled, "two requests of one name"
        self.sampled[request_id] = sampling
        prompt = bytes(prompt_ids).decode()
        self.prompts.append(prompt)
        turn = self._asked[prompt] = self._asked.get(prompt, -1) + 1
        text = self._answer(prompt, turn)
        tokens = list(text.encode()) or [0]
        spans = (VersionSpan(3, 0, len(tokens)),)
        return Completion(tokens, [-0.5] * len(tokens), text, Status.STOPPED, spans, 0.0, 0.0)


@contextlib.contextmanager
def judging(settings: SelfPlaySettings | None = None, timeout_s: float = 2) -> Iterator[Environment]:
    """A judge with the rules of these settings on a pool of its own."""
    executor = ExecutorSettings(timeout_s=timeout_s)
    pool = SerialPool(executor)
    asyncio.run(pool.start())
    try:
        yield Environment(Judge(pool, executor, rules=(settings or SelfPlaySettings()).rules))
    finally:
        asyncio.run(pool.close())


@dataclass
class Played:
    """What became of one episode."""

    out: list[Trajectory] = field(default_factory=list)
    returned: list[int] = field(default_factory=list)
    engine: Script = None  # type: ignore[assignment]
    player: Player = None  # type: ignore[assignment]

    def by_slot(self, role: Role) -> list[Trajectory]:
        return [t for t in sorted(self.out, key=lambda t: t.slot) if t.cell.role is role]

    def rewards(self, role: Role) -> list[float]:
        return [t.reward for t in self.by_slot(role)]

    def outcomes(self) -> dict[int, str]:
        return {t.slot: t.outcome for t in self.out}

    @property
    def proposal(self) -> Trajectory:
        (found,) = self.by_slot(Role.PROPOSE)
        return found


def play(
    environment: Environment,
    store: TaskBuffer,
    grant: Grant,
    answer: Answer,
    settings: SelfPlaySettings,
    seed: int | None = 1,
) -> Played:
    """Play one episode to its end; each slot has to end exactly once, in a trajectory that the learner would take."""
    engine = Script(answer)
    buffer = LocalBuffer(store)
    roles = model_roles(engine, environment, buffer, settings)  # type: ignore[arg-type]
    player = Player(roles, buffer, Identity("run", "a", 0), seed)
    played = Played(engine=engine, player=player)

    async def emit(trajectory: Trajectory) -> None:
        check(trajectory)
        played.out.append(trajectory)

    async def give_back(slots: Sequence[int]) -> None:
        played.returned.extend(slots)

    asyncio.run(player.play(grant, emit, give_back))
    ended = sorted([t.slot for t in played.out] + played.returned)
    assert ended == sorted(grant.slots), "every slot ends exactly once"
    for trajectory in played.out:
        terms = {k: v for k, v in trajectory.reward_parts.items() if k.startswith("reward/")}
        assert terms, "a reward without a reason"
        assert sum(terms.values()) == trajectory.reward, "the terms do not add up to the reward"
    return played


def give(store: TaskBuffer, *tasks: Task) -> list[int | None]:
    """Put tasks into a buffer, each of an episode of its own; returns their numbers, None for those that it knew."""
    added = [
        store.add(NewTask(task, normal=task.program, proposer_version=0, episode_id=f"given{next(_GIVEN)}"))
        for task in tasks
    ]
    return [None if one.duplicate else one.task_id for one in added]


_GIVEN = itertools.count()


def reply(program: str, given: str) -> str:
    """A proposer's reply in the completion format, which goes on from `def f(`."""
    return f"{program.removeprefix('def f(')}\n```\n```input\n{given}\n```\n"


def r1(answer: str, thought: str = "so") -> str:
    """A reply in the r1 format, which goes on from <think>."""
    return f"{thought}</think><answer>{answer}</answer>"


def fenced(*parts: tuple[str, str]) -> str:
    """Named blocks."""
    return "".join(f"```{name}\n{text}\n```\n" for name, text in parts)


def new_store(folder: Path) -> TaskBuffer:
    """A buffer with the zero triplet."""
    return TaskBuffer(folder / "tasks.sqlite")


def deduction(program: str, given: str, output: str) -> Task:
    return Task("deduction", program, (given,), (output,))
