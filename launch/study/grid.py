"""The table of a study of staleness that has each bound beside each correction: where learning breaks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean

from launch.study.findings import ArmFindings
from launch.study.result import LAST_STEPS, RunResult
from launch.study.table import number, share, table

_NAME = re.compile(r"(.+)-(K\d+)")
"""Correction and bound."""


def grid(found: Sequence[ArmFindings]) -> str:
    """A row for each bound K, a column for each correction; empty with less than two of either. Arms that were given
    other names by hand than `staleness.arms` gives are left out."""
    arms = {match.groups(): one for one in found if (match := _NAME.fullmatch(one.arm.name))}
    corrections, bounds = (list(dict.fromkeys(name[place] for name in arms)) for place in (0, 1))
    if min(len(corrections), len(bounds)) < 2:
        return ""
    rows = [[f"`{bound}`", *(_cell(arms.get((name, bound))) for name in corrections)] for bound in bounds]
    return table(("", *(f"`{name}`" for name in corrections)), rows)


ABOUT_GRID = (
    "In a cell: held-out accuracy at the version that is judged of its correction; KL(behaviour policy || present "
    "policy), in nats (`kl_behave`); effective sample size (`ess`); entropy of the policy, in nats. "
    f"The latter three are over the last {LAST_STEPS} steps; all are means over the complete runs. Effective sample "
    "size is the share of its tokens that a batch is worth after weighing by pi_theta / pi_behave: 1 on-policy. An "
    "entropy near 0 is a policy that has collapsed."
)


def _cell(one: ArmFindings | None) -> str:
    if one is None or not one.runs:
        return "-"
    accuracy = share(one.sample.mean if one.sample.values else None)
    return "; ".join([accuracy, *(number(_at_end(one.runs, name), ".2f") for name in ("kl_behave", "ess", "entropy"))])


def _at_end(runs: Sequence[RunResult], metric: str) -> float | None:
    ends = [
        [
            value
            for step, value in zip(run.series["step"], run.series.get(metric, ()), strict=False)
            if step is not None and step > run.steps - LAST_STEPS and value is not None
        ]
        for run in runs
        if "step" in run.series
    ]
    means = [fmean(end) for end in ends if end]
    return fmean(means) if means else None
