"""Settings of the executor."""

from __future__ import annotations

from pydantic import Field

from executor.layers import Layer
from executor.settings_table import SettingsTable


class ExecutorSettings(SettingsTable):
    """`[executor]`: how model-written programs are run."""

    workers: int = Field(default=2, ge=2, le=512)
    """Number of programs that each rollout actor runs in parallel, as far as there are cores.
    Each takes a sandbox. At least 8 sandboxes start when they are needed, because determinism is checked under as many
    hash seeds; an idle one takes about 10 MiB."""
    timeout_s: float = Field(default=2.0, gt=0, le=600)
    """Maximum CPU seconds of one execution, however busy the machine is.
    Too short: slow programs are rejected as `timeout`. Too long: endless loops hold a sandbox for that time."""
    memory_mb: int = Field(default=256, ge=16, le=65536)
    """Address space in MiB that one execution may add to its sandbox's own.
    An allocation beyond it ends the program with outcome `memory`."""
    output_bytes: int = Field(default=65536, ge=64, le=2**24)
    """Maximum size of an encoded return value, in bytes.
    A larger value is rejected as `output_too_large`, never cut off."""
    queue: int = Field(default=1024, ge=1, le=2**20)
    """Maximum number of executions that wait for a sandbox.
    Further callers wait before they enter the queue, so that memory stays bounded."""
    pin_cpus: bool = True
    """Keep a sandbox on one CPU for 2 ms after a run began there; short runs are about a sixth faster."""
    require: tuple[Layer, ...] = ()
    """Sandbox layers without which nothing starts, such as `["landlock", "pid_namespace"]`.
    `azr doctor` lists the layers that this machine has."""
    allow_unsafe: bool = False
    """Start even without seccomp, where a model-written program can do whatever its user can.
    Every outcome is then marked `isolated = false`. Only for a machine that you can lose."""
    record_work: bool = False
    """Append every validation and verification to `executor_work.<actor>.jsonl` in the run folder.
    `azr bench executor --mix` replays such a file."""
