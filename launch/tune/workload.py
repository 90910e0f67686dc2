"""What simulated episodes draw: prompt and response lengths, verdicts, and the tasks that the buffer has by then.

Lengths come from a calibration's groups, so prompt and responses stay joint. A run's prompts grow and its proposals
become valid as it goes on; draws at version v are therefore from groups of versions near v, and beyond the last
measured version from the last ones. A *settled* workload draws from the last versions all the time, and its buffer is
full from the start: for comparing settings, whatever their speed at the start.

The buffer is simulated too, since it decides two things: whether solve slots of an invalid proposal can be used at all,
and how many prompts of a batch are the same, which the learner and the engine's prefix cache compute once.
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from actors.kinds.registry import kind_of
from launch.tune.calibration import Group
from learner.trajectory import Cell, Role

NEAR = 1
"""Versions on either side from which groups are drawn."""
ENOUGH = 8
"""Groups to draw from; with fewer, versions further away join."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt: its identity and its tokens."""

    key: Hashable
    tokens: int


@dataclass(frozen=True, slots=True)
class Draft:
    """A proposal: the tokens of its response, whether it is valid, and whether the buffer has it already."""

    tokens: int
    valid: bool
    known: bool


class Groups:
    """The measured groups of one cell, by version."""

    def __init__(self, groups: Sequence[Group], settled: bool = False) -> None:
        """`settled`: draw from the last versions, whatever the version is."""
        self._settled = settled
        self._groups = sorted(groups, key=lambda group: group.version)
        self._versions = [group.version for group in self._groups]
        self._near: dict[int, tuple[Group, ...]] = {}

    def near(self, version: int) -> tuple[Group, ...]:
        """Groups of versions near `version`, at least `ENOUGH` where there are."""
        if not self._groups:
            return ()
        version = self._versions[-1] if self._settled else min(version, self._versions[-1])
        if version not in self._near:
            width = NEAR
            while True:
                first = bisect_left(self._versions, version - width)
                last = bisect_right(self._versions, version + width)
                if last - first >= min(ENOUGH, len(self._groups)):
                    break
                width += 1
            self._near[version] = tuple(self._groups[first:last])
        return self._near[version]


class Workload:
    """Draws of one simulated run."""

    def __init__(
        self,
        groups: Mapping[str, Sequence[Group]],
        references: int,
        rng: random.Random,
        settled: bool = False,
        distinct: bool = False,
    ) -> None:
        """`references`: tasks that a proposer is shown (`selfplay.references`). `distinct`: every proposer's prompt is
        another one, whatever it shows."""
        self._groups = {cell: Groups(found, settled) for cell, found in groups.items()}
        self._references = references
        self._distinct = distinct
        self._rng = rng
        self._tasks: dict[str, list[Prompt]] = {}
        self._prompt_tokens: dict[Hashable, int] = {}
        self._made = 0

    def stock(self, kind: str, count: int) -> None:
        """Tasks of `kind` that the buffer starts with."""
        for _ in range(count):
            self.add(kind, 0)

    def brief(self, kind: str, version: int) -> Prompt | None:
        """A proposer's prompt; None where the buffer has nothing to show that it needs."""
        asked = kind_of(kind)
        shown = [task for name in asked.reference_kinds for task in self._tasks.get(name, ())]
        if not shown and not asked.writes_program:
            return None
        count = min(len(shown), self._references if asked.writes_program else 1)
        self._made += self._distinct
        drawn = [task.key for task in self._rng.sample(shown, count)]
        return self._prompt(Cell(kind, Role.PROPOSE), (kind, self._made * self._distinct, *drawn), version)

    def drafts(self, kind: str, version: int, count: int) -> list[Draft]:
        """`count` proposals to one prompt."""
        groups = self._groups[Cell(kind, Role.PROPOSE).name].near(version)
        group = self._rng.choice(groups)
        found = _drafts_of(group)
        if count > len(found):
            found = [draft for near in groups for draft in _drafts_of(near)]
        return self._rng.sample(found, count) if count <= len(found) else self._rng.choices(found, k=count)

    def add(self, kind: str, version: int) -> Prompt:
        """A task enters the buffer; returns the prompt that asks for its solution."""
        self._made += 1
        task = self._prompt(Cell(kind, Role.SOLVE), (kind, self._made), version)
        self._tasks.setdefault(kind, []).append(task)
        return task

    def replay(self, kind: str) -> Prompt | None:
        """A task of the buffer, drawn evenly; None if it has none of that kind."""
        tasks = self._tasks.get(kind)
        return self._rng.choice(tasks) if tasks else None

    def answers(self, kind: str, version: int, count: int) -> list[int]:
        """Tokens of `count` solutions to one task."""
        groups = self._groups[Cell(kind, Role.SOLVE).name].near(version)
        group = self._rng.choice(groups)
        if count <= len(group.responses):
            return self._rng.sample(group.responses, count)
        return self._rng.choices(group.responses, k=count)

    def _prompt(self, cell: Cell, key: Hashable, version: int) -> Prompt:
        """The prompt of that identity: its tokens are drawn once."""
        if key not in self._prompt_tokens:
            groups = self._groups.get(cell.name)
            near = groups.near(version) if groups else ()
            self._prompt_tokens[key] = self._rng.choice(near).prompt if near else 1
        return Prompt(key, self._prompt_tokens[key])


def _drafts_of(group: Group) -> list[Draft]:
    known = group.known or (False,) * len(group.responses)
    return [Draft(*each) for each in zip(group.responses, group.valid, known, strict=True)]
