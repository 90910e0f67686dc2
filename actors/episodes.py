"""The self-play episode: propose -> validate -> solve n times -> verify -> reward.

A grant holds the slots of one episode. Each proposal is sampled from the same prompt and goes its own way with its
share of the solve slots: where it is valid they are spent on solving it, which also estimates its difficulty and so its
reward; where it is not they are spent on a task from the buffer. Every rollout that fills a slot becomes one
trajectory. What the environment could not judge raises, and is never a reward.

With `train_on_estimates` off, the estimates have no slots, and all solve slots go to the buffer's tasks. With `propose`
off, proposals have no slots: they only make tasks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from actors.buffer.task_buffer import Buffer, NewTask
from actors.engine.generation import Completion
from actors.kinds.registry import forms_of
from actors.metrics import text_number
from actors.prompt_builder import Prompt, PromptTooLong
from actors.propose import REDRAWS, Brief, Draft, ProposalOutcome, Proposer
from actors.rewards import Proposed, Solved, reward_terms
from actors.roles import MakeRoles
from actors.sampler import Identity, Sampler, together
from actors.solve import Solution, Solver
from executor.tasks import Task
from learner.staleness import Grant
from learner.trajectory import Cell, Role, Trajectory

Emit = Callable[[Trajectory], Awaitable[None]]
GiveBack = Callable[[Sequence[int]], Awaitable[None]]
COUNTED = (
    "prompts_too_long",
    "references_left_out",
    "tasks_too_long",
    "tasks_held_out",
    "tasks_completed",
    "labels_failed",
)
"""Counters of the sampler that are metrics."""


class Player:
    """Plays granted episodes with one pair of roles and one buffer. Hands out trajectories as they finish."""

    def __init__(self, roles: MakeRoles, buffer: Buffer, identity: Identity, seed: int | None) -> None:
        """`seed`: as for `MakeRoles`."""
        self._buffer = buffer
        self._identity = identity
        made = roles(identity, seed)
        self._sampler, self._solver = made.sampler, made.solver
        self.proposer = made.proposer
        self.executed = made.executed
        """Returns the number of programs that the environment has executed so far."""

    def counts(self) -> dict[str, float]:
        """The counters `COUNTED` since the start."""
        return {name: float(self._sampler.counts[name]) for name in COUNTED}

    async def play(self, grant: Grant, emit: Emit, give_back: GiveBack) -> None:
        """Play one episode. Every slot of the grant ends in `emit` or `give_back`, unless this raises."""
        episode = Episode(
            sampler=self._sampler,
            solver=self._solver,
            proposer=self.proposer,
            buffer=self._buffer,
            identity=self._identity,
            grant=grant,
            emit=emit,
            give_back=give_back,
        )
        await episode.play()


class Episode:
    """One grant being played."""

    def __init__(
        self,
        *,
        sampler: Sampler,
        solver: Solver,
        proposer: Proposer,
        buffer: Buffer,
        identity: Identity,
        grant: Grant,
        emit: Emit,
        give_back: GiveBack,
    ) -> None:
        self._settings = sampler.settings
        self._sampler = sampler
        self._solver = solver
        self._proposer = proposer
        self._buffer = buffer
        self._identity = identity
        self._grant = grant
        self._emit = emit
        self._give_back = give_back

    async def play(self) -> None:
        """See `Player.play`."""
        grant, settings = self._grant, self._settings
        if not grant.propose:
            await self._replay(grant.solve, f"{grant.episode}")
            return
        if not settings.propose:
            await self._give_back(grant.propose)
        brief = await self._proposer.brief(grant.kind, grant.episode)
        if brief is None:  # nothing that fits can be asked: the batch goes on without these proposals
            if settings.propose:
                await self._give_back(grant.propose)
            await self._replay(grant.solve, f"{grant.episode}")
            return
        shares = [grant.solve[index :: len(grant.propose)] for index in range(len(grant.propose))]
        await together(self._propose(brief, slot, share) for slot, share in zip(grant.propose, shares, strict=True))

    async def _propose(self, brief: Brief, slot: int, share: Sequence[int]) -> None:
        """One proposal, and what becomes of its solve slots. Its trajectory goes out once its solutions are judged."""
        episode_id = f"{self._grant.episode}.{slot}"
        draft = await self._proposer.draft(brief, f"p{slot}")
        if draft.task is None:
            if draft.completed is not None:
                for task in forms_of(draft.completed.task):
                    await self._buffer.add(self._new(brief, draft, task, draft.completed.normal, episode_id))
            await self._replay(share, episode_id)
            if draft.outcome != ProposalOutcome.HELD_OUT.value:
                await self._emit_proposal(brief, slot, draft, Proposed(None), draft.outcome)
            elif self._settings.propose:
                await self._give_back([slot])
            return
        added = await self._buffer.add(self._new(brief, draft, draft.task, draft.normal, episode_id))
        if added.duplicate and self._settings.novelty == "reject":
            await self._replay(share, episode_id)
            found = Proposed(None, duplicate=True)
            await self._emit_proposal(brief, slot, draft, found, ProposalOutcome.DUPLICATE.value)
            return
        prompt = await self._solver.prompt(draft.task, self._sampler.salt(slot, "examples"))
        if self._settings.train_on_estimates:
            solved = await self._solve_fresh(draft.task, prompt, added.task_id, share, episode_id)
        else:
            solved, _ = await together(
                (
                    self._solve_fresh(draft.task, prompt, added.task_id, (), episode_id),
                    self._replay(share, episode_id),
                )
            )
        reward = await self._emit_proposal(
            brief, slot, draft, Proposed(solved, added.duplicate, draft.measures), draft.outcome
        )
        if reward is not None and not added.duplicate:
            await self._buffer.rewarded(added.task_id, reward)

    @staticmethod
    def _new(brief: Brief, draft: Draft, task: Task, normal: str, episode_id: str) -> NewTask:
        return NewTask(
            task,
            normal,
            proposer_version=min(span.version for span in draft.completion.versions),
            episode_id=episode_id,
            references=tuple(task_id for task_id, _ in (*brief.references, *brief.earlier)),
        )

    async def _emit_proposal(
        self, brief: Brief, slot: int, draft: Draft, found: Proposed, outcome: str
    ) -> float | None:
        """Send a proposal's trajectory and return its reward; neither where proposers are not trained."""
        if not self._settings.propose:
            return None
        parts = {"valid": float(outcome == ProposalOutcome.VALID.value)} | draft.parts
        if draft.task is not None:
            parts["duplicate"] = float(found.duplicate)
        if found.solved:
            parts["solve_rate"] = sum(found.solved) / len(found.solved)
        trajectory = self._trajectory(
            role=Role.PROPOSE,
            slot=slot,
            episode_id=f"{self._grant.episode}.{slot}",
            prompt=brief.prompt,
            completion=draft.completion,
            terms=reward_terms(found, self._settings),
            parts=parts,
            outcome=outcome,
            execute_s=draft.execute_s,
        )
        await self._emit(trajectory)
        return trajectory.reward

    async def _replay(self, slots: Sequence[int], episode_id: str) -> list[bool]:
        """Spend solve slots on a task of the buffer; without one that fits, give them back: the batch goes on without.

        Returns which solutions were correct.
        """
        if not slots:
            return []
        for attempt in range(REDRAWS):
            salt = self._sampler.salt(slots[0], f"replay{attempt or ''}")
            found = await self._buffer.replay(self._grant.kind, salt)
            if found is None:
                break
            task_id, task = found
            try:
                prompt = await self._solver.prompt(task, f"{salt}/examples")
            except PromptTooLong:  # only where the limit was lowered since: no such task enters
                self._sampler.counts["prompts_too_long"] += 1
                continue
            solutions = await self._solve(task, prompt, slots, [], task_id)
            await self._emit_solutions(slots, solutions, prompt, episode_id, replayed=True)
            return [solution.correct for solution in solutions]
        await self._give_back(slots)
        return []

    async def _solve_fresh(
        self, task: Task, prompt: Prompt, task_id: int, slots: Sequence[int], episode_id: str
    ) -> list[bool]:
        """Solve a fresh task once a slot, and at least n times where its difficulty is asked for.

        Returns which solutions were correct; those without a slot only estimate.
        """
        extra = max(0, self._settings.solutions - len(slots)) if self._settings.propose else 0
        names = [f"e{episode_id}.{len(slots) + index}" for index in range(extra)]
        solutions = await self._solve(task, prompt, slots, names, task_id)
        await self._emit_solutions(slots, solutions, prompt, episode_id, replayed=False)
        return [solution.correct for solution in solutions]

    async def _solve(
        self, task: Task, prompt: Prompt, slots: Sequence[int], extra: Sequence[str], task_id: int
    ) -> list[Solution]:
        """Solutions of a task, in the order of slots and then of extra names; the buffer learns how they went."""
        names = [*(f"s{slot}" for slot in slots), *extra]
        if not names:
            return []
        solutions = await self._solver.solve(task, prompt, names)
        version = max(span.version for solution in solutions for span in solution.completion.versions)
        await self._buffer.record(task_id, version, len(solutions), sum(s.correct for s in solutions))
        return solutions

    async def _emit_solutions(
        self, slots: Sequence[int], solutions: Sequence[Solution], prompt: Prompt, episode_id: str, *, replayed: bool
    ) -> None:
        for slot, solution in zip(slots, solutions, strict=False):
            await self._emit(
                self._trajectory(
                    role=Role.SOLVE,
                    slot=slot,
                    episode_id=episode_id,
                    prompt=prompt,
                    completion=solution.completion,
                    terms=reward_terms(Solved(solution.formatted, solution.correct), self._settings),
                    parts={
                        "correct": float(solution.correct),
                        "replayed": float(replayed),
                        "estimate": float(not replayed),
                        **({} if solution.answer is None else {"answer": text_number(solution.answer)}),
                        **({} if solution.copied is None else {"copied": float(solution.copied)}),
                    },
                    outcome=solution.outcome,
                    execute_s=solution.execute_s,
                )
            )

    def _trajectory(
        self,
        *,
        role: Role,
        slot: int,
        episode_id: str,
        prompt: Prompt,
        completion: Completion,
        terms: dict[str, float],
        parts: dict[str, float],
        outcome: str,
        execute_s: float,
    ) -> Trajectory:
        return Trajectory(
            run_id=self._identity.run_id,
            actor_id=self._identity.actor_id,
            incarnation=self._identity.incarnation,
            slot=slot,
            episode_id=episode_id,
            cell=Cell(self._grant.kind, role),
            prompt_ids=np.array(prompt.token_ids, dtype=np.int32),
            response_ids=np.array(completion.token_ids, dtype=np.int32),
            logprobs=np.array(completion.logprobs, dtype=np.float32),
            versions=completion.versions,
            reward=sum(terms.values()),
            reward_parts=parts | {f"reward/{name}": value for name, value in terms.items()},
            status=completion.finish,
            outcome=outcome,
            timings={"queue_s": completion.queue_s, "generate_s": completion.generate_s, "execute_s": execute_s},
        )
