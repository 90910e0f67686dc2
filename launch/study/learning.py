"""What the arms of a study learned, by kind of task and for each token, and how diverse their runs were at the end."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean

from actors.heldout.intervals import Estimate, Solved
from actors.heldout.intervals import difference as over_tasks
from launch.study.findings import ArmFindings, judged_kinds, sample_of
from launch.study.interval import Difference, Sample, change, difference
from launch.study.quarters import DIVERSITY, MEMORY, PARTS, mean_of
from launch.study.result import LAST_STEPS, Measured
from launch.study.table import number, points, share, table


def by_kind(found: Sequence[ArmFindings], alpha: float) -> str:
    """The table of accuracies by kind of task, and in the mean; empty without a measurement."""
    kinds = judged_kinds(found)
    if not kinds:
        return ""
    rows = []
    for kind in (None, *kinds):
        for one in found:
            baseline = next((other for other in found if other.arm.name == one.arm.baseline), None)
            beside = baseline.judged if baseline else ()
            rows.append(
                [
                    *_named(kind, one),
                    _accuracy(one.judged, kind),
                    *_difference(one.judged, beside, kind, partial(difference, alpha=alpha)),
                ]
            )
    return table(("kind", "arm", "held-out accuracy", "difference", *_intervals(alpha)), rows)


def gains(found: Sequence[ArmFindings], alpha: float) -> str:
    """The table of gains over the initial model, by kind of task and in the mean; empty where not both are
    measured."""
    known = [one for one in found if one.initial and one.judged]
    rows = [
        [
            *_named(kind, one),
            _accuracy(one.initial, kind),
            _accuracy(one.judged, kind),
            *_difference(one.judged, one.initial, kind, partial(change, alpha=alpha)),
        ]
        for kind in (None, *judged_kinds(known))
        for one in known
    ]
    return table(("kind", "arm", "before", "after", "gain", *_intervals(alpha)), rows) if rows else ""


def _named(kind: str | None, one: ArmFindings) -> tuple[str, str]:
    return kind or "mean", f"`{one.arm.name}`"


def _accuracy(measured: Sequence[Measured], kind: str | None) -> str:
    sample = sample_of(measured, kind)
    return share(sample.mean if sample.values else None)


def _difference(
    ours: Sequence[Measured],
    theirs: Sequence[Measured],
    kind: str | None,
    over_seeds: Callable[[Sample, Sample], Difference | None],
) -> tuple[str, str, str]:
    """The difference of two sides' means over runs, with its intervals over seeds and over programs."""
    sample, beside = sample_of(ours, kind), sample_of(theirs, kind)
    mean = sample.mean - beside.mean
    return (
        "-" if math.isnan(mean) else points(mean),
        _interval(over_seeds(sample, beside)),
        _interval(over_programs(ours, theirs, kind)),
    )


def _intervals(alpha: float) -> tuple[str, str]:
    return f"over seeds ({100 * (1 - 2 * alpha):g}%)", "over programs (95%)"


ABOUT_GAINS = (
    "Held-out accuracy of the initial model, and at the judged version. The gain is in points. Its interval over "
    "seeds has the spread of the runs, and once the noise of the initial model's measurement, which they have in "
    "common. The one over programs takes these runs as they are, pairs before and after by task, with the mean over an "
    "arm's runs, and says what other programs might give."
)
ABOUT_KINDS = (
    "Differences to the baseline, in points. The interval over seeds is that of the verdict: it says what other "
    "seeds might give on these tasks. The interval over programs takes these runs as they are, pairs the arms by task, "
    "with the mean over an arm's runs, and says what other programs might give. A difference that holds for both is "
    "beyond 0 in both."
)


def over_programs(judged: Sequence[Measured], baseline: Sequence[Measured], kind: str | None = None) -> Estimate | None:
    """The difference to the baseline, of one kind or in the mean over kinds, with its 95% interval over programs
    (`actors/heldout/intervals.py`): of the means over each arm's runs, paired by task. None where a run's
    counts by program were not kept."""
    ours, theirs = _shares(judged), _shares(baseline)
    paired = [
        Solved(program, of_kind, ours[of_kind, program][0] - theirs[of_kind, program][0])
        for of_kind, program in ours.keys() & theirs.keys()
        if kind in (None, of_kind)
        for _ in range(ours[of_kind, program][1])
    ]
    return over_tasks(paired) if paired else None


