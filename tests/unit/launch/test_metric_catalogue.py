"""The catalogue of metrics: whatever emits a number is in it, and docs/metrics.md is written from it."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.engine.base import VllmEngine
from actors.episodes import COUNTED, Player
from actors.metrics import describe_batch
from actors.rollout import RolloutStats
from actors.settings import EngineSettings
from launch.metric_catalogue import METRICS, SFT_METRICS
from launch.metric_reference import markdown
from learner.ledger import CellCounts, DropReason, describe_ledger
from learner.metrics.batch import describe_advantages, describe_ages
from learner.metrics.catalogue import Kind, UnlistedMetric, Whose
from learner.settings import BatchSettings
from learner.stream.reports import Reports
from learner.trajectory import Cell, Role, Status, Trajectory, VersionSpan

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"
PARTS = dict.fromkeys(
    ("valid", "solve_rate", "duplicate", "ignores_input", "nodes", "complexity", "distance", "halstead", "composite",
     "answer_diversity", "correct", "replayed", "estimate", "answer", "copied", "program", "reward/difficulty",
     "fact/length"),
    0.5,
)  # fmt: skip


def batch(cells: tuple[Cell, ...]) -> list[Trajectory]:
    """Trajectories that give occasion to every metric of a batch."""
    ids = np.array([1], np.int32)
    return [
        Trajectory(
            "run", "a", 0, 0, "e", cell, ids, ids, np.zeros(1, np.float32), (VersionSpan(0, 0, 1),), 0.0,
            PARTS | {"replayed": replayed}, Status.STOPPED, "valid" if cell.role is Role.PROPOSE else "correct",
        )
        for cell in cells
        for replayed in (0.0, 1.0)
    ]  # fmt: skip


def test_the_committed_page_is_what_the_catalogue_says() -> None:
    assert PAGE.read_text() == markdown(), "run `make docs` and commit what it changes"


def test_each_recorded_name_leads_to_its_own_entry() -> None:
    examples = {"cell": "deduction/solve", "kind": "deduction", "n": "1"}
    for catalogue in (METRICS, SFT_METRICS):
        for metric in catalogue:
            for name in metric.recorded:
                example = re.sub(r"\{(\w+)\}", lambda found: examples.get(found[1], "word"), name)
                assert catalogue.find(example) is metric


def test_every_metric_of_a_batch_is_listed_also_of_a_kind_that_a_plug_in_brings() -> None:
    cells = (*BatchSettings().cells, Cell("my-kind", Role.PROPOSE), Cell("my-kind", Role.SOLVE))
    played = batch(cells)
    ledger = {cell: CellCounts(dropped=dict.fromkeys(DropReason, 1)) for cell in cells}  # type: ignore[arg-type]
    ledger = {cell: CellCounts.of(counts.events()) for cell, counts in ledger.items()}
    numbers = describe_batch(played) | describe_ages(played, 0, {0: 0}) | describe_ledger(ledger)
    numbers |= describe_advantages(played, np.zeros(len(played)))
    METRICS.check(numbers)  # a warning is an error in tests
    assert len(numbers) > 200
    for name in numbers:
        metric = METRICS.find(name)
        assert metric is not None
        assert name.count("/") == 0 or name.split("/")[0] == metric.name.split("/")[0]


def test_everything_that_an_actor_reports_is_listed(tmp_path: Path) -> None:
    engine: Any = VllmEngine(tmp_path, EngineSettings(), in_process=True)
    sampler = SimpleNamespace(counts=dict.fromkeys(COUNTED, 0))
    counts = Player.counts(SimpleNamespace(_sampler=sampler))  # type: ignore[arg-type]
    Reports().report(_holder(), RolloutStats().numbers() | engine.stats() | counts)


def test_a_name_that_is_not_listed_warns_once() -> None:
    with pytest.warns(UnlistedMetric, match="'novel/thing'"):
        METRICS.check(["loss", "novel/thing"])
    METRICS.check(["novel/thing"])
    assert METRICS.find("valid_rate/Not a kind") is None
    assert METRICS.find("reward/deduction/referee") is None


def test_units_say_whose_seconds_they_are() -> None:
    for metric in (*METRICS, *SFT_METRICS):
        assert metric.meaning
        assert (metric.kind is Kind.DURATION) <= (metric.unit == "s"), metric.name
        assert (metric.unit == "actor-s") <= (metric.whose is Whose.ACTORS and "actor_s" in metric.name), metric.name
        assert metric.name.endswith("_s") <= (metric.unit in ("s", "actor-s", "tokens/s", "rows/s")), metric.name


def _holder() -> Any:
    from learner.places import Holder

    return Holder("a", 0)
