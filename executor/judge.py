"""The judge: it finds what programs return, whether they do so every time, and whether an answer is right.

The judge knows no kind of task. It offers what every kind is made of (`actors/kinds/`):

    validate         a program and its inputs: what it returns, if it is sound
    check_values     answers that are values, against a value
    check_inputs     answers that are inputs, against what a program should return for them
    check_programs   answers that are programs, against pairs of input and output
    read_value, read_input, evaluate, same    the parts of these, for other rules

Model text reaches this process as text and literals only. Programs run in sandboxes, expected outputs never go there,
and every comparison is made here, on decoded values. A failure of the sandbox itself is raised (InfrastructureError),
never judged.

A verdict is a function of the program, the input and the expected value. Every input has a child of its own. Work is
shared where that can't change a verdict:

- Answers of one request that are the same (the same canonical value; for programs, the same text) are judged once.
- Comparing values runs nothing. An answer that is known to be right (`known`: the task's own) is correct without a run.
- What a program returned for an input is remembered (`Memo`), for answers that come back when a task is replayed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from executor.determinism import MAX_OTHERS, further_runs, may_vary, second_run, seeds_for, short
from executor.inspection import Facts
from executor.literals import parse_args, parse_literal
from executor.memo import MEMO_BYTES, Memo, Recent
from executor.outcomes import Limits, Outcome, Status, complete
from executor.pool import Pool
from executor.settings import ExecutorSettings
from executor.tasks import Rejection, RejectionReason, Validated, ValidationRules, Verdict, VerdictReason
from executor.values import CodecError, Equality, canonical, canonical_args, equal, gives_back
from executor.variants import variants

T = TypeVar("T")

VARIANTS_SHARE = 0.25
"""Share of one input's time that all its variants together may take."""
FACTS_MEMO_BYTES = 4 << 20
"""Size of a judge's memory of inspections, in characters."""

CORRECT = Verdict(True, VerdictReason.CORRECT)
WRONG = Verdict(False, VerdictReason.WRONG)
UNPARSEABLE = Verdict(False, VerdictReason.UNPARSEABLE)


@dataclass
class JudgeStats:
    """Counters of a judge: requests, calls of programs, and calls saved."""

    validated: int = 0
    """Programs to validate."""
    answers: int = 0
    """Answers to check."""
    executed: int = 0
    """Calls of a program: one per input and run, and one per variant of an input."""
    variants: int = 0
    """The calls among them for variants."""
    inspected: int = 0
    """Programs that were inspected, each in a child."""
    shared_equal: int = 0
    """Answers that are the same as another of their request."""
    shared_own: int = 0
    """Answers known to be right without a run."""
    memo_hits: int = 0
    """Calls whose outcome was remembered."""


