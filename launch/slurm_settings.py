"""Settings of a SLURM job: what azr submit asks for, and how often the job is started again."""

from __future__ import annotations

import re

from pydantic import Field, ValidationInfo, field_validator, model_validator

from executor.settings_table import SettingsTable

_TIME = r"^(\d+(:\d{1,2}){0,2}|\d+-\d{1,2}(:\d{1,2}){0,2})$"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_OPTION = re.compile(r"[a-z][a-z0-9-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OWN = {
    "array": "",
    "chdir": "",
    "error": "",
    "no-requeue": "slurm.requeue",
    "nodes": "slurm.nodes",
    "ntasks": "slurm.nodes",
    "ntasks-per-node": "slurm.nodes",
    "open-mode": "",
    "output": "",
    "parsable": "",
    "requeue": "slurm.requeue",
    "signal": "slurm.warning_s",
    "time": "slurm.time",
    "wait": "",
    "wrap": "",
}
"""Options of sbatch that cannot be given as they are: the setting that gives the option, or empty where a run cannot
have it."""


class SlurmSettings(SettingsTable):
    """`[slurm]`: the SLURM job of a run that `azr submit` submits.

    Other commands ignore it."""

    nodes: int = Field(default=1, ge=1, le=65536)
    """Number of nodes of the job.
    Each runs one agent, which joins them to one Ray cluster."""
    learner_nodes: int | None = Field(default=None, ge=1)
    """Number of nodes, the first ones of the job, that the learner's ranks run on; rollout actors run on the others.
    Unset: as many as the ranks need. On a job of one node everything shares that node."""
    gpus_per_node: int = Field(default=0, ge=0, le=1024)
    """Number of GPUs that the job gets on each node (`--gres=gpu:N`).
    0: none is asked for. A site that wants a type of GPU is served by
    `slurm.extra = { gres = "gpu:a100:8" }`, which replaces the line that this setting writes."""
    cpus_per_task: int | None = Field(default=None, ge=1)
    """Number of CPU cores that the job gets on each node, which has one task.
    Unset: all cores with `slurm.exclusive`, otherwise SLURM gives one, which is too few for most runs."""
    memory: str | None = Field(default=None, pattern=r"^\d+[KMGT]?$")
    """Memory that the job gets on each node, as `sbatch --mem` takes it: a number of MiB, or with a unit, `500G`.
    Unset: all of it with `slurm.exclusive`, otherwise what the partition gives by default."""
    exclusive: bool = True
    """Whether the job has its nodes for itself.
    False: other jobs may share them, and the job has what `slurm.cpus_per_task`, `slurm.memory` and
    `slurm.gpus_per_node` ask for."""
    partition: str | None = None
    """Partition of the job.
    Unset: the site's default."""
    account: str | None = None
    """Account that pays for the job.
    Unset: the user's default."""
    qos: str | None = None
    """Quality of service of the job.
    Unset: the site's default."""
    time: str | None = Field(default=None, pattern=_TIME)
    """Time limit of one start of the job, in SLURM's forms: minutes, `HH:MM:SS`, or `D-HH:MM:SS`.
    The run saves and is queued again before it is reached. Unset: the partition's default."""
    constraint: str | None = None
    """Features that the nodes must have, such as `a100&ib`."""
    exclude: str | None = None
    """Nodes that the job must not get, such as `n[3-4]`."""
    reservation: str | None = None
    """Reservation that the job uses."""
    dependency: str | None = None
    """Jobs that this one waits for, such as `afterok:1234` or `singleton`."""
    extra: dict[str, str] = {}
    """Other options of sbatch, by their long names: `{ nice = "100", mail-type = "FAIL" }`.
    An empty value gives an option without one. An option that another setting writes is replaced.
    `azr submit --sbatch KEY=VALUE` adds to them."""
    setup: tuple[str, ...] = ()
    """Lines of bash that the job runs first on its first node, such as `module load cuda`.
    The environment that they leave reaches every node. A line that fails ends the job."""
    environment: dict[str, str] = {}
    """Environment variables of the job, exported after `slurm.setup`.
    Values arrive as they are: nothing in them is expanded."""
    python: str | None = Field(default=None, pattern=r"^/")
    """Absolute path of the Python that runs azr on the nodes.
    Unset: the one that runs `azr submit`."""
    template: str | None = Field(default=None, min_length=1)
    """File with a Jinja template that replaces the batch script of azr.
    A relative path starts at the working directory. It can begin with `{% extends "job.sbatch.j2" %}` and replace
    single blocks. Unset: the template that ships."""
    interface: str | None = Field(default=None, pattern=r"^[^\s/,=^]+$", max_length=15)
    """Network interface for Ray, gloo, NCCL and the stream, such as `ib0`.
    Unset: on each node, the interface of the route to the learner's first node."""
    start_timeout_s: float = Field(default=600.0, gt=0)
    """Seconds within which all nodes must have joined.
    After that, the job fails, and its log names each missing node and the reason. Too short: a slow file system at the
    first import of a large installation looks like a dead node."""
    requeue: bool = True
    """Whether a job that was stopped and saved, preempted, or lost a node is queued again and goes on.
    Where the site refuses `scontrol requeue`, the job submits its script anew, to run after its own end."""
    max_requeues: int = Field(default=100, ge=0)
    """Number of times that the job requeues itself after it was stopped and had saved, as at each time limit.
    One stop more ends the job. `azr submit --resume RUN` counts from 0 again."""
    max_preemptions: int = Field(default=1000, ge=0)
    """Number of starts that may end without a word of their own: by preemption, `scontrol requeue`, or a node failure.
    One more ends the job. `azr submit --resume RUN` counts from 0 again."""
    warning_s: int | None = Field(default=None, ge=1, le=65535)
    """Seconds before the time limit at which the run is told to save and end (`--signal=B:USR2@S`).
    SLURM may send the signal up to 60 s earlier. Unset: what the longest checkpoint and step of the run so far took,
    and 60 s; 300 s for a run without any. Never more than half of `slurm.time`. Too short: the job ends while the
    run saves, and does not go on by itself."""

    @property
    def limit_s(self) -> float | None:
        """`time` in seconds; None without a limit."""
        if self.time is None:
            return None
        days, dash, rest = self.time.rpartition("-")
        parts = [int(part) for part in rest.split(":")]
        # Without days, the units end at seconds, and a single number is minutes. With days, they begin at hours.
        units = (3600, 60, 1)[: len(parts)] if dash else {1: (60,), 2: (60, 1), 3: (3600, 60, 1)}[len(parts)]
        seconds = int(days or 0) * 86400 + sum(part * unit for part, unit in zip(parts, units, strict=True))
        return float(seconds) or None

    @field_validator("partition", "account", "qos", "constraint", "exclude", "reservation", "dependency", "python")
    @classmethod
    def _one_line(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and (not value.strip() or _CONTROL.search(value)):
            raise ValueError("it must be one line of text, without control characters, and not empty")
        return value

    @field_validator("setup")
    @classmethod
    def _lines(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any("\0" in line for line in value):
            raise ValueError("a NUL byte cannot be in a script")
        return value

    @field_validator("environment")
    @classmethod
    def _variables(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r:.60} is no name of an environment variable (letters, digits, underscores)")
            if "\0" in text:
                raise ValueError(f"the value of {name} has a NUL byte, which no environment variable can hold")
            if name.startswith(("SLURM_", "RAY_AUTH_")):
                raise ValueError(f"{name} is set by the job itself")
        return value

    @field_validator("extra")
    @classmethod
    def _options(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not _OPTION.fullmatch(name):
                raise ValueError(f"{name!r:.60} is no long option of sbatch: write it as in mail-type, without dashes")
            if name in _OWN:
                setting = _OWN[name]
                told = f"set {setting}" if setting else "a run works with azr's own choice only"
                raise ValueError(f"the option {name} cannot be given here: {told}")
            if _CONTROL.search(text):
                raise ValueError(f"the value of {name} must be one line of text, without control characters")
        return value

    @model_validator(mode="after")
    def _fit_together(self) -> SlurmSettings:
        if self.learner_nodes is not None and self.learner_nodes > self.nodes:
            raise ValueError(
                f"slurm.learner_nodes = {self.learner_nodes} is more than slurm.nodes = {self.nodes}: raise that, or "
                "lower the other"
            )
        return self
