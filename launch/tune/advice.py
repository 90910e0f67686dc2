"""The reasons in words: which side is the limit, what to change, and when asynchrony does not pay.

The side is known by who waits, as in docs/staleness.md: shares of the learner's time without a batch, and of the
actors' time without anything granted.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from launch.tune.calibration import ASSUMED, Calibration
from launch.tune.closed_form import ClosedForm
from launch.tune.scenario import Scenario
from launch.tune.search import Candidate, Gain, Search, describe

WAITS = 0.05
"""Share of waiting that counts as waiting."""
PAYS = 0.05
"""Gain of the best asynchronous candidate over the best synchronous one from which asynchrony pays."""
DIFFERS = 0.05
"""Relative difference of closed form and simulation that is explained."""


class Limit(StrEnum):
    """The side that decides how fast a run is."""

    TRAINER = "trainer-bound"
    ROLLOUT = "rollout-bound"
    UNEVEN = "both sides wait"
    BALANCED = "balanced"


@dataclass(frozen=True)
class Waits:
    """Shares of time, 0 to 1."""

    learner: float
    """Of the learner's time, waiting for its batch."""
    actors: float
    """Of the actors' time, with nothing granted."""
    max_staleness: int

    @property
    def limit(self) -> Limit:
        """The side that the other one waits for."""
        learner, actors = self.learner > WAITS, self.actors > WAITS
        if learner and actors:
            return Limit.UNEVEN
        if learner:
            return Limit.ROLLOUT
        return Limit.TRAINER if actors else Limit.BALANCED


def waits_of(candidate: Candidate) -> Waits:
    """What a candidate's simulations say."""
    return Waits(candidate.mean("learner_waits"), candidate.mean("actors_wait"), candidate.scenario.max_staleness)


def explain_limit(waits: Waits) -> str:
    """One sentence about the limit, and one about what helps."""
    shares = f"the learner waits {waits.learner:.0%} of its time for a batch, actors wait {waits.actors:.0%} of theirs"
    match waits.limit:
        case Limit.TRAINER:
            hint = "more training devices help, or fewer actors; a larger max_staleness only makes the data older"
        case Limit.ROLLOUT:
            hint = "more actors help, faster engines or shorter responses; a larger max_staleness does not"
        case Limit.UNEVEN if waits.max_staleness == 0:
            hint = "this run is synchronous, so the sides take turns; max_staleness = 1 lets them work at once"
        case Limit.UNEVEN:
            hint = "batch times are uneven: a larger max_staleness evens them out, or on_stale = drop for stragglers"
        case Limit.BALANCED:
            hint = "neither side waits for the other: only faster devices, or more of both kinds, help"
    return f"{waits.limit}: {shares}. {hint[0].upper()}{hint[1:]}."


def explain_choice(search: Search, gain: Gain | None) -> str:
    """Why the chosen candidate, in words. `gain`: of it over the recipe; None where they are the same."""
    present, chosen = search.present, search.chosen
    if gain is None or not chosen.changes:
        return f"{waits_of(present).limit}: keep the recipe; no candidate is more than 2% faster with data as young."
    what = _moves(present, chosen)
    sure = f"{gain.mean:+.0%} (+-{gain.deviation:.0%})"
    ages = f"mean age {present.age:.2f} -> {chosen.age:.2f}"
    limit = waits_of(present).limit
    if gain.mean < gain.deviation and chosen.age < present.age:
        return f"{limit}: {what}: no slower within the uncertainty ({sure}), and younger data ({ages})."
    return f"{limit}: {what}: {sure}, {ages}."


def _moves(present: Candidate, chosen: Candidate) -> str:
    """The changes in words where they have any, as settings otherwise."""
    before, after = present.scenario, chosen.scenario
    training, rollout = (
        after.training_devices - before.training_devices,
        after.rollout_devices - before.rollout_devices,
    )
    if before.on_gpu and training and rollout and training * rollout < 0:
        number = min(abs(training), abs(rollout))
        way = "from rollout to training" if training > 0 else "from training to rollout"
        return f"move {number} device{'s' if number > 1 else ''} {way} ({describe(chosen.changes)})"
    return f"set {describe(chosen.changes)}"


