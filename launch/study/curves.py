"""The curves of a study, against steps and against time, as SVG files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from launch.study.definition import Arm, Study
from launch.study.result import RunResult

FILES = {"steps": "curves-steps.svg", "time": "curves-time.svg"}
"""Axis -> the file of its curves."""
Colour = tuple[float, float, float, float]
_LABELS = {"steps": "step", "time": "minutes of training"}
_STYLE: Any = {"svg.hashsalt": "azr", "svg.fonttype": "none", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}
"""The salt makes equal results equal files; text stays text."""


def draw(study: Study, results: Mapping[str, RunResult], folder: Path) -> list[Path]:
    """Draw the curves of complete runs into `folder`; returns the files. A column for each reference with the arms
    that are compared with it, a row each for held-out accuracy, mean reward and mean age. Thin lines are runs, with
    the 95% intervals of their measurements; thick ones their mean where all have a point."""
    by_arm: dict[str, list[RunResult]] = defaultdict(list)
    for run in study.runs():
        if (result := results.get(run.name)) is not None and result.status == "complete":
            by_arm[run.arm].append(result)
    written = []
    for axis, name in FILES.items():
        with matplotlib.rc_context(_STYLE):
            figure = _figure(study, by_arm, axis)
            path = folder / name
            figure.savefig(path, format="svg", metadata={"Date": None})
            written.append(path)
    return written


def _figure(study: Study, by_arm: Mapping[str, Sequence[RunResult]], axis: str) -> Figure:
    groups: dict[str, list[Arm]] = defaultdict(list)
    for arm in study.arms:
        groups[arm.reference or arm.name].append(arm)
    rows = ("heldout", "reward_mean", "age_mean")
    figure = Figure(figsize=(1.5 + 4.5 * len(groups), 7.5), layout="constrained")
    axes = figure.subplots(len(rows), len(groups), squeeze=False, sharex=True, sharey="row")
    for column, (reference, arms) in enumerate(groups.items()):
        for place, arm in enumerate(arms):
            colour = matplotlib.colormaps["viridis"](0.9 * place / max(1, len(arms) - 1))
            for row, metric in enumerate(rows):
                _draw_arm(axes[row][column], by_arm.get(arm.name, ()), metric, axis, arm.name, colour)
        axes[0][column].set_title(f"reference: {reference}")
        axes[0][column].legend(fontsize=7)
        axes[-1][column].set_xlabel(_LABELS[axis])
    for row, label in enumerate(("held-out accuracy", "mean reward of a batch", "mean age, versions")):
        axes[row][0].set_ylabel(label)
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
    axes.plot(xs, ys, color=colour, linewidth=1.8, marker=marker, markersize=4, label=f"{label} ({len(runs)} runs)")


def _draw_intervals(axes: Axes, run: RunResult, axis: str, colour: Colour) -> None:
    """The 95% interval of each measurement, by its tasks."""
    points = _points(run, "heldout", axis)
    xs, ys = ([point[place] for point in points.values()] for place in (0, 1))
    below = [one.mean - one.low for one in run.heldout]
    above = [one.high - one.mean for one in run.heldout]
    axes.errorbar(xs, ys, [below, above], fmt="none", ecolor=colour, elinewidth=0.6, alpha=0.5, capsize=2)


def _points(run: RunResult, metric: str, axis: str) -> dict[float, tuple[float, float]]:
    """Version or step -> the point of the curve."""
    if metric == "heldout":
        return {one.version: (one.version if axis == "steps" else one.time_s / 60, one.mean) for one in run.heldout}
    points = {}
    for step, time_s, value in zip(run.series["step"], run.series["time_s"], run.series[metric], strict=True):
        if step is not None and time_s is not None and value is not None:
            points[step] = (step if axis == "steps" else time_s / 60, value)
    return points
