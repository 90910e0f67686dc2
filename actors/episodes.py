"""The self-play episode: propose -> validate -> solve n times -> verify -> reward.

A grant holds the slots of one episode. Each proposal is sampled from the same prompt and goes its own way with its share
of the solve slots: where it is valid they are spent on solving it, which also estimates its difficulty and so its reward;
where it is not they are spent on a task from the buffer. Every rollout that fills a slot becomes one trajectory. What the
environment could not judge raises, and is never a reward.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

from actors.buffer import Buffer
from actors.generation import Completion, Engine, Sampling
from actors.parsing import FormatError, answer_of, parse_proposal, parse_solution
from actors.prompts import Prompt, PromptBuilder, PromptTooLong
from actors.rewards import propose_reward, solve_reward
from actors.settings import SelfPlaySettings
from executor.judge import Judge
from executor.tasks import Kind, Rejection, Task, VerdictReason
from learner.staleness import Grant
from learner.trajectory import Cell, Role, Trajectory

T = TypeVar("T")
Emit = Callable[[Trajectory], Awaitable[None]]
GiveBack = Callable[[Sequence[int]], Awaitable[None]]


@dataclass(frozen=True)
class Identity:
    """Who plays: goes into every trajectory."""

    run_id: str
    actor_id: str
    incarnation: int


class _Solution(NamedTuple):
    correct: bool
    formatted: bool
    outcome: str
    completion: Completion
    execute_s: float


class Player:
    """Plays granted episodes with one engine, one judge and one buffer. Hands out trajectories as they finish."""

    def __init__(
        self,
        engine: Engine,
        judge: Judge,
        buffer: Buffer,
        settings: SelfPlaySettings,
        identity: Identity,
        next_seq: Callable[[], int],
        seed: int | None,
    ) -> None:
        """`seed`: makes every draw and sample a function of it and of the slot; None leaves sampling to the engine."""
        self._engine = engine
        self._judge = judge
        self._buffer = buffer
        self._settings = settings
        self._identity = identity
        self._next_seq = next_seq
        self._seed = seed
        self._prompts = PromptBuilder(
            engine.tokenizer, settings.prompt_format, settings.max_prompt_tokens, settings.induction_inputs
        )

    async def play(
        self,
        grant: Grant,
        emit: Emit,
        give_back: GiveBack,
    ) -> None:
        """Play one episode. Every slot of the grant ends in `emit` or `give_back`, unless this raises."""
        if not grant.propose:
            await self._replay(grant, grant.solve, f"{grant.episode}", emit, give_back)
            return
        references = await self._buffer.references(
            grant.kind,
            1 if grant.kind is Kind.INDUCTION else self._settings.references,
            self._salt(grant.episode, "references"),
        )
        tasks = [task for _, task in references]
        prompt = self._prompts.propose(grant.kind, tasks)
        shares = [grant.solve[index :: len(grant.propose)] for index in range(len(grant.propose))]
        program = tasks[0].program if grant.kind is Kind.INDUCTION else ""
        await _all(
            self._propose(grant, slot, share, prompt, program, emit, give_back)
            for slot, share in zip(grant.propose, shares, strict=True)
        )

    async def _propose(
        self,
        grant: Grant,
        slot: int,
        share: Sequence[int],
        prompt: Prompt,
        program: str,
        emit: Emit,
        give_back: GiveBack,
    ) -> None:
        """One proposal, and what becomes of its solve slots. Its trajectory goes out once its solutions are judged."""
        episode_id = f"{grant.episode}.{slot}"
        completion = await self._generate(prompt, self._settings.max_propose_tokens, f"p{slot}")
        started = time.monotonic()
        task, outcome = await self._validate(grant.kind, prompt, completion, program)
        execute_s = time.monotonic() - started
        solved: list[bool] | None = None
        if task is None:
            await self._replay(grant, share, episode_id, emit, give_back)
        else:
            version = min(span.version for span in completion.versions)
            task_id = await self._buffer.add(task, version, episode_id)
            solved = await self._solve(grant, task, task_id, share, episode_id, emit)
            if solved is None:  # the task is too long for a solver's prompt: nobody can say how hard it is
                task, outcome = None, FormatError.EMPTY.value
                await give_back(share)
        reward = propose_reward(solved, self._settings.compat)
        parts = {"valid": float(task is not None)}
        if solved:
            parts["solve_rate"] = sum(solved) / len(solved)
        await emit(
            self._trajectory(
                grant.kind, Role.PROPOSE, slot, episode_id, prompt, completion, reward, parts, outcome, execute_s
            )
        )

    async def _validate(
        self, kind: Kind, prompt: Prompt, completion: Completion, program: str
    ) -> tuple[Task | None, str]:
        text = answer_of(prompt.reply_start + completion.text, self._settings.prompt_format)
        if text is None:
            return None, FormatError.NO_ANSWER.value
        proposal = parse_proposal(kind, text, program, self._settings.induction_inputs)
        if isinstance(proposal, FormatError):
            return None, proposal.value
        result = await self._judge.validate(proposal)
        if isinstance(result, Rejection):
            return None, result.reason.value
        return result, "valid"

    async def _replay(
        self,
        grant: Grant,
        slots: Sequence[int],
        episode_id: str,
        emit: Emit,
        give_back: GiveBack,
    ) -> None:
        """Spend solve slots on a task of the buffer; without one, give them back: the batch goes on without them."""
        if not slots:
            return
        found = await self._buffer.replay(grant.kind, self._salt(slots[0], "replay"))
        if found is None:
            await give_back(slots)
            return
        task_id, task = found
        if await self._solve(grant, task, task_id, slots, episode_id, emit, replayed=True) is None:
            await give_back(slots)

    async def _solve(
        self,
        grant: Grant,
        task: Task,
        task_id: int | None,
        slots: Sequence[int],
        episode_id: str,
        emit: Emit,
        replayed: bool = False,
    ) -> list[bool] | None:
        """Solve a task once a slot, and a fresh task at least n times (solutions without a slot only estimate).

        Returns which solutions were correct; None where the task does not fit into a prompt.
        """
        try:
            prompt = self._prompts.solve(task)
        except PromptTooLong:
            return None
        extra = 0 if replayed else max(0, self._settings.solutions - len(slots))
        names = [f"s{slot}" for slot in slots] + [f"e{episode_id}.{len(slots) + index}" for index in range(extra)]
        limit = self._settings.max_solve_tokens
        completions = await _all(self._generate(prompt, limit, name) for name in names)
        solutions = await self._judge_all(task, prompt, completions)
        for slot, solution in zip(slots, solutions, strict=False):
            reward = solve_reward(solution.formatted, solution.correct)
            parts = {"correct": float(solution.correct), "replayed": float(replayed)}
            await emit(
                self._trajectory(
                    grant.kind,
                    Role.SOLVE,
                    slot,
                    episode_id,
                    prompt,
                    solution.completion,
                    reward,
                    parts,
                    solution.outcome,
                    solution.execute_s,
                )
            )
        correct = [solution.correct for solution in solutions]
        if task_id is not None:
            await self._buffer.record(task_id, len(correct), sum(correct))
        return correct

    async def _judge_all(self, task: Task, prompt: Prompt, completions: Sequence[Completion]) -> list[_Solution]:
        """All solutions of one task in one request, so that the judge can share work among them."""
        texts = [answer_of(prompt.reply_start + one.text, self._settings.prompt_format) for one in completions]
        answers = [FormatError.NO_ANSWER if text is None else parse_solution(task.kind, text) for text in texts]
        started = time.monotonic()
        verdicts = iter(await self._judge.verify_all(task, [a for a in answers if not isinstance(a, FormatError)]))
        execute_s = time.monotonic() - started
        solutions = []
        for completion, answer in zip(completions, answers, strict=True):
            if isinstance(answer, FormatError):
                solutions.append(_Solution(False, False, answer.value, completion, 0.0))
                continue
            verdict = next(verdicts)
            formatted = verdict.reason is not VerdictReason.UNPARSEABLE
            solutions.append(_Solution(verdict.correct, formatted, verdict.reason.value, completion, execute_s))
        return solutions

    async def _generate(self, prompt: Prompt, max_tokens: int, name: str) -> Completion:
        sampling = Sampling(
            max_tokens=max_tokens,
            temperature=self._settings.temperature,
            stop=prompt.stop,
            seed=None if self._seed is None else _hash_seed(self._seed, name),
        )
        return await self._engine.generate(prompt.token_ids, sampling, f"{self._identity.incarnation}-{name}")

    def _trajectory(
        self,
        kind: Kind,
        role: Role,
        slot: int,
        episode_id: str,
        prompt: Prompt,
        completion: Completion,
        reward: float,
        parts: dict[str, float],
        outcome: str,
        execute_s: float,
    ) -> Trajectory:
        return Trajectory(
            run_id=self._identity.run_id,
            actor_id=self._identity.actor_id,
            incarnation=self._identity.incarnation,
            seq=self._next_seq(),
            slot=slot,
            episode_id=episode_id,
            cell=Cell(kind, role),
            prompt_ids=np.array(prompt.token_ids, dtype=np.int32),
            response_ids=np.array(completion.token_ids, dtype=np.int32),
            logprobs=np.array(completion.logprobs, dtype=np.float32),
            versions=completion.versions,
            reward=reward,
            reward_parts=parts,
            status=completion.finish,
            outcome=outcome,
            timings={"queue_s": completion.queue_s, "generate_s": completion.generate_s, "execute_s": execute_s},
        )

    def _salt(self, number: int, what: str) -> str:
        return f"{self._seed or 0}/{number}/{what}"


def _hash_seed(seed: int, name: str) -> int:
    """A 63-bit seed that is the same in every process."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


async def _all(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run them together. The first failure cancels the rest and is raised as it is."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
