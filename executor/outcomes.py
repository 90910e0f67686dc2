"""The outcome of an execution, and the limits that it runs under."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from executor.settings import ExecutorSettings
from executor.user_error import UserError


class InfrastructureError(UserError):
    """The sandbox itself failed. It says nothing about the program, and is never a verdict or a reward."""

    exit_code = 3


class DeadError(Exception):
    """The fork server is dead, wedged, or has had a failure that is not the program's. Its work can be done again."""


class Status(StrEnum):
    """The kinds of outcome of one execution."""

    OK = "ok"
    ERROR = "error"
    """It does not parse, has no function `f`, or raised."""
    TIMEOUT = "timeout"
    MEMORY = "memory"
    OUTPUT_TOO_LARGE = "output_too_large"
    """The value is beyond the codec's budgets. Nothing is ever cut off to fit."""
    UNSERIALISABLE = "unserialisable"
    """The value is not made of exact builtin types."""
    UNSAFE = "unsafe"
    """Refused by the policy, or stopped by the wall."""
    NONDETERMINISTIC = "nondeterministic"
    """Two runs did not agree; found by the judge."""
    CRASHED = "crashed"
    """The process died, or did not answer in the agreed form."""
    INFRASTRUCTURE = "infrastructure"
    """The sandbox's own failure; tried again, then raised as InfrastructureError, never returned."""


@dataclass(frozen=True)
class Outcome:
    """The finding on one input: `value` is canonical text where the status is ok, `detail` is for people."""

    status: Status
    value: str = ""
    detail: str = ""
    isolated: bool = True
    """False for what ran without seccomp, which `executor.allow_unsafe` permits."""


@dataclass(frozen=True)
class Limits:
    """The limits of one execution, as in ExecutorSettings."""

    timeout_s: float
    memory_mb: int
    output_bytes: int

    @classmethod
    def of(cls, settings: ExecutorSettings) -> Limits:
        """The limits that `settings` give."""
        return cls(settings.timeout_s, settings.memory_mb, settings.output_bytes)

    def within(self, outer: Limits) -> Limits:
        """Check that a sandbox made for `outer` has the memory for these limits; return them. Raises ValueError."""
        if self.memory_mb > outer.memory_mb:
            raise ValueError(
                f"{self.memory_mb} MiB for one execution is beyond executor.memory_mb = {outer.memory_mb}; raise that"
            )
        return self


def complete(outcomes: list[Outcome], inputs: int, fail_fast: bool) -> list[Outcome]:
    """`outcomes` themselves, if there is one for each of `inputs` inputs; with `fail_fast` they may end early, at one
    that is not ok. Raises InfrastructureError otherwise: a verdict on fewer would be a guess."""
    ended = fail_fast and 0 < len(outcomes) < inputs and outcomes[-1].status is not Status.OK
    if len(outcomes) != inputs and not ended:
        raise InfrastructureError(f"the sandbox gave {len(outcomes)} outcomes for {inputs} inputs")
    return outcomes
