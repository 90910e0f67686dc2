"""The environment of self-play: it validates proposals and verifies answers of every kind, with one judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from actors.kinds.registry import KindError, kind_of
from actors.time_ledger import Activity, TimeLedger
from executor.inspection import Facts
from executor.judge import Judge, JudgeStats
from executor.outcomes import Outcome
from executor.tasks import Proposal, Rejection, Task, Verdict

Record = Callable[[dict[str, Any]], None]


class Environment:
    """Validates proposals and verifies answers of every registered kind."""

    def __init__(self, judge: Judge, record: Record | None = None, time_ledger: TimeLedger | None = None) -> None:
        """`record` is called with every request, as plain data (`executor.record_work`). `time_ledger`: where the time
        of executions is entered."""
        self._judge = judge
        self._record = record
        self._time = time_ledger or TimeLedger()

    @property
    def stats(self) -> JudgeStats:
        """The counters of the judge."""
        return self._judge.stats

    async def validate(self, proposal: Proposal) -> Task | Rejection:
        """The task that `proposal` defines, or why it defines none. Raises InfrastructureError, KindError."""
        if self._record:
            self._record({"op": "validate", **_about(proposal)})
        with self._time.during(Activity.EXECUTOR):
            return await kind_of(proposal.kind).validate(self._judge, proposal)

    async def verify(self, task: Task, answer: str) -> Verdict:
        """Judge whether `answer` solves `task`. Raises InfrastructureError, KindError."""
        return (await self.verify_all(task, [answer]))[0]

    async def verify_all(self, task: Task, answers: Sequence[str]) -> list[Verdict]:
        """Judge whether each of `answers` solves `task`, aligned: as `verify` of each, with less work.

        Raises InfrastructureError; KindError for an unknown kind, or one that leaves an answer without a verdict.
        """
        if self._record:
            self._record({"op": "verify", **_about(task), "outputs": list(task.outputs), "answers": list(answers)})
        with self._time.during(Activity.EXECUTOR):
            verdicts = await kind_of(task.kind).verify(self._judge, task, answers)
        if len(verdicts) != len(answers):
            raise KindError(f"the kind {task.kind!r} gave {len(verdicts)} verdicts on {len(answers)} answers")
        return verdicts

    async def evaluate(self, program: str, inputs: Sequence[str]) -> list[Outcome]:
        """See `Judge.evaluate`."""
        with self._time.during(Activity.EXECUTOR):
            return await self._judge.evaluate(program, inputs)

    async def inspect(self, program: str) -> Facts | None:
        """See `Judge.inspect`."""
        with self._time.during(Activity.EXECUTOR):
            return await self._judge.inspect(program)


def _about(subject: Proposal | Task) -> dict[str, Any]:
    return {
        "kind": str(subject.kind),
        "program": subject.program,
        "inputs": list(subject.inputs),
        "message": subject.message,
        **({"texts": dict(subject.texts)} if subject.texts else {}),
    }
