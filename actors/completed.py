"""Completes proposals: finds an input for a program whose proposer gave none, or none that it runs with.

Most replies of a small model have a program that runs, and no input that fits. The executor can find one, as it finds
the output: it tries a number, a text and lists until the program returns something that depends on it. Such a task is
the model's own program; its proposer is paid as for an invalid proposal all the same.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Any

from actors.environment import Environment
from actors.heldout.tasks import is_held_out
from executor.input_samples import sample_inputs
from executor.newlines import plain_newlines
from executor.tasks import Proposal, Rejection, RejectionReason, Task

_HEAD = re.compile(r"def f\(([^()\[\]]*)\):")
_MAX_PARAMETERS = 3
_NUMBER = 7
_EXAMPLES: tuple[Any, ...] = (_NUMBER, "stone cat", [3, 1, 2], ["red", "tree", "ab"])
"""Values of the types that are tried; an input has others of these types and about this size."""
_HOPELESS = frozenset({RejectionReason.TIMEOUT, RejectionReason.UNSAFE})
"""Rejections after which no other input is tried: each would cost the time limit again, or be refused again."""


@dataclass(frozen=True)
class Completed:
    """A task with an input of the executor's."""

    task: Task
    normal: str
    """The normalised program (`Facts.normal`)."""


class Completer:
    """Completes proposals with one environment."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    async def complete(self, kind: str, text: str, seed: str) -> Completed | None:
        """The task of `kind` that the first function f in the reply `text` makes with an input of the executor's.

        The input is a function of the program and of `seed`. None for a program that runs with none of those tried,
        gives the same value whatever it gets, runs beyond the time limit or the policy, or makes a held-out task.
        Raises InfrastructureError.
        """
        program = first_function(text)
        if program is None or (count := _parameters(program)) is None:
            return None
        facts = await self._environment.inspect(program)
        if facts is None or not facts.uses_input:
            return None
        draw = random.Random(f"{seed}/{facts.normal}")
        for example in draw.sample(_EXAMPLES, len(_EXAMPLES)):
            # Further parameters are often a number: how many, which one.
            for further in (example, _NUMBER) if count > 1 and example != _NUMBER else (example,):
                for given in sample_inputs((example, *(further,) * (count - 1)), 1, draw):
                    found = await self._environment.validate(Proposal(kind, program, (given,)))
                    if isinstance(found, Rejection):
                        if found.reason in _HOPELESS:
                            return None
                        continue
                    if found.ignores_input or is_held_out(found, facts.normal):
                        continue
                    return Completed(found, facts.normal)
        return None


def first_function(text: str) -> str | None:
    """The first function f in a reply: from its head to the line before the next one that is not indented; None
    without one."""
    lines = plain_newlines(text).split("\n")
    start = next((number for number, line in enumerate(lines) if line.startswith("def f(")), None)
    if start is None:
        return None
    end = start + 1
    while end < len(lines) and (not lines[end].strip() or lines[end][0].isspace()):
        end += 1
    return "\n".join(lines[start:end]).rstrip()


def _parameters(program: str) -> int | None:
    """Number of parameters without a default, by the text of the head; None for none, too many, and other forms."""
    head = _HEAD.match(program)
    if head is None or "*" in head[1]:
        return None
    names = [part for part in head[1].split(",") if part.strip() and "=" not in part]
    return len(names) if 1 <= len(names) <= _MAX_PARAMETERS else None
