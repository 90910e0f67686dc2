"""What is true: whether a proposal is a sound task, and whether an answer solves a task.

Model text reaches this process as text and literals only. Programs run in sandboxes, expected outputs never go there,
and every comparison is made here, on decoded values. A failure of the sandbox itself is raised (InfrastructureError),
never judged.

Work is shared where the sharing can't change a verdict:

- Answers to one task that are the same (the same canonical value; for programs, the same text) are judged once.
- Deduction runs nothing. An input that equals the task's own, or a program that does, is correct without a run.
- Other inputs for a task's program run as one batch, in one child, if the program imports nothing: then there is nothing
  that one call could leave to the next (`safety.py`), and a validated program's value does not depend on where in memory
  its objects lie, which differs from server to server (`zygote.py`). Otherwise each runs in a child of its own, since the program's
  author could have it answer by its place in the batch.
- An answer program gets all hidden inputs in one child, but never shares that with another answer's program. What it
  remembers from one input for the next doesn't bring it closer to outputs that it never sees.
- What a program returned for an input is remembered (`Memo`), for answers that come back when a task is replayed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from executor.inspection import Facts
from executor.literals import parse_args, parse_literal
from executor.memo import Memo, Recent
from executor.pool import Outcome, Pool, Status
from executor.sandbox import Limits
from executor.settings import ExecutorSettings
from executor.tasks import (
    Kind,
    Proposal,
    Rejection,
    RejectionReason,
    Task,
    ValidationRules,
    Verdict,
    VerdictReason,
)
from executor.values import CodecError, Equality, canonical, canonical_args, equal
from executor.variants import variants

T = TypeVar("T")
Record = Callable[[dict[str, Any]], None]

MIN_INDUCTION_INPUTS = 2
"""One pair to show and one to hide."""
FACTS_MEMO_BYTES = 4 << 20
"""What a judge remembers of inspections, in characters."""

_CORRECT = Verdict(True, VerdictReason.CORRECT)
_WRONG = Verdict(False, VerdictReason.WRONG)
_UNPARSEABLE = Verdict(False, VerdictReason.UNPARSEABLE)


@dataclass
class JudgeStats:
    """What a judge was asked, and what it did not have to run."""

    validated: int = 0
    """Proposals."""
    answers: int = 0
    """Answers to tasks."""
    executed: int = 0
    """Calls of a program: one per input and run, and one per variant of an input."""
    variants: int = 0
    """Those of them that were of variants."""
    inspected: int = 0
    """Programs whose syntax tree was looked at: a child each."""
    shared_equal: int = 0
    """Answers that another of the same request stood for."""
    shared_own: int = 0
    """Answers that were the task's own input or program."""
    memo_hits: int = 0
    """Calls whose outcome was remembered."""


