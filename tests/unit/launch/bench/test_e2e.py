"""What a measured run comes to, on rows whose figures are known; and how it is led through the modes."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from launch.bench import e2e
from launch.bench.e2e_figures import Figures, Stretch, stages, useful_share
from launch.bench.e2e_modes import Block, Modes, order_of, steps_left_out
from launch.bench.report import Report
from launch.run.totals import ACTOR_PARTS
from learner.time_ledger import LEARNER_PARTS

GENERATE_S, TRAIN_S = 6.0, 4.0
TOKENS = 1000.0


def made_rows(bounds: list[int], lost_s: float = 0.0, lost_tokens: float = 0.0) -> list[dict[str, float]]:
    """A row a step. Synchronous steps take both stages' time, others that of the slower one; `lost_s` of each step's
    seconds lie in no part of the learner's time."""
    counted = dict.fromkeys(("time_s", "tokens_generated", "executions", "connected_actor_s"), 0.0)
    counted |= {f"actor_time/{part}_actor_s": 0.0 for part in ACTOR_PARTS}
    rows = []
    for step, bound in enumerate(bounds, 1):
        step_s = GENERATE_S + TRAIN_S if bound == 0 else max(GENERATE_S, TRAIN_S)
        wait_s = step_s - TRAIN_S
        counted["time_s"] += step_s
        counted["tokens_generated"] += 1.25 * TOKENS
        counted["executions"] += 30
        counted["connected_actor_s"] += step_s
        counted["actor_time/decode_actor_s"] += GENERATE_S
        counted["actor_time/wait_for_grants_actor_s"] += step_s - GENERATE_S
        parts = dict.fromkeys(LEARNER_PARTS, 0.0) | {"wait_for_batch": wait_s, "forward_backward": TRAIN_S - lost_s}
        parts |= {"total": step_s, "unaccounted": lost_s}
        tokens = {"generated": 1.25 * TOKENS * step, "trained": TOKENS * step, "queued": 0.0, "in_flight": 0.0}
        tokens |= {"without_slot": 0.25 * TOKENS * step - lost_tokens, "unaccounted": lost_tokens}
        rows.append(
            counted
            | {f"learner_time/{part}_s": seconds for part, seconds in parts.items()}
            | {f"token_ledger/{name}": number for name, number in tokens.items()}
            | {
                "step": float(step), "wait_for_batch_s": wait_s, "tokens_trained": TOKENS,
                "tokens_useful": 0.5 * TOKENS, "batch_size": 80.0, "age_mean": bound / 2, "age_max": float(bound),
                "train_flops": 1e12, "train_s": TRAIN_S, "forward_backward_s": TRAIN_S,
            }
        )  # fmt: skip
    return rows


def report_of(rows: list[dict[str, float]], blocks: list[Block]) -> Report:
    report = Report("e2e", {})
    Figures(rows, blocks, peak_flops=1e12).report(report)
    return report


BLOCKS = [Block(0, 0, 2, 4), Block(0, 2, 6, 8), Block(1, 2, 9, 11), Block(1, 0, 14, 16)]
BOUNDS = [0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0, 0]


def test_a_run_whose_slower_stage_never_waits_is_ideal() -> None:
    report = report_of(made_rows(BOUNDS), BLOCKS)
    assert report.ratios["async_over_ideal"].values == pytest.approx((1.0, 1.0))
    assert report.ratios["async2_over_sync"].values == pytest.approx((10 / 6, 10 / 6))
    assert report.ratios["useful_share"].values == pytest.approx((0.8, 0.8))
    assert report.ratios["seconds_unaccounted_max"].median == pytest.approx(0.0)
    assert report.failures == []
    found = {row[0]: row[1:] for row in report.tables[0].to_json()["rows"]}
    assert found["tokens/s trained"] == [100.0, 166.67]
    assert {row["path"]: row["rate"] for row in report.rows} == {"max_staleness 0": 100.0, "max_staleness 2": 166.67}
    assert found["tokens/s useful"] == [50.0, 83.333]
    assert found["executions/s"] == [3.0, 5.0]
    assert found["FLOP share, training"] == [0.25, 0.25]
    assert found["FLOP share, wall clock"] == [0.1, 0.16667]
    assert found["slower stage alone, s a step"] == [6.0, 6.0]
    assert found["share of that speed"] == [0.6, 1.0]
    printed = io.StringIO()
    report.show(Console(file=printed, width=120))
    assert "the actors' seconds" in printed.getvalue()


def test_a_step_that_takes_longer_than_the_slower_stage_is_less_than_ideal() -> None:
    rows = made_rows(BOUNDS)
    for row in rows:
        row["time_s"] += 1.2 * sum(6 <= step <= 11 for step in range(int(row["step"]) + 1))
    assert report_of(rows, BLOCKS).ratios["async_over_ideal"].values == pytest.approx((6 / 7.2, 6 / 7.2))


def test_batches_with_more_work_may_take_longer() -> None:
    rows = made_rows(BOUNDS)
    for row in rows:
        row["time_s"] += 3.0 * sum(6 <= step <= 11 for step in range(int(row["step"]) + 1))
        if 6 <= row["step"] <= 11:
            row["tokens_trained"] *= 1.5  # 9 s of generation
            row["train_flops"] *= 2  # 8 s of training
    assert report_of(rows, BLOCKS).ratios["async_over_ideal"].values == pytest.approx((1.0, 1.0))


