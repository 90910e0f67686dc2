"""The hooks of the training loop: record each step, obey a request to stop, end a run whose time or tokens are up."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from actors.metrics import describe_batch
from launch.config import Config
from launch.run.recorder import Recorder
from launch.run.status import Progress
from launch.run.totals import NOTHING
from launch.settings import RunBasics
from learner.loop import Hooks
from learner.phase import Phase


def make_interrupted(run: RunBasics, progress: Progress, recorder: Recorder | None) -> Callable[[], bool]:
    """A function that says whether to stop. It asks for a stop when `run.max_minutes` are over, from now or, after a
    restart of the learner, by `progress.ends_at`; or when the run has trained `run.max_tokens`, which `recorder`
    counts."""
    progress.limit(run.max_minutes)
    deadline = None if progress.ends_at is None else time.monotonic() + progress.ends_at - time.time()
    began_late = deadline is not None and time.monotonic() > deadline

    # A run, or a learner, that was killed at the end waits for its actors once more: they measure the last version.
    def is_over() -> bool:
        if deadline is None or (began_late and progress.phase is Phase.WAITING_FOR_ACTORS):
            return False
        return time.monotonic() > deadline

    def is_spent() -> bool:
        if run.max_tokens is None or recorder is None or progress.phase is Phase.WAITING_FOR_ACTORS:
            return False
        return recorder.tokens_trained >= run.max_tokens

    def interrupted() -> bool:
        if is_over() and not progress.stop:
            progress.ask_to_stop(f"run.max_minutes = {run.max_minutes:g} is over")
        if is_spent() and not progress.stop:
            progress.ask_to_stop(f"run.max_tokens = {run.max_tokens} is reached")
        return bool(progress.stop)

    return interrupted


def make_hooks(
    config: Config,
    recorder: Recorder | None,
    save: Callable[[int], None],
    progress: Progress,
    more: Callable[[], dict[str, float]] = dict,
    reports: Callable[[], Mapping[str, Any]] = lambda: NOTHING,
    drain: Callable[[], object] = lambda: None,
    unsaved: Callable[[], bool] = lambda: False,
) -> Hooks:
    """Hooks that record steps, stop the run where `progress.stop` says so, and end it when its time or tokens are up.

    `more`: further metrics of a step, such as the task buffer's. `reports`: the counters of everyone, which the run's
    totals keep.
    """

    def on_step(metrics: dict[str, float], batch: Any) -> None:
        assert recorder is not None
        metrics.update(recorder.totals.of_step(metrics) | more())
        recorder.step(metrics, batch, reports())
        progress.last = recorder.last

    def save_with_totals(version: int) -> None:
        save(version)
        if recorder is not None:  # what was generated since the row, the checkpoint may have in its queue
            recorder.totals.write(recorder.totals.time_s, reports())

    return Hooks(
        interrupted=make_interrupted(config.run, progress, recorder),
        on_step=on_step,
        save=save_with_totals,
        describe=describe_batch,
        on_phase=progress.enter,
        drain=drain,
        unsaved=unsaved,
        gives_up_step=progress.gives_up_step,
    )
