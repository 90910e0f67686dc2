"""The chart of how held-out accuracy went, by kind of task, as an SVG file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from launch.study.curves import STYLE
from launch.study.findings import ArmFindings, judged_kinds
from launch.study.result import RunResult

CHART = "kinds.svg"
FEWEST = 3
"""Measurements of a run from which there is a course to draw."""


def has_course(found: Sequence[ArmFindings]) -> bool:
    """Whether a run was measured often enough."""
    return any(len(run.heldout) >= FEWEST for one in found for run in one.runs)


def draw_kinds(found: Sequence[ArmFindings], folder: Path) -> Path | None:
    """Draw the chart into `folder`; returns the file, or None where no run was measured often enough. A panel for each
    arm; a line for each kind and for the mean over kinds, against time. Thin lines are runs, thick ones their mean over
    the versions that all runs have measured."""
    if not has_course(found):
        return None
    measured = [one for one in found if one.runs]
    kinds = judged_kinds(found)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.5 + 4.5 * len(measured), 3.2), layout="constrained")
        panels = figure.subplots(1, len(measured), squeeze=False, sharey="row")[0]
        colours = matplotlib.colormaps["viridis"]
        for panel, one in zip(panels, measured, strict=True):
            for place, kind in enumerate(kinds):
                _draw(panel, one.runs, kind, colours(0.9 * place / max(1, len(kinds) - 1)))
            _draw(panel, one.runs, None, "black")
            panel.set_title(one.arm.name)
            panel.set_xlabel("minutes of training")
            panel.set_ylim(bottom=0)
        panels[0].set_ylabel("held-out accuracy, %")
        panels[0].legend(fontsize=8)
        figure.savefig(folder / CHART, format="svg", metadata={"Date": None})
    return folder / CHART


def _draw(axes: Axes, runs: Sequence[RunResult], kind: str | None, colour: object) -> None:
    """The lines of a kind, or for None of the mean over kinds."""
    by_version: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for run in runs:
        points = []
        for one in run.heldout:
            if kind is not None and kind not in one.solved:
                continue
            value = one.mean if kind is None else one.solved[kind][0] / one.solved[kind][1]
            points.append((one.time_s / 60, 100 * value))
            by_version[one.version].append(points[-1])
        if len(runs) > 1 and points:
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=0.6, alpha=0.5)
    common = [points for _, points in sorted(by_version.items()) if len(points) == len(runs)]
    xs = [fmean(x for x, _ in points) for points in common]
    ys = [fmean(y for _, y in points) for points in common]
    style = "--" if kind is None else "-"
    axes.plot(xs, ys, style, color=colour, linewidth=1.8, marker="o", markersize=4, label=kind or "mean")
