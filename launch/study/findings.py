"""What the results of a study say: each arm's figures, its difference to the baseline, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from actors.kinds.registry import names
from launch.study.definition import Arm, Study
from launch.study.interval import Difference, Sample, Verdict, difference, measurement_variance, seeds_needed
from launch.study.result import Measured, RunResult


@dataclass(frozen=True)
class ArmFindings:
    """What the complete runs of an arm say."""

    arm: Arm
    runs: tuple[RunResult, ...]
    """The complete ones, in the order of seeds."""
    failed: int
    sample: Sample
    """Judged accuracies, one a run that has one."""
    judged: tuple[Measured, ...]
    """The measurements that they are of."""
    version: int | None
    """The version whose measurement is judged; None: the last one of each run."""
    difference: Difference | None = None
    verdict: Verdict | None = None
    """None for a baseline."""

    def mean(self, name: str) -> float | None:
        """The mean over runs of a field of `RunResult` that is a number; None without any."""
        known = [value for run in self.runs if (value := getattr(run, name)) is not None]
        return fmean(known) if known else None

    @property
    def dropped(self) -> float | None:
        """Tokens dropped a run."""
        return fmean(sum(run.tokens_dropped.values()) for run in self.runs) if self.runs else None

    @property
    def initial(self) -> tuple[Measured, ...]:
        """The measurements before training, one a run that has one."""
        return tuple(run.heldout[0] for run in self.runs if run.heldout and run.heldout[0].version == 0)

    @property
    def before(self) -> float | None:
        """Accuracy before training, the mean over runs."""
        return fmean(one.mean for one in self.initial) if self.initial else None

    @property
    def age_max(self) -> float | None:
        """The largest age of a trajectory in any run."""
        return max((run.age_max for run in self.runs if run.age_max is not None), default=None)


def judge(study: Study, results: Mapping[str, RunResult]) -> list[ArmFindings]:
    """The findings of all arms, in the study's order. `results`: those that there are, by the run's name."""
    found = {arm.name: _findings(study, arm, results) for arm in study.arms}
    return [_compared(study, one, found) for one in found.values()]


def needed(study: Study, one: ArmFindings, baseline: ArmFindings) -> int | None:
    """The seeds with which arms that differ by nothing would be told non-inferior, by the spread that was seen."""
    spreads = [found.sample.spread for found in (one, baseline) if len(found.sample.values) > 1]
    return seeds_needed(fmean(spreads), study.judgement.margin, study.judgement.alpha) if spreads else None


def _findings(study: Study, arm: Arm, results: Mapping[str, RunResult]) -> ArmFindings:
    runs = _complete(study, arm, results)
    failed = sum(1 for result in results.values() if result.arm == arm.name and result.status == "failed")
    group = [other for other in study.arms if (other.baseline or other.name) == (arm.baseline or arm.name)]
    version = _common_version([run for other in group for run in _complete(study, other, results)])
    if study.budget.steps is None:
        version = None
        judged = [run.heldout[-1] for run in runs if run.heldout and run.heldout[-1].version]
    else:
        judged = [measured for run in runs for measured in run.heldout if measured.version == version]
    return ArmFindings(arm, tuple(runs), failed, sample_of(judged), tuple(judged), version)


def _compared(study: Study, one: ArmFindings, found: Mapping[str, ArmFindings]) -> ArmFindings:
    if one.arm.baseline is None:
        return one
    baseline = found[one.arm.baseline].sample
    between = difference(one.sample, baseline, study.judgement.alpha)
    if between is not None:
        verdict = between.verdict(study.judgement.margin)
    else:
        verdict = Verdict.TOO_FEW if one.sample.values and baseline.values else Verdict.NOT_MEASURED
    return replace(one, difference=between, verdict=verdict)


def _complete(study: Study, arm: Arm, results: Mapping[str, RunResult]) -> list[RunResult]:
    runs = (results.get(run.name) for run in study.runs() if run.arm == arm.name)
    return [run for run in runs if run is not None and run.status == "complete"]


def _common_version(runs: Sequence[RunResult]) -> int | None:
    """The newest version that was measured in all `runs`, above 0, which is the initial model. A run may have given
    the last one up, and accuracies of different versions are not compared. A run that was measured at none is left
    out."""
    measured = [versions for run in runs if (versions := {one.version for one in run.heldout if one.version})]
    return max(set.intersection(*measured), default=None) if measured else None


def judged_kinds(found: Sequence[ArmFindings]) -> list[str]:
    """The kinds of task that a judged measurement of these arms has."""
    return [kind for kind in names() if any(kind in measured.solved for one in found for measured in one.judged)]


def sample_of(judged: Sequence[Measured], kind: str | None = None) -> Sample:
    """Accuracies of one kind, or in the mean over kinds, with the variance that measuring alone gives them: that of the
    samples, or of one kind, or with one sample a task, that of a binomial, which is larger."""
    if kind is None:
        noise = [measurement_variance(list(one.solved.values())) if one.noise is None else one.noise for one in judged]
        return Sample(tuple(one.mean for one in judged), fmean(noise) if noise else 0.0)
    counts = [one.solved[kind] for one in judged if kind in one.solved]
    noise = [measurement_variance([count]) for count in counts]
    return Sample(tuple(solved / of for solved, of in counts), fmean(noise) if noise else 0.0)
