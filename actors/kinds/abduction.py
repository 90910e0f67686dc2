"""Abduction: program and output are given; the solver answers any input that gives the output."""

from __future__ import annotations

from collections.abc import Sequence

from actors.kinds.triplet import TripletKind
from executor.judge import Judge
from executor.tasks import Task, Verdict


class Abduction(TripletKind):
    """Follow a program backwards."""

    name = "abduction"
    position = 1

    async def verify(self, judge: Judge, task: Task, answers: Sequence[str]) -> list[Verdict]:
        """See `TaskKind`: an answer is right if the program returns the output for it."""
        return await judge.check_inputs(task.program, task.outputs[0], answers, known=task.inputs)
