"""Settings of the run itself: its name and bounds, its actors, their supervision, Ray, and rehearsals."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from actors.settings import ConcurrencySettings
from executor.settings_table import SettingsTable
from learner.trajectory import Role


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
    They begin when the models are loaded: what self-play does before its first step, seeding and a held-out
    measurement, counts. Each start of a run has them anew. Unset: time does not end the run."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Trained response tokens (`tokens_trained`) after which the run saves a checkpoint and ends.
    They are counted over all starts of the run, without steps that a restart undid. The step that reaches the number is
    the last one. Unset: their number does not end the run."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level of log records in the run's `logs/`: `debug`, `info`, `warning` or `error`.
    It holds for this project's modules; other libraries log warnings and errors."""


class RunSettings(RunBasics):
    """`[run]`: the run's name, folder, mode and bounds."""

    mode: Literal["async", "serial", "rehearse"] = "async"
    """How the run is executed: `async`, `serial` or `rehearse`.
    `async` starts learner, rollout actors and task buffer as processes under Ray. `serial` runs the same code in one
    process and one thread, without Ray: slower, repeatable by seed, and easier to debug. `rehearse` is `async` with
    engines and a learner that only take time (`[rehearsal]`): no model, no executor, all the rest is real."""
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
    the actor lowers its own limit while the key/value cache is full. At
    `learner.max_staleness = 1`, where the engines are the limit, a batch's slots over `actors.num_actors` are best."""
    cpus: tuple[int, ...] = ()
    """Numbers of the CPU cores that rollout actors may use on their nodes, such as `[0]`; empty: all.
    Each actor's engine and sandboxes stay on them. The same cores for every actor of a node. Serial mode leaves it
    out."""
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


class RehearsalSettings(SettingsTable):
    """`[rehearsal]`: how long the model's work takes in a run with `run.mode = "rehearse"`; unused in other runs.
    Speeds are those of the machines that are rehearsed for. docs/rehearsal.md says where to take them from."""

    time_scale: float = Field(default=1.0, gt=0)
    """Factor by which the model's work goes faster than given here; at 20 an hour takes three minutes.
    The control plane is real and goes no faster, so its share of the time grows with the factor. Deadlines and
    heartbeats stay as they are. Seconds in the run folder are those of the clock."""
    tokens_per_s: float = Field(default=2000.0, gt=0)
    """Response tokens per second that one rollout actor's engine samples with a full batch."""
    request_tokens_per_s: float = Field(default=50.0, gt=0)
    """Response tokens per second that one request gets at most, however few run beside it."""
    prefill_tokens_per_s: float = Field(default=20000.0, gt=0)
    """Prompt tokens per second that one engine computes; nothing is sampled meanwhile.
    A prompt that was computed since the last weights is cached, and costs nothing."""
    execute_s: float = Field(default=0.05, ge=0)
    """Seconds that the executor takes for one proposal, and for all answers to one task."""
    start_s: float = Field(default=0.0, ge=0)
    """Seconds that an engine takes to start."""
    load_s: float = Field(default=0.1, ge=0)
    """Seconds that an engine takes to load weights, beside their transfer."""
    learner_step_s: float = Field(default=1.0, ge=0)
    """Seconds of a training step, whatever its batch holds."""
    learner_tokens_per_s: float | None = Field(default=None, gt=0)
    """Tokens of the batch that all learner ranks together train per second, in addition to `learner_step_s`.
    Unset: a step takes `learner_step_s`."""
    weights_mb: float = Field(default=1.0, gt=0)
    """Size of the weights in MB, which are really broadcast to every actor.
    Each simulated engine holds them, and two buckets of them on the way."""
    checkpoint_mb: float = Field(default=1.0, ge=0)
    """Bytes that a checkpoint has beside weights, ledger, queue and task buffer, in MB; they are really written."""
    checkpoint_s: float = Field(default=0.0, ge=0)
    """Seconds that writing a checkpoint takes in addition, beside training."""
    lengths: str | None = None
    """File of lengths and rates that `azr rehearse --record` took from a run.
    Unset: lengths are drawn from log-normal distributions with the following medians."""
    prompt_tokens: dict[Role, float] = {Role.PROPOSE: 600.0, Role.SOLVE: 200.0}
    """Median length of a prompt by role, in tokens; unused with `rehearsal.lengths`."""
    response_tokens: dict[Role, float] = {Role.PROPOSE: 400.0, Role.SOLVE: 300.0}
    """Median length of a response by role, in tokens; unused with `rehearsal.lengths`."""
    spread: float = Field(default=0.8, ge=0, le=3)
    """Standard deviation of the logarithm of a response's length; unused with `rehearsal.lengths`.
    At 0.8 one response in a hundred is more than six times as long as the median. Lengths are cut off at the limits
    of `[selfplay]`."""
    valid_rate: float | None = Field(default=None, ge=0, le=1)
    """Share of proposals that are valid tasks. Unset: that of `rehearsal.lengths`, or 0.5."""
    solve_rate: float | None = Field(default=None, ge=0, le=1)
    """Share of solutions that are correct. Unset: that of `rehearsal.lengths`, or 0.5."""
    actors_per_process: int = Field(default=1, ge=1)
    """Rollout actors in one process. `azr rehearse` packs them, so that one machine holds a thousand.
    Each has its own connection, incarnation and place in the weight group."""

    @model_validator(mode="after")
    def _both_roles(self) -> Self:
        for name in ("prompt_tokens", "response_tokens"):
            table: dict[Role, float] = getattr(self, name)
            if set(table) != set(Role) or min(table.values()) < 1:
                raise ValueError(f"rehearsal.{name} needs a length of 1 or more for each role: propose and solve")
        return self
