"""The estimate without a simulation: three times, and Little's law.

    T_l    seconds in which the learner trains and publishes a batch
    T_g    seconds in which all engines, kept full, sample the tokens of a batch
    L      seconds from the grant of a batch until its last trajectory is in, with idle engines: its longest chain of a
           proposal and its solutions cannot be split

    K = 0     step = max(T_g, L) + T_l
    K >= 1    step = max(T_g + P, T_l, (max(T_g, L) + T_l) / (K + 1) + P)

with P seconds a publication, in which engines stand still. The last term is Little's law: at most K + 1 batches are
between grant and publication, and each stays there for at least max(T_g, L) + T_l, and over K + 1 publications. Ages
follow from the same law: age = (time from the first token to training) / step, at most K. Where the learner is the
limit, everything plays ahead as far as it may, and the age is K.

On cores that engines and learner share, no step is shorter than all of their work over the number of cores.

*Harmonic split*: with g device-seconds of sampling and t of training a batch, N devices make a step in no less than
(g + t) / N seconds, reached where the share of devices that train is t / (g + t).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from launch.tune.calibration import Calibration, Group
from launch.tune.engine_model import StepCost
from launch.tune.learner_model import LearnerCost
from launch.tune.scenario import Scenario
from launch.tune.workload import Groups
from learner.trajectory import Cell, Role

LATE = 1 << 30
"""A version beyond all measured ones: lengths of the end of the calibration's runs."""


@dataclass(frozen=True)
class ClosedForm:
    """The estimate of one scenario."""

    generate_s: float
    """T_g."""
    chain_s: float
    """L."""
    learn_s: float
    """T_l."""
    step_s: float
    age_mean: float
    trained_per_step: float
    """Response tokens of a batch."""

    @property
    def steps_per_hour(self) -> float:
        """Training steps an hour."""
        return 3600 / self.step_s


@dataclass(frozen=True)
class Split:
    """The best division of devices."""

    rollout: float
    training: float
    step_s: float


@dataclass(frozen=True)
class _Work:
    """Means over a batch."""

    tokens: float
    """Response tokens that are sampled, estimates without a slot included."""
    trained: float
    prompts: float
    """Prompt tokens that the engines compute."""
    rows: float
    longest: float
    """Tokens of the longest chain of a proposal and a solution."""
    context: float
    """Mean tokens of context of a running sequence."""


def harmonic_split(generate_device_s: float, train_device_s: float, devices: int) -> Split:
    """The best split of `devices`, from device-seconds of sampling and of training a batch (see the head)."""
    share = train_device_s / (generate_device_s + train_device_s)
    return Split(devices * (1 - share), devices * share, (generate_device_s + train_device_s) / devices)


def estimate_closed(scenario: Scenario, calibration: Calibration) -> ClosedForm:
    """The closed form of a scenario."""
    work = _work(scenario, calibration)
    cost = StepCost.of(calibration.engine)
    open_slots = (scenario.max_staleness + 1) * scenario.quota / scenario.num_actors
    batch = max(1.0, min(scenario.concurrency, scenario.max_num_seqs, open_slots))
    step_s = max(cost.least_s, cost.step_s + batch * (cost.sequence_s + cost.context_s * work.context))
    generate_s = (work.tokens * step_s / batch + work.prompts * cost.prompt_s) / scenario.num_actors
    alone = max(1.0, min(batch, scenario.quota / scenario.num_actors))
    # A chain runs while the rest of the batch ends: on average at half the sequences.
    chain_step_s = cost.step_s + alone / 2 * (cost.sequence_s + cost.context_s * work.context)
    chain_s = work.longest * max(cost.least_s, chain_step_s)
    learner = LearnerCost.of(calibration.learner, scenario.learner_threads, scenario.data_ranks, scenario.model_ranks)
    weights = calibration.weights
    train_s = learner.step_s + (learner.row_s * work.rows + learner.target_s * work.trained) / scenario.data_ranks
    publish_s = (
        weights.ready_s.value
        + weights.send_s.value
        + weights.actor_s.value * (scenario.num_actors - 1)
        + weights.load_s.value
    )
    sampled_s = max(generate_s, chain_s)
    if scenario.max_staleness == 0:
        step = sampled_s + train_s + publish_s + learner.between_s
    else:
        if not scenario.on_gpu:
            sharing = calibration.sharing
            beside = min(1.0, generate_s / train_s)
            train_s *= 1 + beside * (sharing.learner_beside_engine.value - 1)
            generate_s *= sharing.engine_beside_learner.value
        learn_s = train_s + publish_s + learner.between_s
        open_batches = scenario.max_staleness + 1
        step = max(learn_s, generate_s + publish_s, (sampled_s + learn_s) / open_batches + publish_s)
        if not scenario.on_gpu:
            busy = generate_s * scenario.num_actors * scenario.engine_threads + train_s * learner.cores
            step = max(step, busy / scenario.cores)
    learn_s = train_s + publish_s + learner.between_s
    return ClosedForm(
        generate_s=generate_s,
        chain_s=chain_s,
        learn_s=learn_s,
        step_s=step,
        age_mean=_age(scenario.max_staleness, sampled_s, learn_s, step),
        trained_per_step=work.trained,
    )