def test_what_the_stages_share_is_told_from_what_the_schedule_loses() -> None:
    rows = made_rows(BOUNDS)
    for row in rows:
        changed = sum(6 <= step <= 11 for step in range(int(row["step"]) + 1))
        row["time_s"] += 1.8 * changed
        row["actor_time/decode_actor_s"] += 0.2 * GENERATE_S * changed
        row["forward_backward_s"] *= 1.1 if 6 <= row["step"] <= 11 else 1.0
    ratios = report_of(rows, BLOCKS).ratios
    assert ratios["generate_cost_async_over_sync"].values == pytest.approx((1.2, 1.2))
    assert ratios["train_cost_async_over_sync"].values == pytest.approx((1.1, 1.1))
    assert ratios["async_over_ideal"].values == pytest.approx((6 / 7.8, 6 / 7.8))
    assert ratios["async_over_contended_ideal"].values == pytest.approx((7.2 / 7.8, 7.2 / 7.8))


def test_a_ledger_that_does_not_close_is_a_failure() -> None:
    assert report_of(made_rows(BOUNDS, lost_s=0.1), BLOCKS).failures == []
    (seconds,) = report_of(made_rows(BOUNDS, lost_s=0.5), BLOCKS).failures
    assert "8.3%" in seconds
    (tokens,) = report_of(made_rows(BOUNDS, lost_tokens=1), BLOCKS).failures
    assert "tokens" in tokens


def test_a_repetition_that_was_interrupted_does_not_count() -> None:
    report = report_of(made_rows(BOUNDS), BLOCKS[:3])
    assert report.ratios["async_over_ideal"].values == pytest.approx((1.0,))


def test_tokens_whose_fate_is_open_are_not_wasted() -> None:
    rows = made_rows([0] * 3)
    for row in rows:
        row["token_ledger/queued"] = 100.0 * row["step"]
        row["token_ledger/without_slot"] -= 100.0 * row["step"]
    assert useful_share(Stretch.of(rows, 2, 3)) == pytest.approx(1000 / 1150)
    assert stages(Stretch.of(rows, 2, 3)) == {"T_gen": GENERATE_S, "T_train": TRAIN_S}


class Run:
    """A supervisor's view of a run that takes one step at each look, and notes the bound of each. The learner hears of
    another bound some steps late."""

    def __init__(self, bound: int, late: int = 0) -> None:
        self.bounds: list[int] = []
        self._late, self._asked = late, [(0, bound)]
        self.stopped = False

    def status(self) -> Any:
        return SimpleNamespace(last={"step": len(self.bounds), "max_staleness": self.bounds[-1]} if self.bounds else {})

    def limit_staleness(self, bound: int) -> None:
        self._asked.append((len(self.bounds) + self._late, bound))

    def stop(self, why: str) -> None:
        self.stopped = True

    def step(self) -> None:
        self.bounds.append([bound for since, bound in self._asked if since <= len(self.bounds)][-1])


@pytest.mark.parametrize("late", [0, 3])
def test_every_mode_is_measured_in_every_repetition_and_only_under_its_bound(late: int) -> None:
    run, modes = Run(0, late), Modes((0, 1, 4), runs=3, steps=2, say=lambda text: None)
    while not run.stopped:
        modes.watch(run)  # type: ignore[arg-type]
        run.step()
    modes.watch(run)  # type: ignore[arg-type]
    assert modes.done
    assert [(block.run, block.staleness) for block in modes.blocks] == order_of((0, 1, 4), 3)
    for block in modes.blocks:
        before = run.bounds[max(0, block.first - 1 - steps_left_out(4, 0)) : block.last]
        counted = block.last - block.first + 1
        assert counted >= 2 and counted % (block.staleness + 1) == 0
        assert run.bounds[block.first - 1 : block.last] == [block.staleness] * counted
        # What was granted before the change is trained: a batch for each version that the bound before allowed.
        assert all(b <= block.staleness + i + 1 for i, b in enumerate(before[::-1]) if b > block.staleness)


def test_the_benchmarks_own_settings_win(tmp_path: Any) -> None:
    options = e2e.Options(overrides=("learner.steps=3", "actors.concurrency=7"), staleness=(2, 4))
    config = e2e.configure(options, tmp_path)
    assert (config.learner.steps, config.actors.concurrency, config.learner.max_staleness) == (1000000, 7, 2)
    assert config.learner.optimizer.lr < 1e-9
    assert config.selfplay.seed_tasks
    assert not config.learner.checkpoint_minutes
    seeds = tmp_path / "mine.jsonl"
    seeds.touch()
    own = e2e.configure(
        e2e.Options(overrides=("learner.cpus=[0]", f"selfplay.seed_tasks={seeds}"), learn=True), tmp_path
    )
    assert own.selfplay.seed_tasks == str(seeds)
    assert (own.learner.cpus, own.actors.cpus) == ((0,), ())
    assert own.learner.optimizer.lr == 4e-5
