"""Lengths of prompts and responses by (kind, role), and the rates of valid proposals and correct solutions.

Either recorded from a run, or drawn from log-normal distributions (`rehearsal.prompt_tokens` and following). A prompt
and its responses are drawn together: a recorded file keeps the responses of each prompt beside it, since long prompts
and long responses go together.

The file is JSON: `{"source": TEXT, "cells": {"deduction/solve": {"rate": 0.4, "prompts": [[P, [R, ...]], ...]}, ...}}`,
with P tokens of the prompt, R tokens of each response to it, and `rate`, the share of valid proposals or of correct
solutions.
"""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executor.user_error import UserError
from launch.config import Config
from launch.run.folder import RunFolder
from launch.settings import RehearsalSettings
from learner.trajectory import Cell, Role

MOST_PROMPTS = 1000
"""Maximum number of prompts of a cell in a recorded file."""
RATE = 0.5
"""Share of good proposals and solutions where nothing says another."""


class LengthsError(UserError):
    """A file of lengths that cannot be read or made; the message says what to do."""


@dataclass(frozen=True)
class Sizes:
    """One prompt of a cell."""

    prompt: int
    """Tokens of the prompt."""
    responses: tuple[int, ...]
    """Tokens of the responses that it got; a further response is drawn from these."""


class Lengths:
    """Draws prompts with their responses, by cell."""

    def __init__(self, settings: RehearsalSettings, limits: Mapping[Role, int], max_prompt: int) -> None:
        """`limits`: maximum tokens of a response by role. Raises LengthsError."""
        self._settings = settings
        self._limits = limits
        self._max_prompt = max_prompt
        self._recorded: dict[str, list[Sizes]] = {}
        self._rates: dict[str, float] = {}
        if settings.lengths:
            for name, cell in read_lengths(Path(settings.lengths)).items():
                self._recorded[name] = [Sizes(int(prompt), tuple(map(int, found))) for prompt, found in cell["prompts"]]
                self._rates[name] = float(cell["rate"])

    def draw(self, cell: Cell, generator: random.Random) -> Sizes:
        """A prompt of `cell` with the responses to draw from. A cell that was not recorded is drawn as a cell of its
        role that was."""
        limit = self._limits[cell.role]
        if self._recorded:
            found = generator.choice(self._of(self._recorded, cell))
            cut = tuple(min(length, limit) for length in found.responses)
            return Sizes(min(found.prompt, self._max_prompt), cut)
        settings = self._settings
        prompt = _log_normal(generator, settings.prompt_tokens[cell.role], settings.spread / 2)
        median = settings.response_tokens[cell.role]
        drawn = tuple(min(_log_normal(generator, median, settings.spread), limit) for _ in range(16))
        return Sizes(min(prompt, self._max_prompt), drawn)

    def rate(self, cell: Cell) -> float:
        """Share of valid proposals, or of correct solutions."""
        settings = self._settings
        given = settings.valid_rate if cell.role is Role.PROPOSE else settings.solve_rate
        if given is not None:
            return given
        return self._of(self._rates, cell) if self._rates else RATE

    def _of(self, table: Mapping[str, Any], cell: Cell) -> Any:
        alike = sorted(name for name in table if name.endswith(f"/{cell.role}"))
        if cell.name not in table and not alike:
            raise LengthsError(f"rehearsal.lengths = {self._settings.lengths} has nothing of the role {cell.role}")
        return table[cell.name if cell.name in table else alike[0]]


def lengths_of(config: Config) -> Lengths:
    """The lengths of a rehearsal with this configuration. Raises LengthsError."""
    selfplay = config.selfplay
    limits = {Role.PROPOSE: selfplay.max_propose_tokens, Role.SOLVE: selfplay.max_solve_tokens}
    return Lengths(config.rehearsal, limits, selfplay.max_prompt_tokens)


def read_lengths(path: Path) -> dict[str, Any]:
    """The cells of a recorded file. Raises LengthsError."""
    try:
        cells: dict[str, Any] = json.loads(path.read_text())["cells"]
        for name, cell in cells.items():
            Cell.parse(name)
            if not cell["prompts"] or not all(
                prompt > 0 and found and min(found) > 0 for prompt, found in cell["prompts"]
            ):
                raise ValueError(f"{name} has no prompts, or one without responses")
            if not 0 <= float(cell["rate"]) <= 1:
                raise ValueError(f"{name}: a rate of {cell['rate']}")
        if not cells:
            raise ValueError("it has no cells")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LengthsError(
            f"rehearsal.lengths = {path} cannot be used: {type(error).__name__}: {error}. Make one from a run: "
            "azr rehearse --record RUN FILE"
        ) from None
    return cells


def record_lengths(folder: RunFolder, path: Path) -> dict[str, int]:
    """Write the lengths and rates of a run's recorded trajectories to `path`; returns trajectories by cell.

    Raises LengthsError where the run recorded none (`run.record_trajectories`).
    """
    prompts: dict[str, dict[tuple[int, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
    good: dict[str, list[float]] = defaultdict(list)
    for file in sorted(folder.trajectories.glob("step_*.jsonl")):
        for line in file.read_text().splitlines():
            found = json.loads(line)
            name = f"{found['kind']}/{found['role']}"
            prompts[name][tuple(found["prompt_ids"])].append(len(found["response_ids"]))
            good[name].append(found["reward_parts"].get("valid" if found["role"] == Role.PROPOSE else "correct", 0.0))
    if not prompts:
        raise LengthsError(f"{folder.path} has no recorded trajectories: run it with run.record_trajectories = true")
    cells = {}
    for name, found in sorted(prompts.items()):
        kept = list(found.items())
        if len(kept) > MOST_PROMPTS:
            kept = random.Random(0).sample(kept, MOST_PROMPTS)
        cells[name] = {
            "rate": sum(good[name]) / len(good[name]),
            "prompts": [[len(prompt), responses] for prompt, responses in kept],
        }
    path.write_text(json.dumps({"source": str(folder.path), "cells": cells}, allow_nan=False) + "\n")
    return {name: len(values) for name, values in sorted(good.items())}


def _log_normal(generator: random.Random, median: float, spread: float) -> int:
    """A whole number from 1 on, of median `median`; `spread`: the standard deviation of its logarithm."""
    return max(1, round(median * math.exp(spread * generator.gauss(0.0, 1.0))))
