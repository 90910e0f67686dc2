"""The metrics of self-play in a batch: rates, rewards and diversity, as one flat map.

Names are `<what>/<kind>` or `<what>/<kind>/<role>`. A number whose cell, or whose occasion, is empty is absent, never
0. The glossary is in docs/selfplay.md. Ages and advantages, which any kind of training has, are in
`learner/metrics/batch.py`.
"""

from __future__ import annotations

import bisect
import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from actors.kinds.registry import kinds
from actors.parsing import FormatError
from executor.tasks import VerdictReason
from learner.trajectory import Cell, Role, Status, Trajectory

SOLVE_RATE_BINS = ("0", "0_25", "25_50", "50_75", "75_100", "100")
"""Solve rates of 0; in (0, .25], (.25, .5], (.5, .75], (.75, 1); and of 1, in percent."""
_FORMAT_ERRORS = frozenset({*FormatError, VerdictReason.UNPARSEABLE})
"""Outcomes of replies that could not be read."""
_FACTS = {
    "duplicate": "duplicates",
    "ignores_input": "ignores_input",
    "distance": "distance",
    "nodes": "nodes",
    "complexity": "complexity",
    "halstead": "halstead",
    "answer_diversity": "output_diversity",
    "composite": "composite",
    "constructs": "constructs",
}
"""Reward part of a proposal whose program was inspected -> metric."""


def text_number(text: str) -> float:
    """A number that tells texts apart and that a float holds exactly: a reward part is no text."""
    return float(int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:6], "big"))


def describe_batch(batch: Sequence[Trajectory]) -> dict[str, float]:
    """Return the metrics of a batch of self-play: every metric of `docs/selfplay.md` but advantages and ages."""
    by_cell: dict[Cell, list[Trajectory]] = defaultdict(list)
    for trajectory in batch:
        by_cell[trajectory.cell].append(trajectory)
    metrics: dict[str, float] = {}
    for cell, members in sorted(by_cell.items()):
        metrics |= _describe_cell(cell, members)
        metrics |= (_describe_proposals if cell.role is Role.PROPOSE else _describe_solutions)(cell.kind, members)
    return metrics | {"batch_size": len(batch), "reward_mean": _mean([t.reward for t in batch])}


def _describe_cell(cell: Cell, members: Sequence[Trajectory]) -> dict[str, float]:
    """The metrics that both roles have."""
    outcomes = Counter(t.outcome for t in members if t.outcome)
    terms = sorted({key for t in members for key in t.reward_parts if key.startswith("reward/")})
    metrics = {
        f"trajectories/{cell.name}": float(len(members)),
        f"reward/{cell.name}": _mean([t.reward for t in members]),
        f"response_tokens/{cell.name}": _mean([len(t.response_ids) for t in members]),
        f"prompt_tokens/{cell.name}": _mean([len(t.prompt_ids) for t in members]),
        f"truncated/{cell.name}": _mean([t.status is Status.TRUNCATED for t in members]),
    }
    if outcomes:
        format_errors = sum(count for outcome, count in outcomes.items() if outcome in _FORMAT_ERRORS)
        metrics[f"format_errors/{cell.name}"] = format_errors / len(members)
    metrics |= {f"outcome/{cell.name}/{name}": count / len(members) for name, count in sorted(outcomes.items())}
    for term in terms:  # a term that a trajectory lacks paid it nothing: so the terms' means add up to the reward's
        paid = [t.reward_parts.get(term, 0.0) for t in members]
        metrics[f"reward/{cell.name}/{term.removeprefix('reward/')}"] = _mean(paid)
    return metrics


def _describe_proposals(kind: str, members: Sequence[Trajectory]) -> dict[str, float]:
    metrics = {f"valid_rate/{kind}": _mean([t.reward_parts.get("valid", 0.0) for t in members])}
    for part, name in _FACTS.items():
        known = [t.reward_parts[part] for t in members if part in t.reward_parts]
        if known:
            metrics[f"{name}/{kind}"] = _mean(known)
    programs = [t.reward_parts["program"] for t in members if "program" in t.reward_parts]
    is_given = any(one.name == kind and not one.writes_program for one in kinds())
    if programs and not is_given:  # else several proposals have one program
        metrics[f"distinct_programs/{kind}"] = len(set(programs)) / len(programs)
    for part in sorted({part for t in members for part in t.reward_parts if part.startswith("fact/")}):
        metrics[f"{part}/{kind}"] = _mean([t.reward_parts[part] for t in members if part in t.reward_parts])
    rates = [t.reward_parts["solve_rate"] for t in members if "solve_rate" in t.reward_parts]
    if rates:
        counts = Counter(solve_rate_bin(rate) for rate in rates)
        metrics |= {f"learnability/{kind}/{name}": counts[name] / len(rates) for name in SOLVE_RATE_BINS}
    return metrics


def _describe_solutions(kind: str, members: Sequence[Trajectory]) -> dict[str, float]:
    solved: dict[bool, list[float]] = {False: [], True: []}
    answers: dict[bytes, list[float]] = defaultdict(list)
    for t in members:
        solved[bool(t.reward_parts.get("replayed"))].append(t.reward_parts.get("correct", 0.0))
        if "answer" in t.reward_parts:
            answers[t.prompt_ids.tobytes()].append(t.reward_parts["answer"])
    metrics = {
        f"solve_rate/{kind}": _mean(solved[False] + solved[True]),
        f"replayed/{kind}": len(solved[True]) / len(members),
    }
    if solved[False]:
        metrics[f"solve_rate_fresh/{kind}"] = _mean(solved[False])
    if solved[True]:
        metrics[f"solve_rate_replayed/{kind}"] = _mean(solved[True])
    # Over tasks that were tried more than once: from 0 (all answers are the same) to 1 (all differ).
    variety = [(len(set(given)) - 1) / (len(given) - 1) for given in answers.values() if len(given) > 1]
    if variety:
        metrics[f"answer_diversity/{kind}"] = _mean(variety)
    if answers:
        every = [answer for given in answers.values() for answer in given]
        metrics[f"distinct_answers/{kind}"] = len(set(every)) / len(every)
    copied = [t.reward_parts["copied"] for t in members if "copied" in t.reward_parts]
    if copied:
        metrics[f"copies/{kind}"] = _mean(copied)
    estimates = [t.reward_parts["estimate"] for t in members if "estimate" in t.reward_parts]
    if estimates:
        metrics[f"estimates/{kind}"] = _mean(estimates)
    return metrics


def solve_rate_bin(rate: float) -> str:
    """The member of `SOLVE_RATE_BINS` that a solve rate in [0, 1] belongs to."""
    if rate >= 1.0:
        return SOLVE_RATE_BINS[-1]
    return SOLVE_RATE_BINS[bisect.bisect_left((0.0, 0.25, 0.5, 0.75), rate)]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
