"""The solved tasks that a solver's prompt shows as examples (`selfplay.examples`).

They are past tasks of the same kind, with the answers that the executor found. None has the program of the task that
is asked, or of another example, whatever its names; and none gives back its input, since a model that sees a copy
copies.
"""

from __future__ import annotations

import random

from actors.buffer.task_buffer import Buffer
from actors.environment import Environment
from executor.literals import parse_args
from executor.tasks import Task
from executor.values import gives_back

SPARE = 4
"""Tasks that are drawn for each example that is wanted."""


class SolvedExamples:
    """Draws examples from one buffer."""

    def __init__(self, buffer: Buffer, environment: Environment, count: int) -> None:
        """`count`: examples of a prompt."""
        self._buffer = buffer
        self._environment = environment
        self._count = count

    async def draw(self, task: Task, seed: str) -> list[Task]:
        """Up to the count, fewer where the buffer has no more; a function of the seed and of the active tasks. Raises
        InfrastructureError."""
        if not self._count:
            return []
        drawn = await self._buffer.references((task.kind,), SPARE * self._count, seed)
        found = [one for _, one in drawn]
        random.Random(seed).shuffle(found)
        seen, chosen = {await self._normal(task.program)}, list[Task]()
        for one in found:
            if len(chosen) == self._count:
                break
            if not is_copy(one) and (normal := await self._normal(one.program)) not in seen:
                seen.add(normal)
                chosen.append(one)
        return chosen

    async def _normal(self, program: str) -> str:
        facts = await self._environment.inspect(program)
        return facts.normal if facts else program


def is_copy(task: Task) -> bool:
    """Whether the first output is one of the arguments of the first input, or the tuple of several."""
    return gives_back(parse_args(task.inputs[0]), task.outputs[0])
