"""The chart of held-out accuracy over time, by kind of task, as an SVG file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import matplotlib
from matplotlib.figure import Figure

from actors.kinds.registry import names
from launch.study.curves import STYLE, colour_scale
from launch.study.findings import ArmFindings
from launch.study.result import Measured, RunResult

CHART = "kinds.svg"
FEWEST = 3
"""Measurements of a run from which there is more to draw than before and after."""

Line = list[tuple[float, float]]
"""(minutes of training, accuracy in percent)."""


def has_course(found: Sequence[ArmFindings]) -> bool:
    """Whether a run was measured often enough for the chart."""
    return any(len(run.heldout) >= FEWEST for one in found for run in one.runs)


def line_of(run: RunResult, kind: str | None) -> Line:
    """The accuracies of a run, of one kind or in the mean over kinds."""
    return [_point(one, kind) for one in run.heldout if kind is None or kind in one.solved]


def mean_line(runs: Sequence[RunResult], kind: str | None) -> Line:
    """The mean of the runs' lines at each version that all of them measured before their last one, and of their last
    measurements. Runs without a measurement after training are left out."""
    trained = [run.heldout for run in runs if run.heldout and run.heldout[-1].version and line_of(run, kind)]
    if not trained:
        return []
    by_version = [{one.version: one for one in measured[:-1]} for measured in trained]
    common = sorted(set.intersection(*map(set, by_version)))
    groups = [[found[version] for found in by_version] for version in common] + [[one[-1] for one in trained]]
    lines = [[_point(one, kind) for one in group] for group in groups]
    return [(fmean(x for x, _ in points), fmean(y for _, y in points)) for points in lines]


def _point(one: Measured, kind: str | None) -> tuple[float, float]:
    solved = None if kind is None else one.solved[kind]
    return one.time_s / 60, 100 * (one.mean if solved is None else solved[0] / solved[1])


def draw_kinds(found: Sequence[ArmFindings], folder: Path) -> Path | None:
    """Draw the chart into `folder`; returns the file, or None where no run was measured often enough. A panel for each
    arm; a line for each kind and for the mean over kinds. Thin lines are runs, thick ones their mean."""
    if not has_course(found):
        return None
    arms = [one for one in found if one.runs]
    kinds = [kind for kind in names() if any(line_of(run, kind) for one in arms for run in one.runs)]
    colours = dict(zip(kinds, colour_scale(len(kinds)), strict=True))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.5 + 4.5 * len(arms), 3.2), layout="constrained")
        panels = figure.subplots(1, len(arms), squeeze=False, sharey="row")[0]
        for panel, one in zip(panels, arms, strict=True):
            for kind in (*kinds, None):
                colour = colours[kind] if kind else "black"
                for line in [line_of(run, kind) for run in one.runs] if len(one.runs) > 1 else ():
                    panel.plot(*zip(*line, strict=True), color=colour, linewidth=0.6, alpha=0.5) if line else None
                mean = mean_line(one.runs, kind)
                xs, ys = [x for x, _ in mean], [y for _, y in mean]
                style = "-" if kind else "--"
                panel.plot(xs, ys, style, color=colour, linewidth=1.8, marker="o", markersize=4, label=kind or "mean")
            if len(arms) > 1:
                panel.set_title(one.arm.name)
            panel.set_xlabel("minutes of training")
            panel.set_ylim(bottom=0)
        panels[0].set_ylabel("held-out accuracy, %")
        panels[0].legend(fontsize=8)
        figure.savefig(folder / CHART, format="svg", metadata={"Date": None})
    return folder / CHART
