"""Lengths of a rehearsal: recorded ones come back jointly, and what cannot be used is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from launch.config import Config
from launch.rehearsal.lengths import LengthsError, lengths_of, record_lengths
from launch.run.folder import RunFolder
from launch.settings import RehearsalSettings
from learner.trajectory import Cell, Role

PROPOSE, SOLVE = Cell("deduction", Role.PROPOSE), Cell("deduction", Role.SOLVE)


def row(role: Role, prompt: int, response: int, good: bool) -> dict[str, Any]:
    part = "valid" if role is Role.PROPOSE else "correct"
    return {
        "kind": "deduction",
        "role": role.value,
        "prompt_ids": [prompt] * prompt,
        "response_ids": [0] * response,
        "reward_parts": {part: float(good)},
    }


@pytest.fixture
def recorded(tmp_path: Path) -> Config:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    rows = [row(Role.PROPOSE, 30, 200, True), row(Role.PROPOSE, 40, 9000, False)]
    rows += [row(Role.SOLVE, 10, 3, True), row(Role.SOLVE, 10, 4, True), row(Role.SOLVE, 20, 50, False)]
    rows += [row(Role.SOLVE, 20, 60, False)]
    (folder.trajectories / "step_00000001.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    file = tmp_path / "lengths.json"
    assert record_lengths(folder, file) == {"deduction/propose": 2, "deduction/solve": 4}
    return Config(rehearsal=RehearsalSettings(lengths=str(file)))


def test_recorded_prompts_come_with_their_own_responses_and_rates(recorded: Config) -> None:
    lengths = lengths_of(recorded)
    drawn = {lengths.draw(SOLVE, random.Random(seed)) for seed in range(50)}
    assert {(one.prompt, one.responses) for one in drawn} == {(10, (3, 4)), (20, (50, 60))}
    assert (lengths.rate(PROPOSE), lengths.rate(SOLVE)) == (0.5, 0.5)
    longest = max(lengths.draw(PROPOSE, random.Random(seed)).responses[0] for seed in range(50))
    assert longest == recorded.selfplay.max_propose_tokens, "cut off at the recipe's limit"


def test_a_cell_that_was_not_recorded_is_drawn_as_another_of_its_role(recorded: Config) -> None:
    drawn = lengths_of(recorded).draw(Cell("induction", Role.SOLVE), random.Random(0))
    assert drawn.prompt in (10, 20)


def test_settings_go_before_recorded_rates(recorded: Config) -> None:
    settings = recorded.rehearsal.model_copy(update={"valid_rate": 0.25})
    assert lengths_of(recorded.model_copy(update={"rehearsal": settings})).rate(PROPOSE) == 0.25


def test_fitted_lengths_have_the_median_and_a_long_tail() -> None:
    config = Config()
    drawn = [lengths_of(config).draw(SOLVE, random.Random(seed)) for seed in range(400)]
    responses = sorted(length for one in drawn for length in one.responses)
    median, high = responses[len(responses) // 2], responses[int(0.99 * len(responses))]
    assert 270 < median < 330
    assert 5 * median < high < 8 * median
    assert min(responses) >= 1 and max(responses) <= config.selfplay.max_solve_tokens


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "no json",
        '{"cells": {}}',
        '{"cells": {"deduction/solve": {"rate": 2, "prompts": [[1, [1]]]}}}',
        '{"cells": {"deduction/solve": {"rate": 0.5, "prompts": []}}}',
        '{"cells": {"deduction/solve": {"rate": 0.5, "prompts": [[0, [1]]]}}}',
        '{"cells": {"deduction/solve": {"rate": 0.5, "prompts": [[1, []]]}}}',
        '{"cells": {"deduction": {"rate": 0.5, "prompts": [[1, [1]]]}}}',
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_the_command_that_makes_one(tmp_path: Path, text: str) -> None:
    file = tmp_path / "lengths.json"
    file.write_text(text)
    with pytest.raises(LengthsError, match="azr rehearse --record"):
        lengths_of(Config(rehearsal=RehearsalSettings(lengths=str(file))))


def test_a_run_without_trajectories_has_no_lengths(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    with pytest.raises(LengthsError, match="record_trajectories"):
        record_lengths(folder, tmp_path / "lengths.json")
