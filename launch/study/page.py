"""The page of a study, `report.md`: the verdicts, what each arm cost, the curves, and every run; from result files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from launch.run.console import counted
from launch.study.accuracy_chart import CHART, draw_accuracy, has_chart
from launch.study.curves import draw, files_of
from launch.study.definition import Study
from launch.study.findings import ArmFindings, judge, needed
from launch.study.folder import StudyFolder
from launch.study.grid import ABOUT_GRID, grid
from launch.study.interval import Verdict
from launch.study.kinds_chart import CHART as KINDS_CHART
from launch.study.kinds_chart import draw_kinds, has_course
from launch.study.learning import (
    ABOUT_DIVERSITY,
    ABOUT_GAINS,
    ABOUT_KINDS,
    ABOUT_QUARTERS,
    ABOUT_TOKENS,
    by_kind,
    by_quarter,
    diversity,
    gains,
    per_token,
)
from launch.study.result import RunResult
from launch.study.table import number, points, share, table
from launch.whole_file import write_text

FEW_SEEDS = 3
"""Seeds below which the page warns of what an interval is worth."""


def write_page(folder: StudyFolder, study: Study, results: Mapping[str, RunResult]) -> list[str]:
    """Write the page and its curves into the study's folder; returns the verdicts in words. Raises StudyError."""
    found = judge(study, results)
    began = folder.read_began()
    with folder.usable():
        draw(study, results, folder.path)
        draw_accuracy(found, folder.path)
        draw_kinds(found, folder.path)
        text = page(study, results, found, began["time"] if began else None, folder.read_notes())
        write_text(folder.page, text)
    return _sentences(study, found)


def page(
    study: Study,
    results: Mapping[str, RunResult],
    found: Sequence[ArmFindings],
    began: str | None,
    notes: str = "",
) -> str:
    """The Markdown text of the page. `began`: when the first run began. `notes`: what stands before all findings."""
    parts = [
        f"# Study: {study.study}, `{study.recipe}`",
        study.question,
        *([notes] if notes else []),
        _state(study, results),
        *_verdicts(study, found),
        _judged(study, found, began),
        *_section("## Gain over the initial model", gains(found, study.judgement.alpha), ABOUT_GAINS),
        *(_section("## By kind", by_kind(found, study.judgement.alpha), ABOUT_KINDS) if len(found) > 1 else []),
        *([f"![held-out accuracy by kind]({CHART})"] if has_chart(found) else []),
        *(_section("## By bound and correction", grid(found), ABOUT_GRID) if study.study == "staleness" else []),
        *([f"![held-out accuracy over time]({KINDS_CHART})"] if has_course(found) else []),
        *_section("## Learning for each token", per_token(found), ABOUT_TOKENS),
        *_section("## Diversity at the end", diversity(found), ABOUT_DIVERSITY),
        *_section("## From quarter to quarter", by_quarter(found), ABOUT_QUARTERS),
        "## Cost",
        table(("arm", "mean age", "max age", "steps", "seconds", "speed", "trained", "generated", "dropped",
                "learner waits"), [_cost_row(one, found) for one in found]),
        "Means over the complete runs: tokens trained, generated and dropped a run; speed is trained tokens a second"
        + (", and in parentheses the difference to the baseline" if len(found) > 1 else "")
        + ". Seconds are those of training, without starting up and the measurement of the initial model.",
        "## Curves",
        "Thin lines are runs, thick ones their mean. Bars are the 95% intervals of single measurements.",
        *[f"![against {axis}]({name})" for axis, name in files_of(study).items()],
        "## Runs",
        _runs(study, results),
        _setting(study, results),
    ]  # fmt: skip
    return _joined(parts)


