"""Both roles of one actor: the sampler, the proposer and the solver that its episodes use.

Everything that depends on what a model writes is behind these three. An episode says who proposes, what is solved and
who is told; it reads no text. `model_roles` makes those of a real run; a rehearsal (`launch/rehearsal/`) has its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from actors.buffer.task_buffer import Buffer
from actors.engine.generation import Engine
from actors.environment import Environment
from actors.propose import ModelProposer, Proposer
from actors.sampler import Identity, Sampler
from actors.settings import SelfPlaySettings
from actors.solve import ModelSolver, Solver


@dataclass(frozen=True)
class Roles:
    """The proposer and the solver of one actor, with the sampler that both use."""

    sampler: Sampler
    proposer: Proposer
    solver: Solver
    executed: Callable[[], int] = lambda: 0
    """Returns the number of programs that the environment has executed so far."""


MakeRoles = Callable[[Identity, int | None], Roles]
"""(actor, seed) -> its roles. The seed makes every draw and sample a function of it and of the slot; None leaves
sampling to the engine."""


def model_roles(engine: Engine, environment: Environment, buffer: Buffer, settings: SelfPlaySettings) -> MakeRoles:
    """Return what makes the roles that a model plays: `engine` samples, `environment` judges."""

    def make(identity: Identity, seed: int | None) -> Roles:
        sampler = Sampler(engine, settings, identity, seed)
        return Roles(
            sampler,
            ModelProposer(sampler, environment, buffer),
            ModelSolver(sampler, environment, buffer),
            lambda: environment.stats.executed,
        )

    return make
