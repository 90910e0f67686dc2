"""Settings of the executor, and `Section`, the base class of every settings table in the project."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from executor.layers import Layer


class Section(BaseModel):
    """One table of the configuration: immutable, every key known, every default checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True)


class ExecutorSettings(Section):
    """`[executor]`: how model-written programs are run."""

    workers: int = Field(default=2, ge=2, le=512)
    """Sandbox processes (zygotes). At least two: determinism is checked across two hash seeds."""
    timeout_s: float = Field(default=2.0, gt=0, le=600)
    """Limit of one execution, in seconds of wall-clock time; up to four times that where a busy machine keeps it from running."""
    memory_mb: int = Field(default=256, ge=16, le=65536)
    """Address space that one execution may add to the sandbox's own, in MiB."""
    output_bytes: int = Field(default=65536, ge=64, le=2**24)
    """Largest encoded return value, in bytes; a larger one is a rejection, never a truncation."""
    queue: int = Field(default=1024, ge=1, le=2**20)
    """Executions that may wait for a sandbox. Beyond that their callers wait at the door, so that memory stays bounded."""
    pin_cpus: bool = True
    """Keep a sandbox for 2 ms on the CPU where a run began, which makes short runs about a sixth faster."""
    require: tuple[Layer, ...] = ()
    """Layers of the sandbox without which nothing starts; `azr doctor` lists which of them this machine has."""
    allow_unsafe: bool = False
    """Run even without seccomp, where model-written programs can do what their user can. Every outcome then says so."""
    record_work: bool = False
    """Append every validation and verification to `<run>/executor_work.<actor>.jsonl`, for benchmarks on recorded work."""
