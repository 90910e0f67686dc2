"""`azr bench e2e` on whole runs: it leads them through the modes, and its ledgers close. Nothing here is timed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch.bench import e2e
from launch.run.folder import RunFolder

BATCH = (
    "learner.batch.propose={deduction=4, abduction=2, induction=2}",
    "learner.batch.solve={deduction=8, abduction=4, induction=4}",
)
LITTLE = (
    "run.mode=rehearse",
    "rehearsal.prompt_tokens={propose=60, solve=30}",
    "rehearsal.response_tokens={propose=20, solve=10}",
    "rehearsal.learner_step_s=0.2",
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]


def tables_of(found: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    return {table["title"]: {row[0]: row[1:] for row in table["rows"]} for table in found["tables"]}


def check(folder: Path, found: dict[str, Any]) -> None:
    assert found["failures"] == []
    assert found["ratios"]["async_over_ideal"]["median"] > 0
    assert 0 < found["ratios"]["useful_share"]["median"] <= 1
    throughput = tables_of(found)["throughput by max_staleness"]
    assert throughput["age max"][0] == 0 <= throughput["age max"][1] <= 2
    assert all(trained > 0 for trained in throughput["tokens/s trained"])
    shares = tables_of(found)["the learner's seconds, share of all"]
    assert all(sum(share[mode] for share in shares.values()) == pytest.approx(1, abs=1e-3) for mode in range(2))
    rows = RunFolder(folder / "e2e").read_metrics()
    assert all(row["token_ledger/unaccounted"] == 0 for row in rows)
    assert {row["max_staleness"] for row in rows} == {0, 2}


def test_a_rehearsed_run_is_measured_in_two_modes(tmp_path: Path) -> None:
    options = e2e.Options(overrides=(*BATCH, *LITTLE), staleness=(0, 2), runs=2, steps=1, folder=tmp_path)
    found = e2e.run(options).to_json()
    check(tmp_path, found)
    assert found["ratios"]["async_over_ideal"]["runs"] == 2


@pytest.mark.deep
def test_a_real_run_is_measured_in_two_modes_and_both_sides_seconds_close(tmp_path: Path) -> None:
    found = e2e.run(e2e.Options(overrides=BATCH, staleness=(0, 2), runs=1, steps=2, folder=tmp_path)).to_json()
    check(tmp_path, found)
    assert found["ratios"]["seconds_unaccounted_max"]["median"] < 0.02
    shares = tables_of(found)["the actors' seconds, share of all"]
    assert all(sum(share[mode] for share in shares.values()) == pytest.approx(1, abs=1e-3) for mode in range(2))
    assert shares["decode"][0] > 0 and shares["prefill"][0] > 0
