"""Advice for a run that goes on, or has ended, from its counters: `metrics.jsonl` alone.

From the last rows: who waits, the learner's seconds a step (training, publishing, recording), and the seconds in which
the actors would sample a batch if they always had something granted. From these two follow the seconds a step at every
`max_staleness`, as in docs/staleness.md; no simulation is needed for that, and none is as good as the run itself.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launch.config import Config
from launch.tune.advice import Limit, Waits, explain_limit
from launch.tune.records import RunRecord

ROWS = 10
"""Newest rows that are looked at."""


@dataclass(frozen=True)
class Live:
    """What the last rows of a run say."""

    waits: Waits
    learn_s: float
    """Seconds of a step that the learner works."""
    generate_s: float
    """Seconds in which the actors sample a batch while they have something to play."""
    step_s: float
    age_mean: float
    rows: int
    actors: float
    cores_s: float | None = None
    """Seconds of a step in which the cores have the work of both sides, where these share them; 0 where they have cores
    of their own; None where the settings do not say (`actors.cpus`, `learner.cpus`)."""

    def step_at(self, max_staleness: int) -> float:
        """Estimated seconds a step at another bound (docs/staleness.md)."""
        if max_staleness == 0:
            return self.learn_s + self.generate_s
        return max(self.learn_s, self.generate_s, self.cores_s or 0.0)

    @property
    def sentences(self) -> list[str]:
        """The advice."""
        found = [
            f"Last {self.rows} steps: {self.step_s:.3g} s a step, mean age {self.age_mean:.2f} at max_staleness = "
            f"{self.waits.max_staleness}. The learner works {self.learn_s:.3g} s of a step; the actors sample a batch "
            f"in {self.generate_s:.3g} s.",
            explain_limit(self.waits),
        ]
        together, apart = self.step_at(0), self.step_at(1)
        gain = together / apart - 1
        if self.waits.max_staleness == 0:
            verdict = "is worth one version of age" if gain > 0.1 else "is hardly worth one version of age"
            unknown = ", if engines and learner do not share cores" if self.cores_s is None else ""
            found.append(
                f"With max_staleness = 1 a step would take about {apart:.3g} s ({gain:+.0%} steps an hour){unknown}: "
                f"that {verdict}."
            )
        elif self.waits.max_staleness > 1 and self.waits.limit in (Limit.TRAINER, Limit.BALANCED):
            found.append(
                f"The learner never lacks a batch: max_staleness = {self.waits.max_staleness - 1} would be as fast, "
                "with younger data."
            )
        if self.waits.limit is Limit.TRAINER and self.actors > 1:
            needed = self.actors * (1 - self.waits.actors)
            if needed <= self.actors - 1:
                found.append(
                    f"{self.actors:.0f} actors do the work of {needed:.1f}: `azr scale RUN --actors "
                    f"{max(1, math.ceil(needed))}` frees devices, for instance for learner ranks."
                )
        if self.waits.limit is Limit.ROLLOUT:
            needed = self.actors * self.generate_s / self.learn_s
            found.append(f"As fast as the learner would be {needed:.1f} actors in place of {self.actors:.0f}.")
        return found


def look(run: RunRecord) -> Live:
    """The state of a run by its newest rows. Raises CalibrationError for one without steps (`RunRecord`)."""
    rows = run.steady[-ROWS:]
    before = run.rows[-len(rows) - 1]
    waited = rows[-1]["wait_for_policy_actor_s"] - before["wait_for_policy_actor_s"]
    connected = rows[-1]["connected_actor_s"] - before["connected_actor_s"]
    step_s = _mean(rows, "step_s")
    learn_s = statistics.fmean(row["step_s"] - row["wait_for_batch_s"] for row in rows)
    playing = max(1e-9, connected - waited)
    actors = max(1.0, round(connected / (step_s * len(rows))))
    generate_s = playing / actors / len(rows)
    return Live(
        waits=Waits(
            _mean(rows, "wait_for_batch_s") / step_s, waited / max(1e-9, connected), run.config.learner.max_staleness
        ),
        learn_s=learn_s,
        generate_s=generate_s,
        step_s=step_s,
        age_mean=run.age_mean(len(run.rows) - len(rows)),
        rows=len(rows),
        actors=actors,
        cores_s=_cores_s(run.config, learn_s, generate_s * actors),
    )


def _cores_s(config: Config, learn_s: float, generate_s: float) -> float | None:
    """See `Live.cores_s`. `generate_s`: seconds of all actors together."""
    engines, learner = config.actors.cpus, config.learner.cpus
    if not engines or not learner:
        return None
    if not set(engines) & set(learner):
        return 0.0
    threads = config.engine.threads * config.engine.tensor_parallel or len(engines)
    busy = learn_s * (config.learner.threads or len(learner)) + generate_s * threads
    return busy / len(set(engines) | set(learner))


def _mean(rows: Sequence[dict[str, Any]], name: str) -> float:
    return statistics.fmean(float(row[name]) for row in rows)
