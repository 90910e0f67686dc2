"""A run's totals have every second and token that was spent, also those of dead processes and undone steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from launch.config import Config
from launch.run.folder import RunFolder
from launch.run.hooks import make_hooks
from launch.run.recorder import Recorder
from launch.run.status import Progress
from launch.run.totals import RunTotals
from tests.unit.learner.test_loop import Run


def attempt(
    folder: Path,
    steps: int,
    resumed: int = 0,
    went_on: bool = False,
    actors: Any = None,
    changes: Mapping[int, Callable[[Run], None]] = MappingProxyType({}),
) -> Run:
    """Run the learner's loop in a run folder from step `resumed` on. `actors`: those that live on. `changes`: what
    happens after a step."""
    run = Run(steps=steps, version=resumed)
    recorder = Recorder(RunFolder(folder), None, False, resumed, went_on)
    run.actors.reports.load_state_dict(recorder.totals.reports, recorder.totals.actors_live)
    if actors is not None:
        run.actors.generated = actors.generated
    hooks = make_hooks(Config(), recorder, lambda v: None, Progress(), reports=run.actors.reports.state_dict)
    on_step = run.on_step

    def step(metrics: dict[str, float], batch: Any) -> None:
        on_step(metrics, batch)
        # The trainer of this test measures nothing.
        hooks.on_step({name: value for name, value in metrics.items() if name != "described"}, [])
        changes.get(run.version, lambda run: None)(run)

    run.on_step = step  # type: ignore[method-assign]
    run.learn()
    recorder.close()
    return run


def test_tokens_of_actors_that_die_leave_or_are_replaced_are_all_counted(tmp_path: Path) -> None:
    changes: dict[int, Callable[[Run], None]] = {
        2: lambda run: run.actors.leave("two"),
        3: lambda run: run.actors.join("two", 1),
        5: lambda run: run.actors.leave("one"),
    }
    run = attempt(tmp_path, steps=6, changes=changes)
    rows = RunFolder(tmp_path).read_metrics()
    totals = [row["tokens_generated"] for row in rows]
    assert len(run.actors.generated) == 3, "three lives played"
    assert totals == sorted(totals)
    assert totals[-1] == run.actors.generated.total()
    assert sum(row["tokens_generated_step"] for row in rows) == totals[-1], (
        "no step swallows tokens, none has them twice"
    )
    assert all(row["tokens_generated_step"] > 0 for row in rows)
    assert [row["actors"] for row in rows] == [2, 2, 1, 2, 2, 1]


@pytest.mark.parametrize("went_on", [True, False])
def test_a_restart_loses_neither_seconds_nor_tokens_of_steps_that_it_undid(tmp_path: Path, went_on: bool) -> None:
    """Four steps, then again from step 1: under the same actors, or with new ones that have the old names."""
    first = attempt(tmp_path, steps=4)
    before = RunFolder(tmp_path).read_metrics()[-1]
    done = first.actors.generated.total()
    second = attempt(tmp_path, steps=2, resumed=1, went_on=went_on, actors=first.actors if went_on else None)
    rows = RunFolder(tmp_path).read_metrics()
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[-1]["tokens_generated"] == second.actors.generated.total() + (0 if went_on else done) > done
    assert rows[-1]["tokens_generated_step"] == rows[-1]["tokens_generated"] - before["tokens_generated"]
    assert rows[-1]["time_s"] == pytest.approx(before["time_s"] + rows[-1]["step_s"])
    assert rows[-1]["time_s"] > before["time_s"]


def test_the_time_between_two_attempts_counts_only_where_the_run_went_on(tmp_path: Path) -> None:
    path = tmp_path / "totals.json"
    RunTotals(path, False, False, {}).write(100.0, {"ended": {"tokens_generated": 7.0}, "lives": []})
    earlier = path.read_text().replace('"written": ', '"written": -')
    path.write_text(earlier)  # long ago
    assert 100 <= RunTotals(path, True, False, {}).time_s < 1000
    assert RunTotals(path, True, True, {}).time_s > 1e6
    assert RunTotals(path, False, False, {}).time_s < 100, "a run that begins anew"


def test_a_run_folder_without_totals_goes_on_from_its_last_row(tmp_path: Path) -> None:
    totals = RunTotals(tmp_path / "totals.json", True, False, {"time_s": 50.0, "tokens_generated": 9.0, "loss": 1.0})
    assert totals.time_s >= 50
    assert totals.reports == {"ended": {"tokens_generated": 9.0}, "lives": []}