def _age(max_staleness: int, sampled_s: float, learn_s: float, step_s: float) -> float:
    """Mean age by Little's law. Where the learner is the limit, K. Otherwise the time from a trajectory's first token
    to its batch's training, half of the time that its batch needs, in steps."""
    if not max_staleness:
        return 0.0
    if learn_s >= 0.98 * step_s:
        return float(max_staleness)
    return min(float(max_staleness), sampled_s / 2 / step_s + 0.5)


def _work(scenario: Scenario, calibration: Calibration) -> _Work:
    tokens = trained = prompts = rows = weight = context = 0.0
    longest = 0.0
    all_proposals = sum(scenario.batch.quota(cell) for cell in scenario.batch.cells if cell.role is Role.PROPOSE)
    all_solutions = sum(scenario.batch.quota(cell) for cell in scenario.batch.cells if cell.role is Role.SOLVE)
    share_of_prompt = 1 - calibration.engine.cached_share.value
    for kind in dict.fromkeys(cell.kind for cell in scenario.batch.cells):
        proposals = scenario.batch.quota(Cell(kind, Role.PROPOSE))
        solutions = scenario.batch.quota(Cell(kind, Role.SOLVE))
        chain = 0.0
        if proposals:
            groups = Groups(calibration.workload[f"{kind}/propose"]).near(LATE)
            verdicts = [valid for group in groups for valid in group.valid]
            valid_rate = sum(verdicts) / len(verdicts)
            briefs = math.ceil(proposals / scenario.selfplay.proposals_per_prompt)
            mean, prompt = _mean_response(groups), _mean_prompt(groups)
            tokens += proposals * mean
            trained += proposals * mean
            prompts += briefs * prompt * share_of_prompt
            rows += briefs * prompt + proposals * (mean - 1)
            context += proposals * mean * (prompt + mean / 2)
            weight += proposals * mean
            chain += _longest_of(groups, all_proposals)
        if solutions:
            groups = Groups(calibration.workload[f"{kind}/solve"]).near(LATE)
            mean, prompt = _mean_response(groups), _mean_prompt(groups)
            tasks = proposals or math.ceil(solutions / scenario.selfplay.solutions)
            extra = 0.0
            if proposals and scenario.selfplay.propose:
                extra = proposals * valid_rate * max(0.0, scenario.selfplay.solutions - solutions / proposals)
            tokens += (solutions + extra) * mean
            trained += solutions * mean
            prompts += tasks * prompt * share_of_prompt
            rows += tasks * prompt + solutions * (mean - 1)
            context += solutions * mean * (prompt + mean / 2)
            weight += solutions * mean
            # After the longest proposal the longest of its own solutions; without proposals, the longest of all.
            chain += _longest_of(groups, scenario.selfplay.solutions if proposals else all_solutions)
        longest = max(longest, chain)
    return _Work(tokens, trained, prompts, rows, longest, context / max(1.0, weight))


def _mean_response(groups: tuple[Group, ...]) -> float:
    lengths = [length for group in groups for length in group.responses]
    return sum(lengths) / len(lengths)


def _mean_prompt(groups: tuple[Group, ...]) -> float:
    return sum(group.prompt for group in groups) / len(groups)


def _longest_of(groups: tuple[Group, ...], count: int) -> float:
    """About the longest of `count` responses: the quantile 1 - 1 / (count + 1)."""
    lengths = sorted(length for group in groups for length in group.responses)
    return float(lengths[min(len(lengths) - 1, int(len(lengths) * count / (count + 1)))])