class Judge:
    """Validates programs and checks answers on a pool of sandboxes, which the caller starts and closes."""

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
        self._limits = Limits.of(settings)
        # The settings limit a value's encoding. An answer's text may be longer (white space, escapes), and its
        # canonical form longer again.
        self._answer_bytes = 4 * settings.output_bytes
        self._canonical_bytes = 4 * self._answer_bytes
        self._validated = Memo(MEMO_BYTES // 2)
        self._answered = Memo(MEMO_BYTES // 2)
        self._facts: Recent[Facts | Outcome] = Recent(FACTS_MEMO_BYTES)
        self.stats = JudgeStats()

    # ------------------------------------------------------------------------------------------------ validation

    async def validate(self, program: str, inputs: Sequence[str]) -> Validated | Rejection:
        """Find the outputs of `program` for `inputs` (one or more, as a model wrote them), or why it is not sound.

        Checked in this order: the inputs' form and difference; then, in the sandbox, the policy, integrity and limits;
        then, if the rules say so, whether the value is an argument, and whether it depends on the input; then
        determinism. Raises InfrastructureError.
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
        others = variants(given[0], program) if count == 1 else []
        seeds = self._seeds(program, texts)
        outcomes = await self._execute(program, texts, seeds[0], fail_fast=True)
        detail = ""
        if outcomes[-1].status is Status.OK:
            if self._rules.reject_copies and all(
                gives_back(args, outcome.value) for args, outcome in zip(given, outcomes, strict=True)
            ):
                return Rejection(RejectionReason.COPIES_INPUT, short(outcomes[0]))
            if self._rules.input_dependence != "off":
                detail = await self._ignores_input(program, outcomes, others, seeds[0])
                if detail and self._rules.input_dependence == "reject":
                    return Rejection(RejectionReason.IGNORES_INPUT, detail)
            outcomes = await self._confirmed(program, texts, outcomes, seeds[1:], others)
        last = outcomes[-1]
        if last.status is not Status.OK:
            return Rejection(RejectionReason(last.status.value), last.detail)
        return Validated(program, texts, tuple(outcome.value for outcome in outcomes), ignores_input=bool(detail))

    async def inspect(self, program: str) -> Facts | None:
        """Find the facts of `program`; None if it does not parse, or cannot be read within the limits.

        They are remembered; the first time costs a child. Raises InfrastructureError.
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

    async def _ignores_input(self, program: str, outcomes: Sequence[Outcome], others: Sequence[str], seed: int) -> str:
        """Why it is taken that `program`, which gave `outcomes` for its inputs, ignores them; "" if it does not.

        Several inputs, or an input and those of its variants (`others`) that the program takes, must not all give one
        value. Where no variant ran, the program must at least read a parameter.
        """
        limits = replace(self._limits, timeout_s=VARIANTS_SHARE * self._limits.timeout_s)
        varied = await self._pool.probe(program, others, seed, limits=limits, stop_at_difference=True) if others else []
        self.stats.executed += len(varied)
        self.stats.variants += len(varied)
        values = [outcome.value for outcome in [*outcomes, *varied] if outcome.status is Status.OK]
        if len(values) > 1:
            return f"{short(outcomes[0])} for {len(values)} inputs" if len(set(values)) == 1 else ""
        facts = await self.inspect(program)
        return "" if facts is None or facts.uses_input else "no parameter is read"

    async def determine(self, program: str, given: str, limits: Limits | None = None) -> Outcome:
        """Run `program` on one input as `validate` does; the outcome of all runs, or NONDETERMINISTIC.

        Raises values.CodecError for an input that is not literals, InfrastructureError.
        """
        program, args = program.strip(), parse_args(given)
        inputs = (canonical_args(args),)
        seeds = self._seeds(program, inputs)
        first = await self._execute(program, inputs, seeds[0], fail_fast=True, limits=limits)
        if first[-1].status is Status.OK:
            first = await self._confirmed(program, inputs, first, seeds[1:], variants(args, program), limits)
        return first[-1]

    def _seeds(self, program: str, inputs: Sequence[str]) -> list[int]:
        return seeds_for(program, inputs, self._pool.workers, self._pool.seeds)

    async def _confirmed(
        self,
        program: str,
        inputs: Sequence[str],
        first: list[Outcome],
        seeds: Sequence[int],
        others: Sequence[str],
        limits: Limits | None = None,
    ) -> list[Outcome]:
        """The outcomes `first`, which are ok, if the runs under `seeds` agree; otherwise one that says what does not.

        They wait for the first: most proposals fail that one.
        """
        found = await self._second_run(program, inputs, first, seeds[0], limits)
        if found is None and may_vary(program, inputs):
            tried = [*inputs, *others[:MAX_OTHERS]]
            found = await further_runs(self._pool, program, tried, first, seeds[1:], self._exactly_same, limits)
            self.stats.executed += len(tried) * len(seeds[1:])
        return first if found is None else [found]

    async def _second_run(
        self, program: str, inputs: Sequence[str], first: list[Outcome], seed: int, limits: Limits | None = None
    ) -> Outcome | None:
        self.stats.executed += len(inputs)
        return await second_run(self._pool, program, inputs, first, seed, self._exactly_same, limits)

    # --------------------------------------------------------------------------------------------------- answers

    def check_values(self, expected: str, answers: Sequence[str]) -> list[Verdict]:
        """Compare each of `answers`, a model's texts, with the value `expected` (canonical). Aligned; runs nothing."""
        keys = [self.read_value(answer) for answer in answers]
        return _aligned(keys, {value: self._compare(expected, value) for value in self._distinct(keys)})

    async def check_inputs(
        self, program: str, expected: str, answers: Sequence[str], known: Sequence[str] = ()
    ) -> list[Verdict]:
        """Check for each of `answers`, inputs as a model wrote them, that `program` returns `expected` (canonical).

        Aligned. `program` is validated; `known`: canonical inputs known to be right. Raises InfrastructureError.
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
        """Check for each of `answers`, programs as a model wrote them, that it maps every input to its output.

        Aligned. `pairs`: inputs and outputs, canonical; `known`: programs known to be right. Raises
        InfrastructureError.
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
        """Find the outcome of `program`, which is validated, for each of these distinct canonical inputs.

        An outcome that is remembered costs no run. A program that may vary is run twice, and is NONDETERMINISTIC where
        the runs disagree. Raises InfrastructureError.
        """
        return await _all(self._evaluate(program, given) for given in inputs)

    async def _evaluate(self, program: str, given: str) -> Outcome:
        if (value := self._remembered(self._validated, program, given)) is not None:
            return Outcome(Status.OK, value)
        inputs = (given,)
        first, second = self._seeds(program, inputs)[:2]
        outcomes = await self._execute(program, inputs, first)
        if outcomes[0].status is Status.OK:
            varies = may_vary(program, inputs)
            if varies and (found := await self._second_run(program, inputs, outcomes, second)):
                return found
            self._validated.put(program, given, outcomes[0].value)
        return outcomes[0]

    def same(self, one: str, other: str) -> bool:
        """Whether two canonical texts stand for the same value, by this judge's `equality`."""
        return self._same(one, other, self._equality)

    async def _check_program(self, pairs: Sequence[tuple[str, str]], program: str, known: bool) -> Verdict:
        if known:
            self.stats.shared_own += 1
            return CORRECT
        left = []
        for given, expected in pairs:
            value = self._remembered(self._answered, program, given)
            if value is None:
                left.append((given, expected))
            elif not (verdict := self._compare(expected, value)).correct:
                return verdict
        for given, expected in left:
            inputs = (given,)
            first, second = self._seeds(program, inputs)[:2]
            outcomes = await self._execute(program, inputs, first)
            if not (verdict := self._judge(expected, outcomes[0])).correct:
                if outcomes[0].status is Status.OK:
                    self._answered.put(program, given, outcomes[0].value)
                return verdict
            # What may vary is correct only if it is so twice, and not by luck.
            if may_vary(program, inputs) and (found := await self._second_run(program, inputs, outcomes, second)):
                return self._judge(expected, found)
            self._answered.put(program, given, outcomes[0].value)
        return CORRECT

    def _distinct(self, keys: Sequence[str | None]) -> list[str]:
        """The different answers of one request that can be read, in order; counts them all."""
        distinct = [key for key in dict.fromkeys(keys) if key is not None]
        self.stats.answers += len(keys)
        self.stats.shared_equal += len(keys) - keys.count(None) - len(distinct)
        return distinct

    # --------------------------------------------------------------------------------------------------- the pool

    async def _execute(
        self,
        program: str,
        inputs: Sequence[str],
        seed: int | None = None,
        *,
        limits: Limits | None = None,
        fail_fast: bool = False,
    ) -> list[Outcome]:
        outcomes = await self._pool.execute(program, inputs, seed, limits=limits, fail_fast=fail_fast)
        self.stats.executed += len(outcomes)
        return complete(outcomes, len(inputs), fail_fast)

    def _remembered(self, memo: Memo, program: str, given: str) -> str | None:
        value = memo.get(program, given)
        self.stats.memo_hits += value is not None
        return value

    def _judge(self, expected: str, outcome: Outcome) -> Verdict:
        if outcome.status is Status.OK:
            return self._compare(expected, outcome.value)
        return Verdict(False, VerdictReason(outcome.status.value))

    def _compare(self, expected: str, value: str) -> Verdict:
        return CORRECT if self._same(expected, value, self._equality) else WRONG

    def _exactly_same(self, one: str, other: str) -> bool:
        return self._same(one, other, Equality.TYPE_AWARE)

    def _same(self, one: str, other: str, mode: Equality) -> bool:
        """Whether two canonical texts stand for the same value."""
        if one == other:
            return True
        limit = self._canonical_bytes
        return equal(parse_literal(one, limit), parse_literal(other, limit), mode)


def _aligned(keys: Sequence[str | None], found: Mapping[str, Verdict]) -> list[Verdict]:
    """The verdict of each answer, by what makes two answers the same one; None stands for one that cannot be read."""
    return [UNPARSEABLE if key is None else found[key] for key in keys]


async def _all(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run them together, all to their end; then the first failure is raised."""
    results = await asyncio.gather(*coroutines, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]
