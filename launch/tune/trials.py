"""The trials of the validation: configurations that the calibration sees, and others that are predicted and then really
run, with a real model on this machine or as rehearsals.

The real ones have engines on one core and the learner on the other, unless they are about that. They have small
batches, a buffer with tasks from the start and a learning rate near 0: the policy stands still, so lengths are the
same in all trials and differ only by chance. Nothing else is simplified; every step trains, and its weights are
broadcast.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from launch.tune.calibration import CalibrationError
from launch.tune.records import RunRecord
from launch.tune.trace import Purpose, trace_of

FOLDER = Path(__file__).parent / "traces"
"""The recorded traces that ship."""
SEEDS = FOLDER / "seeds.jsonl"
"""Tasks that the buffer of the real trials starts with."""
RECIPE = "smollm2-cpu"
MINUTES = 4
"""Minutes of training after which a trial ends by itself; its trace then has fewer steps."""
LIMIT_S = 345
"""Seconds after which a trial that does not end is stopped."""
STEPS = 4
"""Least number of steps of a trace."""
PROCESSES = 4
"""Processes that the actors of a rehearsal share."""


def _batch(scale: float, solutions: float = 2.0) -> tuple[str, str]:
    """Quotas of a batch: 8, 8 and 4 proposals at scale 1, and `solutions` for each."""
    propose = {"deduction": 8 * scale, "abduction": 8 * scale, "induction": 4 * scale}
    return tuple(  # type: ignore[return-value]
        f"learner.batch.{role}={{" + ",".join(f"{kind}={round(factor * n)}" for kind, n in propose.items()) + "}"
        for role, factor in (("propose", 1.0), ("solve", solutions))
    )


_REAL = (
    f"selfplay.seed_tasks={SEEDS}",
    "selfplay.heldout_every=0",
    "learner.optimizer.lr=1e-9",
    "learner.checkpoint_every=0",
    "learner.checkpoint_minutes=0",
    "run.verify_weights=false",
    f"run.max_minutes={MINUTES}",
    "learner.threads=1",
    "actors.cpus=[0]",
    "learner.cpus=[1]",
    "learner.steps=6",
    *_batch(1),
)
_REHEARSAL = (
    "run.mode=rehearse",
    "run.verify_weights=false",
    "run.record_trajectories=false",
    "learner.checkpoint_every=0",
    "learner.checkpoint_minutes=0",
    f"run.max_minutes={MINUTES}",
    "learner.steps=12",
    "actors.concurrency=24",
    "engine.max_model_len=1152",
    "selfplay.max_propose_tokens=600",
    "selfplay.max_solve_tokens=300",
    "rehearsal.time_scale=2",
    "rehearsal.tokens_per_s=400",
    "rehearsal.request_tokens_per_s=40",
    "rehearsal.learner_step_s=4",
)


@dataclass(frozen=True)
class Trial:
    """One configuration to run."""

    name: str
    purpose: Purpose
    overrides: tuple[str, ...]
    """Settings on top of `RECIPE`."""

    def measure(self, folder: Path, runs: Path) -> None:
        """Really run it, with its run folder in `runs`, and write its trace to `folder`. A trial that has a trace or a
        run folder is not run again. Raises CalibrationError where the run failed."""
        target = folder / f"{self.name}.trace.json"
        if target.exists():
            return
        run = runs / self.name
        if not (run / "metrics.jsonl").exists():
            command = [sys.executable, "-m", "launch.cli", "train", RECIPE, f"run.dir={runs}", f"run.name={self.name}"]
            with subprocess.Popen([*command, *self.overrides]) as process:
                try:
                    process.wait(LIMIT_S)
                except subprocess.TimeoutExpired:
                    process.terminate()  # the run saves, and ends its own processes
        record = RunRecord(run)
        if len(record.rows) < STEPS:
            raise CalibrationError(
                f"the trial {self.name} has {len(record.rows)} steps, a trace needs {STEPS}: look at {run / 'logs'}, "
                "remove the folder, and measure it again on a machine that does nothing else"
            )
        trace_of(record, self.name, self.purpose).write(target)


def _real(name: str, *overrides: str, purpose: Purpose = "held-out") -> Trial:
    return Trial(name, purpose, (*_REAL, *overrides))


def _rehearsed(actors: int, staleness: int, *overrides: str, purpose: Purpose = "held-out") -> Trial:
    share = actors / 16
    quotas = _batch(share * 3)
    own = (
        f"actors.num_actors={actors}",
        f"rehearsal.actors_per_process={actors // PROCESSES}",
        f"learner.max_staleness={staleness}",
    )
    return Trial(f"rehearsal-{actors}-s{staleness}", purpose, (*_REHEARSAL, *own, *quotas, *overrides))


_SHARED = ("actors.cpus=[0,1]", "learner.cpus=[0,1]")
"""All processes share both cores."""
_ONE_CORE = ("actors.cpus=[0]", "learner.cpus=[0]")

TRIALS = (
    _real("sync", "learner.max_staleness=0", purpose="calibration"),
    _real("sync-half-batch", "learner.max_staleness=0", "learner.steps=9", *_batch(0.5), purpose="calibration"),
    _real("async", "learner.max_staleness=1", purpose="calibration"),
    _real("sync-2-threads", "learner.max_staleness=0", "learner.threads=2", *_SHARED, purpose="calibration"),
    _real("sync-2-actors", "learner.max_staleness=0", "actors.num_actors=2", purpose="calibration"),
    _real("staleness-2", "learner.max_staleness=2", *_batch(0.5)),
    _real("half-batch", "learner.max_staleness=1", "learner.steps=10", *_batch(0.5)),
    _real("shared-cores", "learner.max_staleness=1", *_SHARED, *_batch(0.5)),
    _real("2-actors-on-a-core", "learner.max_staleness=1", "actors.num_actors=2", *_batch(0.5)),
    _real("4-sequences", "learner.max_staleness=1", "engine.max_num_seqs=4", *_batch(0.5)),
    _real("shared-cores-2-threads", "learner.max_staleness=1", "learner.threads=2", *_SHARED, *_batch(0.5)),
    _real("many-solutions", "learner.max_staleness=1", "selfplay.solutions=8", *_batch(0.5, 6)),
    _real("one-core", "learner.max_staleness=1", *_ONE_CORE, *_batch(0.5)),
    _real("staleness-4", "learner.max_staleness=4", "learner.steps=10"),
    _real("2-actors-2-threads", "learner.max_staleness=2", "actors.num_actors=2", "learner.threads=2", *_SHARED),
    _real("double-batch", "learner.max_staleness=1", "learner.steps=5", *_batch(2)),
    _real("one-proposal-a-prompt", "learner.max_staleness=0", "selfplay.proposals_per_prompt=1"),
    _real("drop", "learner.max_staleness=1", "learner.on_stale=drop", "actors.concurrency=24"),
    _rehearsed(16, 1, purpose="calibration"),
    _rehearsed(64, 1, purpose="calibration"),
    _rehearsed(16, 0),
    _rehearsed(16, 4),
    _rehearsed(32, 1),
    _rehearsed(32, 2),
    _rehearsed(64, 0),
    _rehearsed(64, 2),
    _rehearsed(128, 1),
    _rehearsed(256, 1),
)
"""All trials, those for the calibration first."""
