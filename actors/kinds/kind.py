"""What a kind of task is: everything that the rest of self-play asks of one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from executor.judge import Judge
from executor.tasks import Proposal, Rejection, Task, Verdict


class TaskKind(ABC):
    """One kind of task. Stateless: one object serves all episodes of a process."""

    name: ClassVar[str]
    """Its name in settings, metrics, files and on the wire: a lower-case word of at most 40 letters, digits, `_` and `-`."""
    position: ClassVar[int] = 100
    """Where it stands in lists of all kinds, lowest first; equal ones are in the order of their names."""

    # -- what is true ------------------------------------------------------------------------------------------------

    @abstractmethod
    async def validate(self, judge: Judge, proposal: Proposal) -> Task | Rejection:
        """The task that `proposal` defines, or why it defines none. Raises InfrastructureError.

        A rejection's reason is a `RejectionReason` or a member of an enum of the kind's own.
        """

    @abstractmethod
    async def verify(self, judge: Judge, task: Task, answers: Sequence[str]) -> list[Verdict]:
        """Whether each of `answers` solves `task`, aligned. Raises InfrastructureError."""
