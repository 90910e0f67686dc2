"""The table of bounds and corrections, and the colours of a study with several baselines."""

from __future__ import annotations

from launch.study.curves import colours_of
from launch.study.findings import judge
from launch.study.grid import grid
from launch.study.staleness import arms
from tests.unit.launch.study.studies import make_result, make_study

ARMS = arms((0, 8), ("clip", "none"))
STUDY = make_study(
    seeds=(0, 1), arms=[arm.name for arm in ARMS],
).model_copy(update={"arms": ARMS})  # fmt: skip


def test_each_bound_stands_beside_each_correction() -> None:
    results = {
        run.name: make_result(
            run,
            {8: accuracy},
            series={"step": [7, 8], "entropy": [0.5, 0.7 + run.seed], "ess": [None, 0.9], "kl_behave": [0.1, 0.3]},
        )
        for run in STUDY.runs()
        for accuracy in [{"clip-K0": 0.25, "clip-K8": 0.5, "none-K0": 0.125}.get(run.arm)]
        if accuracy is not None
    }
    assert grid(judge(STUDY, results)).splitlines() == [
        "|  | `clip` | `none` |",
        "| --- | --- | --- |",
        "| `K0` | 25.0%; 0.20; 0.90; 0.85 | 12.5%; 0.20; 0.90; 0.85 |",
        "| `K8` | 50.0%; 0.20; 0.90; 0.85 | - |",
    ]


def test_one_correction_needs_no_table() -> None:
    study = make_study(arms=("clip-K0", "clip-K8"))
    assert grid(judge(study, {})) == ""
    assert grid(judge(make_study(arms=("K0", "K8")), {})) == ""
    assert grid(judge(make_study(arms=("clip-0", "clip-8", "none-0", "none-8")), {})) == ""  # named by hand


def test_a_bound_has_one_colour_whatever_the_correction() -> None:
    colours = colours_of(ARMS)
    assert colours["clip-K8"] == colours["none-K8"] != colours["clip-K0"] == colours["none-K0"]
    alone = colours_of([arm.model_copy(update={"baseline": None}) for arm in ARMS])
    assert len(set(alone.values())) == len(ARMS)
