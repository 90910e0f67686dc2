"""Has a model propose tasks without a run, for a seed file: one engine, sandboxes and a task buffer, and no learner.

Most of the time goes to triplets, from which deduction and abduction start; then proposers of the kinds that write
about a program (induction) are given those programs.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
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
from actors.sampler import Identity
from actors.seed_file import SeedError, sandboxes, save
from actors.seeding import SEED_KIND, propose_seeds
from launch.cluster.environment import set_variables
from launch.config import Config
from launch.models import prepare
from launch.run.scratch import temporary_files

IDENTITY = Identity("", "seeds", 0)
"""The actor that the episodes' ids name."""
TRIPLETS_SHARE = 0.75
"""Share of the time, and of the rounds, that goes to triplets."""


@dataclass
class Proposed:
    """What a model has proposed."""

    proposals: int = 0
    valid: int = 0
    ignoring: int = 0
    """Valid proposals whose value is the same for other inputs."""
    programs: set[str] = field(default_factory=set)
    """Normalised programs of the other valid proposals."""
    tasks: Counter[str] = field(default_factory=Counter)
    """Tasks that were written, by kind."""

    def count(self, draft: Draft) -> None:
        """Count one proposal."""
        self.proposals += 1
        if draft.task is None:
            return
        self.valid += 1
        self.ignoring += draft.task.ignores_input
        if not draft.task.ignores_input:
            self.programs.add(draft.normal)

    def __str__(self) -> str:
        valid = f"{self.valid} valid of {self.proposals} proposals"
        return f"{valid}, {self.ignoring} ignore their input, {len(self.programs)} distinct programs that use it"


def propose(
    config: Config, file: Path, seconds: float, num_programs: int, say: Callable[[str], None] = lambda text: None
) -> Proposed:
    """Propose for `seconds`, or until the valid tasks have `num_programs` distinct programs that use their input, and
    write the valid tasks to the new file `file`. Raises SeedError, InfrastructureError, EngineAborted."""
    if file.exists():
        raise SeedError(f"{file} exists already: give another name, or remove it")
    set_variables()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # its warnings would hide the command's own lines
    with tempfile.TemporaryDirectory(prefix="azr-") as private, temporary_files(Path(private)):
        database = Path(private) / "tasks.sqlite"
        found = asyncio.run(_propose(config, database, seconds, num_programs, say))
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
            # Two for each place of the engine: it is idle only while the last few of a round are written.
            return await collect(proposer, buffer, 2 * config.engine.max_num_seqs, seconds, num_programs, say)
    finally:
        await engine.close()
        store.close()


async def collect(
    proposer: Proposer,
    buffer: Buffer,
    round_size: int,
    seconds: float,
    num_programs: int,
    say: Callable[[str], None] = lambda text: None,
    clock: Callable[[], float] = time.monotonic,
) -> Proposed:
    """Have `proposer` propose in rounds of `round_size`, whose proposals do not see each other, and add what is valid
    to `buffer`. The bounds are those of `propose`; a round that has begun goes on to its end."""
    found, number, started = Proposed(), 0, clock()
    about_programs = [kind.name for kind in kinds() if not kind.writes_program]
    for kind, share in [(SEED_KIND, TRIPLETS_SHARE), *((kind, 1.0) for kind in about_programs)]:
        first, triplets = number, found.proposals
        while clock() < started + share * seconds:
            if kind == SEED_KIND and len(found.programs) >= num_programs:
                break
            if kind != SEED_KIND and number - first >= (1 / TRIPLETS_SHARE - 1) * triplets:
                break
            for draft in await propose_seeds(proposer, buffer, kind, IDENTITY, range(number, number + round_size)):
                found.count(draft)
            number += round_size
            say(f"{clock() - started:.0f} s, {kind}: {found}")
    return found