def best_sides(search: Search) -> tuple[Candidate, Candidate] | None:
    """The fastest synchronous candidate and the fastest asynchronous one; None where one kind was not simulated."""
    together = [one for one in search.candidates if one.scenario.max_staleness == 0]
    apart = [one for one in search.candidates if one.scenario.max_staleness > 0]
    if not together or not apart:
        return None
    synchronous, asynchronous = (max(found, key=lambda one: one.throughput) for found in (together, apart))
    return synchronous, asynchronous


def explain_asynchrony(search: Search, gain: Gain | None) -> str:
    """Whether asynchrony pays. `gain`: of the best asynchronous candidate over the best synchronous one
    (`best_sides`)."""
    sides = best_sides(search)
    if sides is None or gain is None:
        return ""
    synchronous, asynchronous = sides
    sure = f"{gain.mean:+.0%} (+-{gain.deviation:.0%})"
    compared = (
        f"the best asynchronous candidate ({describe(asynchronous.changes)}) is {sure} beside the best synchronous one "
        f"({describe(synchronous.changes)}), with data {asynchronous.age:.1f} versions old"
    )
    if gain.mean < PAYS and not search.chosen.scenario.max_staleness:
        return f"Asynchrony does not pay here: {compared}."
    if gain.mean < PAYS:
        return f"Asynchrony pays little here: {compared}. Where the age of data matters more, take the latter."
    if gain.mean < 2 * gain.deviation:
        return f"Asynchrony may pay: {compared}. Calibrate on more steps, or try both."
    best: dict[int, float] = {}
    for one in search.candidates:
        bound = one.scenario.max_staleness
        best[bound] = max(best.get(bound, 0.0), one.throughput)
    bounds = ", ".join(f"{best[bound] / synchronous.throughput - 1:+.0%} at {bound}" for bound in sorted(best) if bound)
    return f"Asynchrony pays: {compared}. By max_staleness: {bounds}."


def explain_assumptions(scenario: Scenario, calibration: Calibration) -> str:
    """The figures that the prediction of `scenario` rests on and that no run of the calibration tells, and the run that
    would tell; empty where there are none."""
    several = "learner.max_staleness=0 actors.num_actors=2"
    needed = {
        "weights.actor_s": (scenario.num_actors > 1, several),
        "sharing.engine_beside_engine": (scenario.num_actors > 1 and not scenario.on_gpu, several),
        "sharing.engine_beside_learner": (
            scenario.max_staleness > 0 and not scenario.on_gpu,
            "learner.max_staleness=1",
        ),
        "learner.parallel_share": (
            scenario.learner_threads * scenario.model_ranks != calibration.learner.threads,
            f"learner.max_staleness=0 learner.threads={scenario.learner_threads}",
        ),
    }
    figures = calibration.figures()
    found = {name: run for name, (holds, run) in needed.items() if holds and figures[name].source == ASSUMED}
    if not found:
        return ""
    runs = " and one with ".join(dict.fromkeys(found.values()))
    return f"Assumed, since no run of the calibration tells: {', '.join(found)}. Add a run with {runs}."


def explain_difference(closed: ClosedForm, simulated_step_s: float, even: float | None, unshared: float | None) -> str:
    """Why the closed form differs from the simulation. `even`: simulated seconds a step if all responses of a cell had
    its mean length; `unshared`: if processes cost each other nothing but their share of the cores. None: not asked."""
    difference = simulated_step_s / closed.step_s - 1
    text = f"closed form {closed.step_s:.3g} s a step, simulation {simulated_step_s:.3g} s ({difference:+.0%})"
    if abs(difference) < DIFFERS:
        return text + ": they agree."
    causes = []
    if even is not None and abs(change := 1 - even / simulated_step_s) > DIFFERS / 2:
        causes.append(f"the spread of lengths is {change:+.0%} of the simulated step (stragglers, emptying engines)")
    if unshared is not None and abs(change := 1 - unshared / simulated_step_s) > DIFFERS / 2:
        causes.append(f"what processes on shared cores cost each other is {change:+.0%}")
    causes.append(
        "the rest is what the closed form leaves out: engines that fill and empty, and waits for publications"
    )
    return text + ": " + "; ".join(causes) + "."
