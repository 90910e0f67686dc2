"""The settings that a resume changes: their former and new values, and when a change takes effect."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.config import Config, SftConfig
from launch.recipe import settings_in
from launch.run.gate import make_gate
from learner.checkpoint import unloadable

NOT_SETTINGS = ("run.name", "run.dir")
"""The folder that is resumed decides these."""


@dataclass
class Changes:
    """Settings that differ between two attempts."""

    values: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """Dotted key -> former and new value; None for an unset one."""
    effects: dict[str, str] = field(default_factory=dict)
    """Dotted key -> when its change takes effect, for those that do not at the next step."""

    def __bool__(self) -> bool:
        return bool(self.values)

    def sentences(self) -> list[str]:
        """A line for each changed setting."""
        return [
            f"changed: {key}: {_shown(old)} -> {_shown(new)}"
            + (f" ({self.effects[key]})" if key in self.effects else "")
            for key, (old, new) in self.values.items()
        ]


def changes(former: Config | SftConfig, present: Config | SftConfig, checkpoint: Path | None) -> Changes:
    """Compare two configurations. `checkpoint`: the one that the run goes on from."""
    before, after = (dict(settings_in(one.model_dump(mode="json"))) for one in (former, present))
    found = Changes(
        {
            key: (before.get(key), after.get(key))
            for key in before | after
            if before.get(key) != after.get(key) and key not in NOT_SETTINGS
        }
    )
    if checkpoint is not None and isinstance(present, Config):
        found.effects = _effects(present, checkpoint, set(found.values))
    return found


def _effects(config: Config, checkpoint: Path, changed: set[str]) -> dict[str, str]:
    effects = {}
    gate = make_gate(config)
    try:
        num_stale = gate.load_state_dict(json.loads((checkpoint / "gate.json").read_text()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise unloadable(checkpoint, error) from error
    for key in changed:
        if key.startswith("learner.batch.") or key == "learner.batch":
            effects[key] = f"from step {gate.first_unopened + 1} on: the batches before it are granted already"
        elif key == "selfplay.seed_tasks":
            effects[key] = "no effect: a file's tasks are taken before the first step only"
        elif key == "selfplay.seed_tasks_target":
            effects[key] = "at once: where the buffer has fewer triplets, the initial model proposes the others first"
    if num_stale and "learner.max_staleness" in changed:
        effects["learner.max_staleness"] = (
            f"at once: {num_stale} queued trajectories are too old for it and are dropped, as `stale` in the ledger"
        )
    return effects


def _shown(value: Any) -> str:
    return "unset" if value is None else json.dumps(value, ensure_ascii=False, allow_nan=False)
