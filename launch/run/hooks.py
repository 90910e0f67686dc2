"""The hooks of the training loop: record each step, obey a request to stop, end the run when its time is up."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from actors.metrics import describe_batch
from launch.config import Config
from launch.run.recorder import Recorder
from launch.run.status import Progress
from launch.settings import RunBasics
from learner.loop import Hooks


def make_interrupted(run: RunBasics, progress: Progress) -> Callable[[], bool]:
    """A function that says whether to stop. It sets `progress.stop` when `run.max_minutes` from now are over."""
    deadline = time.monotonic() + 60 * run.max_minutes if run.max_minutes else None

    def interrupted() -> bool:
        if deadline is not None and time.monotonic() > deadline and not progress.stop:
            progress.stop = f"run.max_minutes = {run.max_minutes:g} is over"
        return bool(progress.stop)

    return interrupted


def make_hooks(
    config: Config,
    recorder: Recorder | None,
    save: Callable[[int], None],
    progress: Progress,
    more: Callable[[], dict[str, float]] = dict,
    counted: float = 0.0,
    drain: Callable[[], object] = lambda: None,
) -> Hooks:
    """Hooks that record steps, stop the run where `progress.stop` says so, and end it when its time is up.

    `more`: further metrics of a step, such as the task buffer's. `counted`: tokens generated up to the newest
    recorded step, where actors go on counting from there.
    """
    totals = {"tokens_generated": counted}
    mark = time.monotonic()

    def on_step(metrics: dict[str, float], batch: Any) -> None:
        nonlocal mark
        assert recorder is not None
        # Actors count from their start; a step's share is the difference (a restarted actor counts from 0 again).
        for name in ("tokens_generated", "wait_for_policy_s"):
            total = metrics.get(name, 0.0)
            metrics[f"{name}_step" if name == "tokens_generated" else name] = max(0.0, total - totals.get(name, 0.0))
            totals[name] = total
        now = time.monotonic()
        metrics["generate_tokens_per_s"] = metrics["tokens_generated_step"] / (now - mark)
        mark = now
        metrics.update(more())
        recorder.step(metrics, batch)
        progress.last = recorder.last

    return Hooks(
        interrupted=make_interrupted(config.run, progress),
        on_step=on_step,
        save=save,
        describe=describe_batch,
        on_phase=progress.enter,
        drain=drain,
    )
