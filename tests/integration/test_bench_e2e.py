"""`azr bench e2e` on a real run: both ledgers close in every mode. Nothing here is timed."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.bench import e2e
from launch.run.folder import RunFolder

pytestmark = [pytest.mark.integration, pytest.mark.deep, pytest.mark.timeout(1800)]


def test_a_whole_run_is_measured_in_two_modes_and_its_ledgers_close(tmp_path: Path) -> None:
    batch = (
        "learner.batch.propose={deduction=4, abduction=2, induction=2}",
        "learner.batch.solve={deduction=8, abduction=4, induction=4}",
    )
    options = e2e.Options(overrides=batch, staleness=(0, 2), runs=1, steps=2, folder=tmp_path)
    report = e2e.run(options)
    assert report.failures == []
    found = report.to_json()
    assert found["ratios"]["async_over_ideal"]["median"] > 0
    assert 0 < found["ratios"]["useful_share"]["median"] <= 1
    assert found["ratios"]["seconds_unaccounted_max"]["median"] < 0.02
    tables = {table["title"]: {row[0]: row[1:] for row in table["rows"]} for table in found["tables"]}
    throughput = tables["throughput by max_staleness"]
    assert throughput["age max"][0] == 0 <= throughput["age max"][1] <= 2
    assert all(0 < useful <= trained for useful, trained in zip(
        throughput["tokens/s useful"], throughput["tokens/s trained"], strict=True
    ))  # fmt: skip
    for title in ("the learner's seconds, share of all", "the actors' seconds, share of all"):
        for mode in range(2):
            assert sum(shares[mode] for shares in tables[title].values()) == pytest.approx(1, abs=1e-3)
    rows = RunFolder(tmp_path / "e2e").read_metrics()
    assert all(row["token_ledger/unaccounted"] == 0 for row in rows)
    assert {row["max_staleness"] for row in rows} == {0, 2}
