"""Builds the staleness gate from a configuration."""

from __future__ import annotations

from launch.config import Config
from learner.staleness import Gate


def make_gate(config: Config, life: int = 0) -> Gate:
    """The gate of a run that starts. `life`: how often the learner was restarted while the run's actors lived on."""
    return Gate(
        config.learner.batch,
        config.learner.max_staleness,
        config.selfplay.solutions,
        config.selfplay.proposals_per_prompt,
        on_stale=config.learner.on_stale,
        life=life,
    )
