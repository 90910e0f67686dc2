"""Settings of the task buffer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from executor.settings import Section


class BufferSettings(Section):
    """`[buffer]`: which past tasks are drawn, and how many of them stay in the draw."""

    sampling: Literal["uniform", "recency"] = "uniform"
    """`uniform`: every active task alike; `recency`: newer tasks more often, by `recency_half_life`."""
    recency_half_life: float = Field(default=1000.0, ge=1)
    """With `recency`: a task is drawn half as often as one of its kind that is this many tasks newer."""
    capacity: int = Field(default=0, ge=0)
    """Active tasks of each kind; beyond it one leaves the draw (not the file) for each that enters. 0: no bound."""
    max_restarts: int = Field(default=10, ge=0)
    """How often the buffer is started again, on the same file, before the run stops."""
    settled_attempts: int = Field(default=16, ge=1)
    """With `capacity`: a task that so many attempts, or more, solved always or never leaves first; then the oldest."""
