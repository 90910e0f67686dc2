"""Deduction: program and input are given; the solver answers the output."""

from __future__ import annotations

from collections.abc import Sequence

from actors.kinds.triplet import TripletKind
from executor.judge import Judge
from executor.tasks import Task, Verdict


class Deduction(TripletKind):
    """Follow a program forwards."""

    name = "deduction"
    position = 0

    async def verify(self, judge: Judge, task: Task, answers: Sequence[str]) -> list[Verdict]:
        """See `TaskKind`: an answer is right if it is the output, in value and type. Nothing runs."""
        return judge.check_values(task.outputs[0], answers)
