"""Settings of the run itself: its name and bounds, its actors, their supervision, and Ray."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from actors.settings import ConcurrencySettings
from executor.settings_table import SettingsTable


class RunBasics(SettingsTable):
    """`[run]`, the settings that every kind of run has."""

    name: str = Field(default="azr", pattern=r"^\.*[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=200)
    """Name of the run; its folder is `<run.dir>/<run.name>`.
    Letters, digits, dots, underscores and hyphens, and not dots alone."""
    dir: str = Field(default="runs", min_length=1)
    """Folder that holds the run folders.
    A relative path starts at the working directory."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of every random draw of the run.
    It seeds the initial state of learner and engines. In self-play it also seeds each sampled token in serial mode
    and with `engine.seeded`; otherwise two runs with one seed differ, because requests are batched by their time of
    arrival."""
    max_minutes: float | None = Field(default=None, gt=0)
    """Wall-clock minutes of training after which the run saves a checkpoint and ends.
    Starting up is not counted. Unset: only the number of steps ends the run."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level of log records in the run's `logs/`: `debug`, `info`, `warning` or `error`.
    It holds for this project's modules; other libraries log warnings and errors."""


class RunSettings(RunBasics):
    """`[run]`: the run's name, folder, mode and bounds."""

    mode: Literal["async", "serial"] = "async"
    """How the run is executed: `async` or `serial`.
    `async` starts learner, rollout actors and task buffer as processes under Ray. `serial` runs the same code in one
    process and one thread, without Ray: slower, repeatable by seed, and easier to debug."""
    verify_weights: bool = False
    """Compare the weights of every engine with the learner's at the end, bit by bit.
    A difference makes the exit code 1. Costs one pass over all weights. `azr verify` does it while a run goes on."""
    record_trajectories: bool = True
    """Write every trained batch as JSON lines to `trajectories/step_<N>.jsonl` in the run folder.
    Each line has prompt and response as text and as token ids. The files grow with every token that is trained;
    false saves the disk space."""


class ActorsSettings(SettingsTable):
    """`[actors]`: the number of rollout actors and their load."""

    num_actors: int = Field(default=1, ge=1)
    """Number of rollout actors; each has its own engine and sandboxes.
    Too few: the learner waits (`wait_for_batch_share`). Too many: actors wait for grants (`wait_for_policy_share`).
    `azr scale` changes the number while a run goes on."""
    concurrency: int = Field(default=256, ge=1, le=16384)
    """Maximum number of slots (rollouts) that one actor holds at a time.
    Too low: the engine idles. Too high: requests wait inside the engine and trajectories age; with `actors.adapt`
    the actor lowers its own limit while the key/value cache is full."""
    start_timeout_s: float = Field(default=600.0, gt=0)
    """Seconds that the learner waits for the first actors before it gives up.
    Loading the model and seeding (`selfplay.seed_tasks_target`) must fit into it."""
    adapt: ConcurrencySettings = ConcurrencySettings()


class SupervisionSettings(SettingsTable):
    """`[supervision]`: how often a process of a distributed run is restarted, and how long a standstill may last."""

    max_actor_restarts: int = Field(default=3, ge=0)
    """Number of failures of one rollout actor within `supervision.restart_window_s` that are answered by a restart.
    One more failure stops the run with the actor's last error. 0: the first failure stops the run."""
    max_learner_restarts: int = Field(default=3, ge=0)
    """Number of failures of the learner within `supervision.restart_window_s` that are answered by a restart.
    All ranks restart from the last checkpoint while the actors live on. One more failure stops the run."""
    max_buffer_restarts: int = Field(default=10, ge=0)
    """Number of failures of the task buffer within `supervision.restart_window_s` that are answered by a restart.
    It restarts on its file. One more failure stops the run."""
    restart_window_s: float = Field(default=3600.0, gt=0)
    """Seconds after which a failure no longer counts.
    It holds for rollout actors, learner and task buffer alike."""
    watchdog_s: float = Field(default=900.0, gt=0)
    """Seconds without progress after which the run reports which part waits for which.
    A part that does not answer at all for this long is killed and restarted. Too short: a slow but healthy step is
    reported, and a part that is only busy is restarted. Too long: a hang goes unnoticed."""


class RaySettings(SettingsTable):
    """`[ray]`: the Ray cluster that a distributed run uses."""

    address: str | None = None
    """Address of a running Ray cluster, such as `10.0.0.1:6379`.
    Unset: the run starts a Ray of its own on this machine and ends it with the run."""
