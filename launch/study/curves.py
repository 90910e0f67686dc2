"""The curves of a study, against steps or trained tokens and against time, as SVG files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from launch.run.console import counted
from launch.study.definition import Arm, Study
from launch.study.result import RunResult

Colour = tuple[float, float, float, float]
_LABELS = {"steps": "step", "tokens": "trained tokens, thousands", "time": "minutes of training"}
_ROWS = {
    "heldout": "held-out accuracy",
    "reward_mean": "mean reward of a batch",
    "entropy": "entropy, nats",
    "ess": "effective sample size",
}
STYLE: Any = {"svg.hashsalt": "azr", "svg.fonttype": "none", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}
"""The salt makes equal results equal files; text stays text."""


def files_of(study: Study) -> dict[str, str]:
    """Axis -> the file of its curves: against trained tokens where these are the budget, or against steps, and against
    time."""
    axes = ("tokens" if study.budget.tokens is not None else "steps", "time")
    return {axis: f"curves-{axis}.svg" for axis in axes}


def draw(study: Study, results: Mapping[str, RunResult], folder: Path) -> list[Path]:
    """Draw the curves of complete runs into `folder`; returns the files. A column for each baseline with the arms
    that are compared with it, a row each for held-out accuracy, mean reward, entropy and, in a study of staleness,
    effective sample size. Thin lines are runs, with the 95% intervals of their measurements; thick ones their mean
    where all have a point."""
    by_arm: dict[str, list[RunResult]] = defaultdict(list)
    for run in study.runs():
        if (result := results.get(run.name)) is not None and result.status == "complete":
            by_arm[run.arm].append(result)
    written = []
    for axis, name in files_of(study).items():
        with matplotlib.rc_context(STYLE):
            figure = _figure(study, by_arm, axis)
            path = folder / name
            figure.savefig(path, format="svg", metadata={"Date": None})
            written.append(path)
    return written


def colours_of(arms: Sequence[Arm]) -> dict[str, Colour]:
    """Arm -> its colour in all figures of the study that has these arms. Each panel has the whole scale."""
    return {
        arm.name: colour
        for group in compared_groups(arms)
        for arm, colour in zip(group, colour_scale(len(group)), strict=True)
    }


def compared_groups(arms: Sequence[Arm]) -> list[list[Arm]]:
    """Each baseline with the arms that are compared with it; all arms together where none is compared."""
    groups: dict[str, list[Arm]] = defaultdict(list)
    for arm in arms:
        groups[arm.baseline or arm.name].append(arm)
    return [list(arms)] if len(groups) == len(arms) else list(groups.values())


def colour_scale(count: int) -> list[Colour]:
    """`count` colours, from dark to light."""
    scale = matplotlib.colormaps["viridis"]
    return [scale(0.9 * place / max(1, count - 1)) for place in range(count)]


def _figure(study: Study, by_arm: Mapping[str, Sequence[RunResult]], axis: str) -> Figure:
    groups = compared_groups(study.arms)
    colours = colours_of(study.arms)
    rows = ("heldout", "reward_mean", "entropy", *(("ess",) if study.study == "staleness" else ()))
    figure = Figure(figsize=(1.5 + 4.5 * len(groups), 2.5 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(groups), squeeze=False, sharex=True, sharey="row")
    for column, arms in enumerate(groups):
        for arm in arms:
            for row, metric in enumerate(rows):
                _draw_arm(axes[row][column], by_arm.get(arm.name, ()), metric, axis, arm.name, colours[arm.name])
        if baselines := {arm.baseline for arm in arms if arm.baseline is not None}:
            axes[0][column].set_title(f"baseline: {', '.join(baselines)}")
        axes[0][column].legend(fontsize=7)
        axes[-1][column].set_xlabel(_LABELS[axis])
    for row, metric in enumerate(rows):
        axes[row][0].set_ylabel(_ROWS[metric])
    return figure


def _draw_arm(axes: Axes, runs: Sequence[RunResult], metric: str, axis: str, label: str, colour: Colour) -> None:
    curves = [_points(run, metric, axis) for run in runs]
    for points in curves:
        axes.plot(*zip(*points.values(), strict=True), color=colour, linewidth=0.6, alpha=0.5) if points else None
    if metric == "heldout":
        for run in runs:
            _draw_intervals(axes, run, axis, colour)
    common = sorted(set.intersection(*(set(points) for points in curves))) if curves else []
    xs = [fmean(points[key][0] for points in curves) for key in common]
    ys = [fmean(points[key][1] for points in curves) for key in common]
    marker = "o" if metric == "heldout" else None
    axes.plot(
        xs, ys, color=colour, linewidth=1.8, marker=marker, markersize=4, label=f"{label} ({counted(len(runs), 'run')})"
    )


def _draw_intervals(axes: Axes, run: RunResult, axis: str, colour: Colour) -> None:
    """The 95% interval of each measurement, by its tasks."""
    points = _points(run, "heldout", axis)
    xs, ys = ([point[place] for point in points.values()] for place in (0, 1))
    below = [max(0.0, one.mean - one.low) for one in run.heldout]  # a mean of 0 may be below low by its rounding
    above = [max(0.0, one.high - one.mean) for one in run.heldout]
    axes.errorbar(xs, ys, [below, above], fmt="none", ecolor=colour, elinewidth=0.6, alpha=0.5, capsize=2)


def _points(run: RunResult, metric: str, axis: str) -> dict[float, tuple[float, float]]:
    """Version or step -> the point of the curve."""
    if metric == "heldout":
        return {
            one.version: (_place(axis, one.version, one.tokens_trained, one.time_s), one.mean) for one in run.heldout
        }
    points = {}
    series = (run.series.get(name, []) for name in ("step", "tokens_trained", "time_s", metric))
    for step, tokens, time_s, value in zip_longest(*series):
        if step is not None and time_s is not None and value is not None:
            points[step] = (_place(axis, step, tokens or 0.0, time_s), value)
    return points


def _place(axis: str, step: float, tokens: float, time_s: float) -> float:
    return {"steps": step, "tokens": tokens / 1000, "time": time_s / 60}[axis]