def verdict_of(study: Study, one: ArmFindings, found: Sequence[ArmFindings]) -> str:
    """The verdict about an arm in words, without its name; empty for a baseline."""
    if one.verdict is None:
        return ""
    margin = f"{100 * study.judgement.margin:g} points"
    baseline = next(other for other in found if other.arm.name == one.arm.baseline)
    seeds = f"{len(one.sample.values)} and {len(baseline.sample.values)} runs"
    if one.difference is None:
        needs = f" ({seeds}); an interval needs 2 of each" if one.verdict is Verdict.TOO_FEW else ""
        return f"{one.verdict.value}{needs}."
    interval = f"interval {points(one.difference.low)} to {points(one.difference.high)} points"
    match one.verdict:
        case Verdict.NON_INFERIOR:
            return f"non-inferior to `{baseline.arm.name}`: loses less than {margin} ({interval}; {seeds})."
        case Verdict.INFERIOR:
            return f"inferior to `{baseline.arm.name}`: loses more than {margin} ({interval}; {seeds})."
    enough = needed(study, one, baseline)
    told = ""
    if enough:
        told = f"; by the spread that was seen, about {enough} seeds find an equal arm non-inferior in 4 of 5 studies"
    return f"cannot tell: {interval}, margin {margin} ({seeds}{told})."


def _sentences(study: Study, found: Sequence[ArmFindings]) -> list[str]:
    """The verdicts in words: a line for each, or for several arms of which the same is said."""
    arms: dict[str, list[str]] = {}
    for one in found:
        if text := verdict_of(study, one, found):
            arms.setdefault(text, []).append(f"`{one.arm.name}`")
    return [f"{', '.join(names)}: {text}" for text, names in arms.items()]


def _verdicts(study: Study, found: Sequence[ArmFindings]) -> list[str]:
    """The verdicts and their table; of one arm, which nothing is compared with, the accuracies alone."""
    headings = ("arm", "runs", "before", "held-out accuracy", "of each run", "difference", "interval", "verdict")
    rows = [_verdict_row(study, one) for one in found]
    if len(found) == 1:
        return ["## Held-out accuracy", table(headings[:5], [row[:5] for row in rows])]
    return ["## Verdict", *(f"- {text}" for text in _sentences(study, found)), table(headings, rows)]


def _section(heading: str, text: str, about: str) -> list[str]:
    return [heading, text, about] if text else []


def _state(study: Study, results: Mapping[str, RunResult]) -> str:
    failed = [result.run.name for result in results.values() if result.status == "failed"]
    done = len(results) - len(failed)
    text = f"{done} of {len(study.order)} runs are complete."
    if failed:
        text += f" FAILED, and in no figure below: {', '.join(failed)}."
    if done < len(study.order):
        text += " What is said below is of the complete ones, and may change with the others."
    return text


def _verdict_row(study: Study, one: ArmFindings) -> list[str]:
    values, between = one.sample.values, one.difference
    confidence = f"{100 * (1 - 2 * study.judgement.alpha):g}%"
    return [
        f"`{one.arm.name}`",
        f"{len(one.runs)}" + (f" ({one.failed} failed)" if one.failed else ""),
        share(one.before),
        share(one.sample.mean if values else None),
        ", ".join(f"{100 * value:.1f}" for value in values) or "-",
        points(between.mean) if between else "-",
        f"{points(between.low)} to {points(between.high)} ({confidence})" if between else "-",
        one.verdict.value if one.verdict else "baseline",
    ]


