"""What is true: whether a proposal is a sound task, and whether an answer solves a task.

Model text reaches this process as text and literals only. Programs run in sandboxes, expected outputs never go there,
and every comparison is made here, on decoded values. A failure of the sandbox itself is raised (InfrastructureError),
never judged.
"""

from __future__ import annotations

from executor.pool import Outcome, Pool, Status
from executor.settings import ExecutorSettings
from executor.tasks import Kind, Proposal, Rejection, RejectionReason, Task, Verdict, VerdictReason
from executor.values import CodecError, Equality, canonical, canonical_args, equal, parse_args, parse_literal

MIN_INDUCTION_INPUTS = 2
"""One pair to show and one to hide."""


class Judge:
    """Validates proposals and verifies answers on a pool of sandboxes that somebody else starts and closes."""

    def __init__(self, pool: Pool, settings: ExecutorSettings, equality: Equality = Equality.TYPE_AWARE) -> None:
        self._pool = pool
        self._equality = equality
        # The settings limit a value's encoding. An answer's text may be longer (white space, escapes), and its
        # canonical form longer again.
        self._answer_bytes = 4 * settings.output_bytes
        self._canonical_bytes = 4 * self._answer_bytes
        self._turn = 0

    async def validate(self, proposal: Proposal) -> Task | Rejection:
        """The task that `proposal` defines, or why it defines none.

        Checked in this order: the inputs' number and form; then, in the sandbox, the policy, integrity and limits; then
        determinism. Raises InfrastructureError.
        """
        count = len(proposal.inputs)
        if count < MIN_INDUCTION_INPUTS if proposal.kind is Kind.INDUCTION else count != 1:
            return Rejection(RejectionReason.INPUT_COUNT, f"{count} inputs for {proposal.kind}")
        try:
            inputs = tuple(canonical_args(parse_args(text)) for text in proposal.inputs)
        except CodecError as error:
            return Rejection(RejectionReason.UNPARSEABLE_INPUT, str(error))
        program = proposal.program.strip()
        outcomes = await self._run_twice(program, inputs)
        last = outcomes[-1]
        if last.status is not Status.OK:
            return Rejection(RejectionReason(last.status.value), last.detail)
        return Task(proposal.kind, program, inputs, tuple(outcome.value for outcome in outcomes), proposal.message)

    async def verify(self, task: Task, answer: str) -> Verdict:
        """Whether `answer` solves `task`: an output, an input, or a program, by the task's kind.

        Raises InfrastructureError.
        """
        if task.kind is Kind.INDUCTION:
            return await self._verify_program(answer.strip(), task.hidden)
        try:
            if task.kind is Kind.DEDUCTION:
                return self._compare(task.outputs[0], canonical(parse_literal(answer, self._answer_bytes)))
            given = canonical_args(parse_args(answer))
        except CodecError:
            return Verdict(False, VerdictReason.UNPARSEABLE)
        return await self._verify_program(task.program, ((given, task.outputs[0]),))

    async def _verify_program(self, program: str, pairs: tuple[tuple[str, str], ...]) -> Verdict:
        """Whether `program` maps every input of `pairs` to its output."""
        outcomes = await self._pool.execute(program, [given for given, _ in pairs], fail_fast=True)
        for outcome, (_, gold) in zip(outcomes, pairs, strict=False):
            if outcome.status is not Status.OK:
                return Verdict(False, VerdictReason(outcome.status.value))
            verdict = self._compare(gold, outcome.value)
            if not verdict.correct:
                return verdict
        return Verdict(True, VerdictReason.CORRECT)

    async def _run_twice(self, program: str, inputs: tuple[str, ...]) -> list[Outcome]:
        """Outcomes by input, up to the first that is not ok.

        The second run is in another sandbox, under another hash seed, with the inputs in reversed order, so that a
        program whose answer depends on what it was asked before does not agree with itself.
        """
        first_worker = self._turn % self._pool.workers
        second_worker = (self._turn + 1) % self._pool.workers
        self._turn += 1
        first = await self._pool.execute(program, inputs, first_worker, fail_fast=True)
        if first[-1].status is not Status.OK:
            return first
        second = await self._pool.execute(program, inputs[::-1], second_worker, fail_fast=True)
        agreed = len(second) == len(inputs) and all(
            other.status is Status.OK and self._same(one.value, other.value, Equality.TYPE_AWARE)
            for one, other in zip(first, second[::-1], strict=True)
        )
        return first if agreed else [Outcome(Status.NONDETERMINISTIC)]

    def _compare(self, gold: str, value: str) -> Verdict:
        if self._same(gold, value, self._equality):
            return Verdict(True, VerdictReason.CORRECT)
        return Verdict(False, VerdictReason.WRONG)

    def _same(self, one: str, other: str, mode: Equality) -> bool:
        """Whether two canonical texts stand for the same value."""
        if one == other:
            return True
        limit = self._canonical_bytes
        return equal(parse_literal(one, limit), parse_literal(other, limit), mode)
