"""The hooks of the training loop: record each step, obey a request to stop, end the run when its time is up."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from launch.config import Config, RunBasics
from launch.run.recorder import Recorder
from learner.loop import Hooks


def make_interrupted(run: RunBasics, status: dict[str, Any]) -> Callable[[], bool]:
    """Whether to stop: `status["stop"]` says why, and is set when `run.max_minutes` from now are over."""
    deadline = time.monotonic() + 60 * run.max_minutes if run.max_minutes else None

    def interrupted() -> bool:
        if deadline is not None and time.monotonic() > deadline and not status.get("stop"):
            status["stop"] = f"run.max_minutes = {run.max_minutes:g} is over"
        return bool(status.get("stop"))

    return interrupted


def make_hooks(
    config: Config,
    recorder: Recorder | None,
    save: Callable[[int], None],
    status: dict[str, Any],
    more: Callable[[], dict[str, float]] = dict,
    counted: float = 0.0,
    drain: Callable[[], object] = lambda: None,
) -> Hooks:
    """Hooks that record steps, obey `status["stop"]`, and end the run when its time is up.

    `more`: further numbers of a step, such as the task buffer's. `counted`: tokens generated up to the newest
    recorded step, where actors go on counting from there.
    """
    totals = {"tokens_generated": counted}
    mark = time.monotonic()

    def on_step(numbers: dict[str, float], batch: Any) -> None:
        nonlocal mark
        assert recorder is not None
        # Actors count from their start; a step's share is the difference (a restarted actor counts from 0 again).
        for name in ("tokens_generated", "wait_for_policy_s"):
            total = numbers.get(name, 0.0)
            numbers[f"{name}_step" if name == "tokens_generated" else name] = max(0.0, total - totals.get(name, 0.0))
            totals[name] = total
        now = time.monotonic()
        numbers["generate_tokens_per_s"] = numbers["tokens_generated_step"] / (now - mark)
        mark = now
        numbers.update(more())
        recorder.step(numbers, batch)
        status["last"] = recorder.last

    def on_wait(what: str) -> None:
        status["phase"], status["phase_since"] = what, time.monotonic()

    return Hooks(make_interrupted(config.run, status), on_step, save, on_wait, drain)