def _judged(study: Study, found: Sequence[ArmFindings], began: str | None) -> str:
    judgement = study.judgement
    versions = sorted({one.version for one in found if one.version is not None})
    at = (
        f"at version {', '.join(map(str, versions))}, the newest that all measured runs"
        f"{' of a comparison' if len(found) > 1 else ''} have in common"
        if versions
        else "by the last measurement of each run"
        if study.budget.steps is None
        else "at no version: the runs have none in common that was measured after training"
    )
    measured = [last for one in found for run in one.runs for last in run.heldout[-1:]]
    tasks = {(sum(n for _, n in last.solved.values()) // last.samples, last.samples) for last in measured}
    asked = " or ".join(f"{number} tasks x {samples}" for number, samples in sorted(tasks))
    text = (
        f"Judged by `{judgement.metric}` {at}. Measured{f' on {asked}' if asked else ''}: the initial model, and in "
        f"each run every {judgement.heldout_every} versions and the last one. "
    )
    if len(study.arms) > 1:
        text += (
            f"Margin: {100 * judgement.margin:g} points, written down "
            f"{study.written}{f', before the first run ({began})' if began else ''}. The interval is that of Welch for "
            "the difference of two means over runs with independent seeds (unpaired), two-sided with confidence "
            f"{100 * (1 - 2 * judgement.alpha):g}%, so each end is a one-sided test at {100 * judgement.alpha:g}%. "
            "Non-inferior: the whole interval is above minus the margin; inferior: the whole interval is below it; "
            "otherwise: cannot tell. Where runs happen to agree better than their measurements can, the variance "
            "of the measurements replaces theirs. No correction is made for the number of arms. "
        )
    text += "The tasks are the same in all runs: what is found holds for tasks like these."
    short = [run.run.name for one in found for run in one.runs if not run.measured_last]
    if short and measured:  # a rehearsal measures nothing
        text += (
            "\n\nNot measured at its last version, because it was given up or the run was killed meanwhile: "
            f"{', '.join(short)}. To make such a run again, remove its folder in `runs/` and its file in `results/`."
        )
    judged = [len(one.sample.values) for one in found]
    fewest = min(judged)
    if fewest < FEW_SEEDS:
        who = "One arm has" if judged.count(fewest) == 1 else "Some arms have"
        text += (
            f"\n\n**Few seeds.** {who} {counted(fewest, 'judged run')}. With fewer than {FEW_SEEDS} a variance "
            "is hardly known, and an interval over seeds is wide or missing: other seeds may give another answer."
        )
    return text


def _cost_row(one: ArmFindings, found: Sequence[ArmFindings]) -> list[str]:
    baseline = next((other for other in found if other.arm.name == one.arm.baseline), None)
    speed, base = _speed(one), _speed(baseline) if baseline else None
    return [
        f"`{one.arm.name}`",
        number(one.mean("age_mean"), ".2f"),
        number(one.age_max, ".0f"),
        number(one.mean("steps"), ".0f"),
        number(one.mean("seconds"), ",.0f"),
        "-" if speed is None else f"{speed:,.0f}" + (f" ({speed / base - 1:+.0%})" if base else ""),
        number(one.mean("tokens_trained"), ",.0f"),
        number(one.mean("tokens_generated"), ",.0f"),
        number(one.dropped, ",.0f"),
        share(one.mean("wait_for_batch_share")),
    ]


def _speed(one: ArmFindings) -> float | None:
    seconds, tokens = one.mean("seconds"), one.mean("tokens_trained")
    return tokens / seconds if seconds and tokens else None


def _runs(study: Study, results: Mapping[str, RunResult]) -> str:
    rows = []
    for run in study.runs_in_order():
        result = results.get(run.name)
        if result is None:
            rows.append([f"`{run.name}`", "to be made", *["-"] * 5])
            continue
        accuracies = " ".join(f"{100 * measured.mean:.1f}" for measured in result.heldout)
        state = result.status if result.status == "complete" else f"failed, exit code {result.exit_code}"
        seconds, age = f"{result.seconds:.0f}", number(result.age_mean, ".2f")
        rows.append([f"`{run.name}`", state, str(result.steps), seconds, age, str(result.attempts), accuracies or "-"])
    headings = ("run, in the order made", "state", "steps", "seconds", "mean age", "starts", "held-out accuracy, %")
    return table(headings, rows)


def _setting(study: Study, results: Mapping[str, RunResult]) -> str:
    machines = sorted({f"{result.machine}, azr {result.azr}" for result in results.values() if result.machine})
    lines = [f"Recipe `{study.recipe}`"]
    if study.overrides:
        lines.append("with " + ", ".join(f"`{text}`" for text in study.overrides))
    lines.append(f"; each run: {study.budget}; seeds {', '.join(map(str, study.seeds))}.")
    if machines:
        lines.append(f"Machine: {'; '.join(machines)}.")
    lines.append("Definition: [study.toml](study.toml). Figures: [results](results).")
    return " ".join(lines).replace(" ;", ";")


def _joined(parts: Sequence[str]) -> str:
    """Paragraphs apart from each other, list items together."""
    text = ""
    for before, part in zip(("", *parts), parts, strict=False):
        text += ("\n" if before.startswith("- ") and part.startswith("- ") else "\n\n") + part
    return text.strip() + "\n"