class Judge:
    """Validates proposals and verifies answers on a pool of sandboxes that somebody else starts and closes."""

    def __init__(
        self,
        pool: Pool,
        settings: ExecutorSettings,
        equality: Equality = Equality.TYPE_AWARE,
        record: Record | None = None,
        rules: ValidationRules | None = None,
    ) -> None:
        """`record` is called with every request, as plain data (`executor.record_work`). `rules`: none, by default."""
        self._pool = pool
        self._rules = rules or ValidationRules()
        self._equality = equality
        self._record = record
        # The settings limit a value's encoding. An answer's text may be longer (white space, escapes), and its
        # canonical form longer again.
        self._answer_bytes = 4 * settings.output_bytes
        self._canonical_bytes = 4 * self._answer_bytes
        self._memo = Memo()
        self._facts: Recent[Facts | Outcome] = Recent(FACTS_MEMO_BYTES)
        self._turn = 0
        self.stats = JudgeStats()

    # ------------------------------------------------------------------------------------------------- proposals

    async def validate(self, proposal: Proposal) -> Task | Rejection:
        """The task that `proposal` defines, or why it defines none.

        Checked in this order: the inputs' number, form and difference; then, in the sandbox, the policy, integrity and
        limits; then, if the rules say so, whether the value depends on the input; then determinism. Raises
        InfrastructureError.
        """
        self.stats.validated += 1
        if self._record:
            self._record({"op": "validate", **_about(proposal)})
        count = len(proposal.inputs)
        if count < MIN_INDUCTION_INPUTS if proposal.kind is Kind.INDUCTION else count != 1:
            return Rejection(RejectionReason.INPUT_COUNT, f"{count} inputs for {proposal.kind}")
        try:
            given = [parse_args(text) for text in proposal.inputs]
            inputs = tuple(canonical_args(args) for args in given)
        except CodecError as error:
            return Rejection(RejectionReason.UNPARSEABLE_INPUT, str(error))
        if len(set(inputs)) < count:
            return Rejection(RejectionReason.DUPLICATE_INPUT, f"{count - len(set(inputs))} of {count} inputs")
        program = await self._stripped(proposal.program.strip())
        # The inputs of an induction proposal are each other's variants.
        looked_at = self._rules.input_dependence != "off"
        others = variants(given[0], program) if looked_at and count == 1 else []
        workers = self._two_workers()
        first = await self._execute(program, inputs, workers[0], fail_fast=True, variants=others)
        outcomes, varied, detail = first[:count], first[count:], ""
        self.stats.variants += len(varied)
        if outcomes[-1].status is Status.OK:
            detail = await self._ignores_input(program, outcomes, varied) if looked_at else ""
            if detail and self._rules.input_dependence == "reject":
                return Rejection(RejectionReason.IGNORES_INPUT, detail)
            outcomes = await self._confirmed(program, inputs, outcomes, workers[1])
        last = outcomes[-1]
        if last.status is not Status.OK:
            return Rejection(RejectionReason(last.status.value), last.detail)
        values = tuple(outcome.value for outcome in outcomes)
        return Task(proposal.kind, program, inputs, values, proposal.message, ignores_input=bool(detail))

    async def inspect(self, program: str) -> Facts | None:
        """What the syntax tree of `program` says; None if it does not parse, or can't be read within the limits.

        Remembered; the first time costs a child. Raises InfrastructureError.
        """
        program = program.strip()
        found = self._facts.find(program)
        if found is None:
            rules = self._rules
            found = await self._pool.inspect(
                program, strip_comments=rules.strip_comments, strip_docstrings=rules.strip_docstrings
            )
            self.stats.inspected += 1
            if isinstance(found, Facts):
                size = len(found.normal) + len(found.shape) + len(found.stripped)
                self._facts.keep(found, size, program)
                if found.stripped != program and found.stripped:
                    # What is looked at is without comments and docstrings anyway.
                    self._facts.keep(found, size, found.stripped)
            elif found.status is Status.ERROR:
                self._facts.keep(found, 0, program)
        return found if isinstance(found, Facts) else None

    async def _stripped(self, program: str) -> str:
        """The program as the rules want it. One that can't be read is left as it is, for the run to refuse."""
        if not (self._rules.strip_comments or self._rules.strip_docstrings):
            return program
        facts = await self.inspect(program)
        return facts.stripped if facts else program

    async def _ignores_input(self, program: str, outcomes: Sequence[Outcome], varied: Sequence[Outcome]) -> str:
        """Why it is taken that `program`, which gave `outcomes` for its inputs, ignores them; "" if it does not.

        Several inputs, or an input and those of its variants that the program takes, must not all give one value. Where
        no variant ran, the program must at least read a parameter.
        """
        values = [outcome.value for outcome in [*outcomes, *varied] if outcome.status is Status.OK]
        if len(values) > 1:
            return f"{_short(outcomes[0])} for {len(values)} inputs" if len(set(values)) == 1 else ""
        facts = await self.inspect(program)
        return "" if facts is None or facts.uses_input else "no parameter is read"

    async def determine(self, program: str, given: str, limits: Limits | None = None) -> Outcome:
        """What `validate` would find of one input: the outcome of both runs, or NONDETERMINISTIC.

        Raises values.CodecError for an input that is not literals, InfrastructureError.
        """
        program, inputs, workers = program.strip(), (canonical_args(parse_args(given)),), self._two_workers()
        first = await self._execute(program, inputs, workers[0], fail_fast=True, limits=limits)
        if first[-1].status is Status.OK:
            first = await self._confirmed(program, inputs, first, workers[1], limits)
        return first[-1]

    def _two_workers(self) -> tuple[int, int]:
        turn = self._turn
        self._turn += 1
        return turn % self._pool.workers, (turn + 1) % self._pool.workers

    async def _confirmed(
        self, program: str, inputs: tuple[str, ...], first: list[Outcome], worker: int, limits: Limits | None = None
    ) -> list[Outcome]:
        """The outcomes `first`, which are ok, if a second run agrees; otherwise one that says what did not.

        The second run is in another sandbox, under another hash seed, with the inputs in reversed order, so that a
        program whose answer depends on what it was asked before does not agree with itself. It waits for the first:
        most proposals fail that one, and while sandboxes are busy, running both at once would gain nothing.
        """
        second = await self._execute(program, inputs[::-1], worker, fail_fast=True, limits=limits)
        for one, other in zip(first[::-1], second, strict=False):
            if other.status is not Status.OK or not self._same(one.value, other.value, Equality.TYPE_AWARE):
                detail = f"{_short(one)} in one run, {_short(other)} in the other"
                return [Outcome(Status.NONDETERMINISTIC, detail=detail, isolated=one.isolated and other.isolated)]
        return first

    # --------------------------------------------------------------------------------------------------- answers

    async def verify(self, task: Task, answer: str) -> Verdict:
        """Whether `answer` solves `task`: an output, an input, or a program, by the task's kind.

        Raises InfrastructureError.
        """
        return (await self.verify_all(task, [answer]))[0]

    async def verify_all(self, task: Task, answers: Sequence[str]) -> list[Verdict]:
        """Whether each of `answers` solves `task`, aligned. The same as `verify` of each, with less work.

        Raises InfrastructureError.
        """
        self.stats.answers += len(answers)
        if self._record:
            self._record({"op": "verify", **_about(task), "outputs": list(task.outputs), "answers": list(answers)})
        keys = [self._key(task.kind, answer) for answer in answers]
        distinct = [key for key in dict.fromkeys(keys) if key is not None]
        self.stats.shared_equal += len(keys) - keys.count(None) - len(distinct)
        match task.kind:
            case Kind.DEDUCTION:
                verdicts = [self._compare(task.outputs[0], value) for value in distinct]
            case Kind.ABDUCTION:
                verdicts = await self._verify_inputs(task, distinct)
            case Kind.INDUCTION:
                verdicts = await _all(self._verify_program(task, program) for program in distinct)
        found = dict(zip(distinct, verdicts, strict=True))
        return [_UNPARSEABLE if key is None else found[key] for key in keys]

    def _key(self, kind: Kind, answer: str) -> str | None:
        """What makes two answers the same one; None for an answer that can't be read."""
        if kind is Kind.INDUCTION:
            return answer.strip()
        try:
            if kind is Kind.DEDUCTION:
                return canonical(parse_literal(answer, self._answer_bytes))
            return canonical_args(parse_args(answer))
        except CodecError:
            return None

    async def _verify_inputs(self, task: Task, inputs: Sequence[str]) -> list[Verdict]:
        """Whether the task's program maps each of these different inputs to the task's output."""
        program, gold = task.program, task.outputs[0]
        found = {given: value for given in inputs if (value := self._remembered(program, given)) is not None}
        verdicts = {given: self._compare(gold, value) for given, value in found.items()}
        if task.inputs[0] in inputs:
            verdicts[task.inputs[0]] = _CORRECT
            self.stats.shared_own += 1
        left = [given for given in inputs if given not in verdicts]
        alone = left
        if len(left) > 1 and "import" not in program:
            outcomes = await self._run(program, left)
            # The children's values add up in one batch: who ran out of memory is asked again, alone.
            alone = [given for given, one in zip(left, outcomes, strict=True) if one.status is Status.MEMORY]
            verdicts |= {given: self._judge(gold, one) for given, one in zip(left, outcomes, strict=True)}
        for given, (outcome,) in zip(alone, await _all(self._run(program, [given]) for given in alone), strict=True):
            verdicts[given] = self._judge(gold, outcome)
        return [verdicts[given] for given in inputs]

    async def _verify_program(self, task: Task, program: str) -> Verdict:
        """Whether `program` maps every hidden input of the task to its output."""
        if program == task.program:
            self.stats.shared_own += 1
            return _CORRECT
        left = []
        for given, gold in task.hidden:
            value = self._remembered(program, given)
            if value is None:
                left.append((given, gold))
            elif not (verdict := self._compare(gold, value)).correct:
                return verdict
        outcomes = await self._run(program, [given for given, _ in left], fail_fast=True) if left else []
        for outcome, (_, gold) in zip(outcomes, left, strict=False):
            verdict = self._judge(gold, outcome)
            if not verdict.correct:
                return verdict
        return _CORRECT

    # --------------------------------------------------------------------------------------------------- the pool

    async def _run(self, program: str, inputs: Sequence[str], fail_fast: bool = False) -> list[Outcome]:
        """Run a program once, on any sandbox, and remember what it returned."""
        outcomes = await self._execute(program, inputs, fail_fast=fail_fast)
        for given, outcome in zip(inputs, outcomes, strict=False):
            if outcome.status is Status.OK:
                self._memo.put(program, given, outcome.value)
        return outcomes

    async def _execute(
        self,
        program: str,
        inputs: Sequence[str],
        worker: int | None = None,
        *,
        limits: Limits | None = None,
        fail_fast: bool = False,
        variants: Sequence[str] = (),
    ) -> list[Outcome]:
        options = {"variants": variants} if variants else {}
        outcomes = await self._pool.execute(program, inputs, worker, limits=limits, fail_fast=fail_fast, **options)
        self.stats.executed += len(outcomes)
        return outcomes

    def _remembered(self, program: str, given: str) -> str | None:
        value = self._memo.get(program, given)
        self.stats.memo_hits += value is not None
        return value

    def _judge(self, gold: str, outcome: Outcome) -> Verdict:
        if outcome.status is Status.OK:
            return self._compare(gold, outcome.value)
        return Verdict(False, VerdictReason(outcome.status.value))

    def _compare(self, gold: str, value: str) -> Verdict:
        return _CORRECT if self._same(gold, value, self._equality) else _WRONG

    def _same(self, one: str, other: str, mode: Equality) -> bool:
        """Whether two canonical texts stand for the same value."""
        if one == other:
            return True
        limit = self._canonical_bytes
        return equal(parse_literal(one, limit), parse_literal(other, limit), mode)


def _about(subject: Proposal | Task) -> dict[str, Any]:
    return {
        "kind": subject.kind.value,
        "program": subject.program,
        "inputs": list(subject.inputs),
        "message": subject.message,
    }


def _short(outcome: Outcome) -> str:
    text = outcome.value if outcome.status is Status.OK else f"{outcome.status.value} {outcome.detail}".strip()
    return text if len(text) <= 60 else text[:57] + "..."


async def _all(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run them together, all to their end; then the first failure is raised."""
    results = await asyncio.gather(*coroutines, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]
