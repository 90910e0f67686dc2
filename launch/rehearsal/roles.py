"""The roles of a rehearsed actor: episodes, draws from the buffer and requests are real, what is written is drawn.

A real proposer reads the reply and has it judged by the executor; a real solver does so with the answers. A reply that
was never written cannot be read. So this is where a rehearsal cuts: whether a proposal is valid, and an answer correct,
is drawn by the recorded rates. Tasks that enter the buffer are as long as the replies that made them.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from actors.buffer.task_buffer import Buffer
from actors.engine.generation import Completion, Engine
from actors.kinds.registry import kind_of
from actors.prompt_builder import Prompt, PromptBuilder
from actors.propose import Brief, Draft, ProposalOutcome, Proposer
from actors.roles import MakeRoles, Roles
from actors.sampler import Identity, Sampler, hash_seed, together
from actors.settings import SelfPlaySettings
from actors.solve import Solution, Solver
from executor.tasks import RejectionReason, Task, VerdictReason
from launch.rehearsal.lengths import Lengths
from launch.settings import RehearsalSettings
from learner.trajectory import Cell, Role, Status

CHARACTERS_PER_TOKEN = 4
"""Characters of a program for each token of the reply that proposed it."""


@dataclass(frozen=True)
class RehearsedPrompt(Prompt):
    """A prompt without text."""

    responses: tuple[int, ...] = ()
    """Lengths that a response to it may have."""


class RehearsedPrompts(PromptBuilder):
    """Draws the lengths of prompts. A task has the same prompt each time."""

    def __init__(self, lengths: Lengths, seed: int) -> None:
        self._lengths = lengths
        self._seed = seed
        self._count = 0

    def propose(
        self, kind: str, references: Sequence[Task], definitions: str = "", constructs: Sequence[str] = ()
    ) -> Prompt:
        """See `PromptBuilder`."""
        self._count += 1
        return self._draw(Cell(kind, Role.PROPOSE), f"propose/{self._count}", len(references))

    def solve(self, task: Task, examples: Sequence[Task] = ()) -> Prompt:
        """See `PromptBuilder`."""
        return self._draw(Cell(task.kind, Role.SOLVE), f"{task.kind}/{task.program}/{task.inputs}")

    def _draw(self, cell: Cell, name: str, num_references: int = 0) -> RehearsedPrompt:
        number = hash_seed(self._seed, name)
        sizes = self._lengths.draw(cell, random.Random(number))
        # Prompts of different tasks differ, as the engine's cache and the metrics take them.
        tokens = (number % (1 << 30), *([0] * (sizes.prompt - 1)))
        return RehearsedPrompt(tokens, "", (), (), num_references, sizes.responses)


class _Draws:
    """What both roles draw: how long a response is, and whether it is good."""

    def __init__(self, sampler: Sampler, settings: RehearsalSettings, lengths: Lengths, seed: int) -> None:
        self._sampler = sampler
        self._settings = settings
        self._lengths = lengths
        self._seed = seed
        self.executed = 0
        """Requests to the executor that were rehearsed."""

    async def respond(self, cell: Cell, prompt: Prompt, name: str, limit: int) -> tuple[Completion, bool]:
        """One response to `prompt`, and whether it is good."""
        assert isinstance(prompt, RehearsedPrompt)
        generator = random.Random(hash_seed(self._seed, f"{self._sampler.identity.incarnation}/{name}"))
        length = min(generator.choice(prompt.responses), limit)
        completion = await self._sampler.generate(prompt, length, name)
        if length == limit:
            completion = replace(completion, finish=Status.TRUNCATED)
        return completion, generator.random() < self._lengths.rate(cell)

    async def execute(self) -> float:
        """Take the time of one request to the executor; returns its seconds."""
        seconds = self._settings.execute_s / self._settings.time_scale
        await asyncio.sleep(seconds)
        self.executed += 1
        return seconds


class RehearsedProposer(Proposer):
    """Draws whether a proposal is valid, and makes a task of it."""

    def __init__(self, sampler: Sampler, buffer: Buffer, draws: _Draws) -> None:
        super().__init__(sampler, buffer)
        self._draws = draws

    async def draft(self, brief: Brief, name: str) -> Draft:
        """See `Proposer`."""
        cell = Cell(brief.kind, Role.PROPOSE)
        completion, valid = await self._draws.respond(cell, brief.prompt, name, self._settings.max_propose_tokens)
        execute_s = await self._draws.execute()
        if not valid:
            return Draft(completion, RejectionReason.ERROR.value, execute_s)
        task = self._task(brief, name, len(completion.token_ids))
        return Draft(completion, ProposalOutcome.VALID.value, execute_s, task, task.program)

    def _task(self, brief: Brief, name: str, num_tokens: int) -> Task:
        """A task that no other actor has made."""
        who = self._sampler.identity
        head = f"# {who.actor_id}#{who.incarnation} {name}\n"
        asked = kind_of(brief.kind)
        program = head + "#" * max(0, CHARACTERS_PER_TOKEN * num_tokens - len(head))
        if not asked.writes_program and brief.references:
            program = brief.references[-1][1].program
        count = 1 if asked.writes_program else self._settings.induction_inputs
        values = tuple(f"'{name}', {number}" for number in range(count))
        return Task(brief.kind, program, values, values, message=f"{who.actor_id}#{who.incarnation} {name}")


class RehearsedSolver(Solver):
    """Draws whether a solution is correct."""

    def __init__(self, sampler: Sampler, draws: _Draws) -> None:
        self._sampler = sampler
        self._draws = draws

    async def prompt(self, task: Task, seed: str) -> Prompt:
        """See `Solver`."""
        return self._sampler.prompts.solve(task)

    async def solve(self, task: Task, prompt: Prompt, names: Sequence[str]) -> list[Solution]:
        """See `Solver`."""
        cell, limit = Cell(task.kind, Role.SOLVE), self._sampler.settings.max_solve_tokens
        responses = await together(self._draws.respond(cell, prompt, name, limit) for name in names)
        execute_s = await self._draws.execute()
        return [
            Solution(correct, True, (VerdictReason.CORRECT if correct else VerdictReason.WRONG).value, one, execute_s)
            for one, correct in responses
        ]


def rehearsed_roles(
    engine: Engine, buffer: Buffer, selfplay: SelfPlaySettings, settings: RehearsalSettings, lengths: Lengths, seed: int
) -> MakeRoles:
    """Return what makes the roles of a rehearsed actor. `seed`: of what is drawn for this life of the actor."""

    def make(identity: Identity, sampled_by: int | None) -> Roles:
        sampler = Sampler(engine, selfplay, identity, sampled_by, RehearsedPrompts(lengths, seed))
        draws = _Draws(sampler, settings, lengths, seed)
        return Roles(
            sampler,
            RehearsedProposer(sampler, buffer, draws),
            RehearsedSolver(sampler, draws),
            lambda: draws.executed,
        )

    return make
