"""Has a model propose tasks without a run, for a seed file: one engine, sandboxes and a task buffer, and no learner.

Most of the time goes to triplets, from which deduction and abduction start; then proposers of the kinds that write
about a program (induction) are given those programs.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from actors.buffer.task_buffer import Buffer, LocalBuffer, TaskBuffer
from actors.engine.async_engine import AsyncEngine
from actors.kinds.registry import kinds
from actors.propose import Draft, Proposer
from actors.roles import model_roles
from actors.sampler import Identity, together
from actors.seed_file import SeedError, sandboxes, save
from actors.seeding import SEED_KIND, propose_seeds
from launch.config import Config
from launch.lone_engine import private_folder
from launch.models import prepare
from launch.run.interrupts import Interrupts
from launch.whole_file import check_new

IDENTITY = Identity("", "seeds", 0)
"""The actor that the episodes' ids name."""
TRIPLETS_SHARE = 0.75
"""Share of the time, and of the proposals, that goes to triplets."""
SAY_EVERY_S = 10.0
"""Seconds between two lines about what was proposed."""


@dataclass
class Proposed:
    """What a model has proposed."""

    proposals: int = 0
    valid: int = 0
    completed: int = 0
    """Proposals whose input the executor found (`selfplay.complete_inputs`)."""
    ignoring: int = 0
    """Valid proposals whose value is the same for other inputs."""
    programs: set[str] = field(default_factory=set)
    """Normalised programs of all other tasks."""
    tasks: Counter[str] = field(default_factory=Counter)
    """Tasks that were written, by kind."""

    def count(self, draft: Draft) -> None:
        """Count one proposal."""
        self.proposals += 1
        if draft.completed is not None:
            self.completed += 1
            self.programs.add(draft.completed.normal)
        if draft.task is None:
            return
        self.valid += 1
        self.ignoring += draft.task.ignores_input
        if not draft.task.ignores_input:
            self.programs.add(draft.normal)

    def __str__(self) -> str:
        valid = f"{self.valid} valid of {self.proposals} proposals"
        if self.completed:
            valid += f", {self.completed} completed"
        return f"{valid}, {self.ignoring} ignore their input, {len(self.programs)} distinct programs that use it"


def propose(
    config: Config,
    file: Path,
    seconds: float,
    num_programs: int,
    interrupts: Interrupts,
    say: Callable[[str], None] = lambda text: None,
) -> Proposed:
    """Propose for `seconds`, or until the valid tasks have `num_programs` distinct programs that use their input, and
    write the valid tasks to the new file `file`.

    `interrupts`: a signal ends this process and the engine's at once. Raises UserError, InfrastructureError,
    EngineAborted.
    """
    check_new(file)
    with private_folder(interrupts) as private:
        database = private / "tasks.sqlite"
        found = asyncio.run(_propose(config, database, seconds, num_programs, say))
        if not found.valid:
            raise SeedError(
                f"none of {found.proposals} proposals is a valid task: propose for longer (--minutes), or with another "
                "model (model.path)"
            )
        found.tasks = save(database, file)
    return found


async def _propose(
    config: Config, database: Path, seconds: float, num_programs: int, say: Callable[[str], None]
) -> Proposed:
    engine = AsyncEngine(prepare(config.model.path, say), config.engine, seed=config.run.seed)
    store = TaskBuffer(database, config.buffer)
    try:
        async with sandboxes(config.executor, config.selfplay.rules) as environment:
            await engine.start()
            buffer = LocalBuffer(store)
            proposer = model_roles(engine, environment, buffer, config.selfplay)(IDENTITY, None).proposer
            width = config.engine.max_num_seqs
            return await collect(proposer, buffer, width, seconds, num_programs, say)
    finally:
        await engine.close()
        store.close()


async def collect(
    proposer: Proposer,
    buffer: Buffer,
    width: int,
    seconds: float,
    num_programs: int,
    say: Callable[[str], None] = lambda text: None,
    clock: Callable[[], float] = time.monotonic,
) -> Proposed:
    """Have `proposer` make `width` proposals at a time, and add what is valid to `buffer`, which later ones see.

    The bounds are those of `propose`; what is being written then is waited for.
    """
    found, number, last, started = Proposed(), 0, 0.0, clock()
    said = started

    async def work(kind: str, wanted: Callable[[], bool]) -> None:
        nonlocal number, said
        while wanted():
            number += 1
            for draft in await propose_seeds(proposer, buffer, kind, IDENTITY, (number,)):
                found.count(draft)
            if (now := clock()) > said + SAY_EVERY_S:
                said = now
                say(f"{now - started:.0f} s, {kind}: {found}")

    def triplets_wanted() -> bool:
        return clock() < started + TRIPLETS_SHARE * seconds and len(found.programs) < num_programs

    def others_wanted() -> bool:
        return number < last and clock() < started + seconds

    await together(work(SEED_KIND, triplets_wanted) for _ in range(width))
    for kind in kinds():
        if not kind.writes_program:
            last = number / TRIPLETS_SHARE
            await together(work(kind.name, others_wanted) for _ in range(width))
    return found