def _shares(judged: Sequence[Measured]) -> dict[tuple[str, str], tuple[float, int]]:
    """(kind, program) -> (mean share over the runs, tasks), of the programs that all of the runs have."""
    found: dict[tuple[str, str], list[tuple[float, int]]] = defaultdict(list)
    for one in judged:
        for kind, programs in one.programs.items():
            for program, (correct, solutions) in programs.items():
                found[kind, program].append((correct / solutions, solutions // one.samples))
    return {
        key: (fmean(value for value, _ in of_runs), min(tasks for _, tasks in of_runs))
        for key, of_runs in found.items()
        if len(of_runs) == len(judged)
    }


def per_token(found: Sequence[ArmFindings]) -> str:
    """The table of what was learned for each token; empty without a measurement before and after."""
    rows = []
    for one in found:
        if one.before is None or not one.judged:
            continue
        gain = one.sample.mean - one.before
        trained = fmean(measured.tokens_trained for measured in one.judged)
        generated = [tokens for measured in one.judged if (tokens := measured.tokens_generated) is not None]
        rows.append(
            [
                f"`{one.arm.name}`",
                points(gain),
                number(trained, ",.0f"),
                _per_million(gain, trained),
                number(fmean(generated) if generated else None, ",.0f"),
                _per_million(gain, fmean(generated) if generated else 0.0),
            ]
        )
    headings = ("arm", "gain, points", "trained tokens", "gain per million", "generated tokens", "gain per million")
    return table(headings, rows) if rows else ""


ABOUT_TOKENS = (
    "Gain: held-out accuracy at the judged version minus that before training, the mean over runs. Tokens are those "
    "until then; generated ones include what was dropped, or thrown away as an estimate, and leave measurements out."
)


def diversity(found: Sequence[ArmFindings]) -> str:
    """The table of diversity at the end; empty where no result has it."""
    rows = [
        [f"`{one.arm.name}`", *_diversity_cells([run.diversity for run in one.runs])]
        for one in found
        if any(run.diversity for run in one.runs)
    ]
    return table(("arm", *_DIVERSITY_HEADINGS), rows) if rows else ""


ABOUT_DIVERSITY = (
    f"Means over the last {LAST_STEPS} steps, the kinds of tasks that an arm trains, and the complete runs: proposals "
    "whose program ignores its input, of those that ran; proposals that are known tasks; different programs of a "
    "batch; answers that repeat their input; entropy of the policy (`ignores_input`, `duplicates`, "
    "`distinct_programs`, `copies`, `entropy`). Programs are counted in deduction and abduction, whose proposers write "
    "them. Proposals are counted where they are trained, so an arm that trains the solver alone has none."
)


def by_quarter(found: Sequence[ArmFindings]) -> str:
    """The table of the quarters of the steps; empty where no result has them."""
    rows = []
    for one in found:
        for part in range(PARTS):
            parts = [run.quarters[part] for run in one.runs if run.quarters]
            if not parts:
                continue
            rows.append(
                [
                    f"`{one.arm.name}`",
                    f"{part + 1} of {PARTS}",
                    number(mean_of(parts, ["new_tasks"]), ".1f"),
                    *_diversity_cells(parts),
                    number(mean_of(parts, ["step_s"]), ".1f"),
                    *(number(mean_of(parts, [name]), ",.0f") for name in MEMORY),
                ]
            )
    headings = (
        "arm", "quarter", "new tasks a step", *_DIVERSITY_HEADINGS, "seconds a step", "learner, MiB", "actor, MiB",
    )  # fmt: skip
    return table(headings, rows) if rows else ""


ABOUT_QUARTERS = (
    "New tasks a step: tasks that the buffer took. Seconds a step: from step to step. Both are counted from the end of "
    "the first step, which includes seeding. Diversity: as above, over the steps of the quarter. Memory: resident, of "
    "the learner, and of the largest actor with its engine and sandboxes. Means over the complete runs."
)

_DIVERSITY_HEADINGS = ("ignore their input", "known tasks", "distinct programs", "copies", "entropy, nats")


def _diversity_cells(parts: Sequence[Mapping[str, float]]) -> list[str]:
    """The cells under `_DIVERSITY_HEADINGS`, as means over runs."""
    shares = [share(mean_of(parts, [name])) for name in DIVERSITY]
    return [*shares, number(mean_of(parts, ["entropy"]), ".2f")]


def _per_million(gain: float, tokens: float) -> str:
    return points(gain * 1e6 / tokens) if tokens else "-"


def _interval(found: Difference | Estimate | None) -> str:
    return f"{points(found.low)} to {points(found.high)}" if found else "-"
