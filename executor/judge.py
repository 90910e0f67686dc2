"""What is true of programs: what they return, whether they do so every time, and whether an answer is right.

The judge knows no kind of task. It offers what every kind is made of (`actors/kinds/`):

    validate         a program and its inputs: what it returns, if it is sound
    check_values     answers that are values, against a value
    check_inputs     answers that are inputs, against what a program should return for them
    check_programs   answers that are programs, against pairs of input and output
    read_value, read_input, evaluate, same    the parts of these, for other rules

Model text reaches this process as text and literals only. Programs run in sandboxes, expected outputs never go there,
and every comparison is made here, on decoded values. A failure of the sandbox itself is raised (InfrastructureError),
never judged.

Work is shared where the sharing can't change a verdict:

- Answers of one request that are the same (the same canonical value; for programs, the same text) are judged once.
- Comparing values runs nothing. An answer that is known to be right (`known`: the task's own) is correct without a run.
- Several inputs for one program run as one batch, in one child, if the program imports nothing: then there is nothing
  that one call could leave to the next (`safety.py`), and a validated program's value does not depend on where in memory
  its objects lie, which differs from server to server (`zygote.py`). Otherwise each runs in a child of its own, since the program's
  author could have it answer by its place in the batch.
- An answer program gets all its inputs in one child, but never shares that with another answer's program. What it
  remembers from one input for the next doesn't bring it closer to outputs that it never sees.
- What a program returned for an input is remembered (`Memo`), for answers that come back when a task is replayed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from executor.inspection import Facts
from executor.literals import parse_args, parse_literal
from executor.memo import Memo, Recent
from executor.pool import Outcome, Pool, Status
from executor.sandbox import Limits
from executor.settings import ExecutorSettings
from executor.tasks import Rejection, RejectionReason, Validated, ValidationRules, Verdict, VerdictReason
from executor.values import CodecError, Equality, canonical, canonical_args, equal
from executor.variants import variants

T = TypeVar("T")

FACTS_MEMO_BYTES = 4 << 20
"""What a judge remembers of inspections, in characters."""

CORRECT = Verdict(True, VerdictReason.CORRECT)
WRONG = Verdict(False, VerdictReason.WRONG)
UNPARSEABLE = Verdict(False, VerdictReason.UNPARSEABLE)


@dataclass
class JudgeStats:
    """What a judge was asked, and what it did not have to run."""

    validated: int = 0
    """Programs to validate."""
    answers: int = 0
    """Answers to check."""
    executed: int = 0
    """Calls of a program: one per input and run, and one per variant of an input."""
    variants: int = 0
    """Those of them that were of variants."""
    inspected: int = 0
    """Programs whose syntax tree was looked at: a child each."""
    shared_equal: int = 0
    """Answers that another of the same request stood for."""
    shared_own: int = 0
    """Answers that were known to be right."""
    memo_hits: int = 0
    """Calls whose outcome was remembered."""


class Judge:
    """Validates programs and checks answers on a pool of sandboxes that somebody else starts and closes."""

    def __init__(
        self,
        pool: Pool,
        settings: ExecutorSettings,
        equality: Equality = Equality.TYPE_AWARE,
        rules: ValidationRules | None = None,
    ) -> None:
        """`equality`: when an answer's value is the expected one. `rules`: none, by default."""
        self._pool = pool
        self._rules = rules or ValidationRules()
        self._equality = equality
        # The settings limit a value's encoding. An answer's text may be longer (white space, escapes), and its
        # canonical form longer again.
        self._answer_bytes = 4 * settings.output_bytes
        self._canonical_bytes = 4 * self._answer_bytes
        self._memo = Memo()
        self._facts: Recent[Facts | Outcome] = Recent(FACTS_MEMO_BYTES)
        self._turn = 0
        self.stats = JudgeStats()

    # ------------------------------------------------------------------------------------------------ validation

    async def validate(self, program: str, inputs: Sequence[str]) -> Validated | Rejection:
        """What `program` returns for `inputs` (one or more, as a model wrote them), or why it is not sound.

        Checked in this order: the inputs' form and difference; then, in the sandbox, the policy, integrity and limits;
        then, if the rules say so, whether the value depends on the input; then determinism. Raises InfrastructureError.
        """
        self.stats.validated += 1
        if not inputs:
            return Rejection(RejectionReason.INPUT_COUNT, "no input")
        try:
            given = [parse_args(text) for text in inputs]
            texts = tuple(canonical_args(args) for args in given)
        except CodecError as error:
            return Rejection(RejectionReason.UNPARSEABLE_INPUT, str(error))
        count = len(texts)
        if len(set(texts)) < count:
            return Rejection(RejectionReason.DUPLICATE_INPUT, f"{count - len(set(texts))} of {count} inputs")
        program = await self._stripped(program.strip())
        # Several inputs are each other's variants.
        looked_at = self._rules.input_dependence != "off"
        others = variants(given[0], program) if looked_at and count == 1 else []
        workers = self._two_workers()
        first = await self._execute(program, texts, workers[0], fail_fast=True, variants=others)
        outcomes, varied, detail = first[:count], first[count:], ""
        self.stats.variants += len(varied)
        if outcomes[-1].status is Status.OK:
            detail = await self._ignores_input(program, outcomes, varied) if looked_at else ""
            if detail and self._rules.input_dependence == "reject":
                return Rejection(RejectionReason.IGNORES_INPUT, detail)
            outcomes = await self._confirmed(program, texts, outcomes, workers[1])
        last = outcomes[-1]
        if last.status is not Status.OK:
            return Rejection(RejectionReason(last.status.value), last.detail)
        return Validated(program, texts, tuple(outcome.value for outcome in outcomes), ignores_input=bool(detail))

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

    def check_values(self, expected: str, answers: Sequence[str]) -> list[Verdict]:
        """Whether each of `answers`, a model's texts, is the value `expected` (canonical). Aligned; runs nothing."""
        keys = [self.read_value(answer) for answer in answers]
        return _aligned(keys, {value: self._compare(expected, value) for value in self._distinct(keys)})

    async def check_inputs(
        self, program: str, expected: str, answers: Sequence[str], known: Sequence[str] = ()
    ) -> list[Verdict]:
        """Whether `program`, which is validated, returns `expected` (canonical) for each of `answers`, inputs as a model
        wrote them. Aligned. `known`: canonical inputs of which that is known. Raises InfrastructureError.
        """
        keys = [self.read_input(answer) for answer in answers]
        distinct = self._distinct(keys)
        own = [given for given in distinct if given in known]
        self.stats.shared_own += len(own)
        left = [given for given in distinct if given not in known]
        outcomes = await self.evaluate(program, left)
        found = dict.fromkeys(own, CORRECT)
        found |= {given: self._judge(expected, outcome) for given, outcome in zip(left, outcomes, strict=True)}
        return _aligned(keys, found)

    async def check_programs(
        self, pairs: Sequence[tuple[str, str]], answers: Sequence[str], known: Sequence[str] = ()
    ) -> list[Verdict]:
        """Whether each of `answers`, programs as a model wrote them, maps every input to the output beside it (`pairs`,
        canonical). Aligned. `known`: programs of which that is known. Raises InfrastructureError.
        """
        keys = [answer.strip() for answer in answers]
        distinct = self._distinct(keys)
        verdicts = await _all(self._check_program(pairs, program, program in known) for program in distinct)
        return _aligned(keys, dict(zip(distinct, verdicts, strict=True)))

    def read_value(self, text: str) -> str | None:
        """The canonical form of a value as a model wrote it; None for text that is no literal within the budgets."""
        try:
            return canonical(parse_literal(text, self._answer_bytes))
        except CodecError:
            return None

    def read_input(self, text: str) -> str | None:
        """The canonical form of an input as a model wrote it; None for text that is no literals within the budgets."""
        try:
            return canonical_args(parse_args(text))
        except CodecError:
            return None

    async def evaluate(self, program: str, inputs: Sequence[str]) -> list[Outcome]:
        """What `program`, which is validated, does for each of these different canonical inputs; from memory where it is
        known. Raises InfrastructureError.
        """
        values = {given: self._remembered(program, given) for given in inputs}
        found = {given: Outcome(Status.OK, value) for given, value in values.items() if value is not None}
        left = [given for given in inputs if given not in found]
        alone = left
        if len(left) > 1 and "import" not in program:
            found |= dict(zip(left, await self._run(program, left), strict=True))
            # The children's values add up in one batch: who ran out of memory is asked again, alone.
            alone = [given for given in left if found[given].status is Status.MEMORY]
        for given, (outcome,) in zip(alone, await _all(self._run(program, [given]) for given in alone), strict=True):
            found[given] = outcome
        return [found[given] for given in inputs]

    def same(self, one: str, other: str) -> bool:
        """Whether two canonical texts stand for the same value, by this judge's `equality`."""
        return self._same(one, other, self._equality)

    async def _check_program(self, pairs: Sequence[tuple[str, str]], program: str, known: bool) -> Verdict:
        if known:
            self.stats.shared_own += 1
            return CORRECT
        left = []
        for given, expected in pairs:
            value = self._remembered(program, given)
            if value is None:
                left.append((given, expected))
            elif not (verdict := self._compare(expected, value)).correct:
                return verdict
        outcomes = await self._run(program, [given for given, _ in left], fail_fast=True) if left else []
        for outcome, (_, expected) in zip(outcomes, left, strict=False):
            verdict = self._judge(expected, outcome)
            if not verdict.correct:
                return verdict
        return CORRECT

    def _distinct(self, keys: Sequence[str | None]) -> list[str]:
        """The different answers of one request that can be read, in order; counts them all."""
        distinct = [key for key in dict.fromkeys(keys) if key is not None]
        self.stats.answers += len(keys)
        self.stats.shared_equal += len(keys) - keys.count(None) - len(distinct)
        return distinct

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

    def _judge(self, expected: str, outcome: Outcome) -> Verdict:
        if outcome.status is Status.OK:
            return self._compare(expected, outcome.value)
        return Verdict(False, VerdictReason(outcome.status.value))

    def _compare(self, expected: str, value: str) -> Verdict:
        return CORRECT if self._same(expected, value, self._equality) else WRONG

    def _same(self, one: str, other: str, mode: Equality) -> bool:
        """Whether two canonical texts stand for the same value."""
        if one == other:
            return True
        limit = self._canonical_bytes
        return equal(parse_literal(one, limit), parse_literal(other, limit), mode)


def _aligned(keys: Sequence[str | None], found: Mapping[str, Verdict]) -> list[Verdict]:
    """The verdict of each answer, by what makes two answers the same one; None stands for one that cannot be read."""
    return [UNPARSEABLE if key is None else found[key] for key in keys]


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
