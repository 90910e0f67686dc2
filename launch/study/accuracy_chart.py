"""The chart of a study: held-out accuracy by kind of task, before training and of each arm, as an SVG file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from launch.study.curves import STYLE, Colour, colours_of, compared_groups
from launch.study.findings import ArmFindings, judged_kinds, sample_of
from launch.study.result import Measured

CHART = "accuracy.svg"
INITIAL = (0.72, 0.72, 0.72, 1.0)
"""Colour of the initial model's bars."""
WIDTH = 0.8
"""Width that the bars of a kind have together."""


def has_chart(found: Sequence[ArmFindings]) -> bool:
    """Whether an arm has a measurement after training, as the table by kind needs one."""
    return any(judged.solved for one in found for judged in one.judged)


def draw_accuracy(found: Sequence[ArmFindings], folder: Path) -> Path | None:
    """Draw the chart into `folder`; returns the file, or None without a measurement after training. A group of bars for
    the mean and for each kind: first the initial model, then the arms. Bars are means over runs, dots are runs. Where
    several baselines are compared with arms of their own, each of them has a panel."""
    if not has_chart(found):
        return None
    measured = [one for one in found if one.judged]
    kinds = judged_kinds(measured)
    initial = tuple(first for one in found for first in one.initial)
    one_figure = len({first.mean for first in initial}) == 1  # most runs take it over from the first one
    before = ("initial", INITIAL, initial[:1] if one_figure else initial)
    colours = colours_of([one.arm for one in found])
    panels = []
    for group in compared_groups([one.arm for one in found]):
        of_group = [one for one in measured if one.arm in group]
        if of_group:
            panels.append([before, *((one.arm.name, colours[one.arm.name], one.judged) for one in of_group)])
    most = max(len(bars) for bars in panels)
    with matplotlib.rc_context(STYLE):
        size = (2.5 + 0.4 * (1 + len(kinds)) * most, 3.2 * len(panels))
        figure = Figure(figsize=size, layout="constrained")
        for axes, bars in zip(figure.subplots(len(panels), squeeze=False, sharey=True)[:, 0], panels, strict=True):
            _draw_panel(axes, bars, kinds)
        figure.savefig(folder / CHART, format="svg", metadata={"Date": None})
    return folder / CHART


def _draw_panel(axes: Axes, bars: Sequence[tuple[str, Colour, Sequence[Measured]]], kinds: Sequence[str]) -> None:
    step = WIDTH / len(bars)
    for place, (label, colour, measurements) in enumerate(bars):
        for group, kind in enumerate((None, *kinds)):
            values = [100 * value for value in sample_of(measurements, kind).values]
            if not values:
                continue
            at = group + (place + 0.5) * step - WIDTH / 2
            axes.bar(at, fmean(values), 0.92 * step, color=colour, label=label if group == 0 else None)
            axes.plot([at] * len(values), values, "o", color="black", markeredgecolor="white", markersize=5)
    axes.set_xticks(range(1 + len(kinds)), ["mean", *kinds])
    axes.grid(axis="x", visible=False)
    axes.set_axisbelow(True)
    axes.set_ylabel("held-out accuracy, %")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
