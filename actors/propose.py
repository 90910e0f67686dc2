"""The proposer's side of an episode: write the prompt, then read and judge the reply, before it is solved."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from weakref import WeakValueDictionary

from actors.buffer.task_buffer import Buffer
from actors.completed import Completed, Completer
from actors.composite import composite, definitions, fit
from actors.constructs import draw_constructs, uses
from actors.engine.generation import Completion
from actors.environment import Environment
from actors.heldout.tasks import is_held_out
from actors.kinds.registry import forms_of, kind_of, names
from actors.labeller import Labeller
from actors.metrics import text_number
from actors.parsing import FormatError, answer_of
from actors.prompt_builder import Prompt, PromptTooLong
from actors.rewards import COMPLEXITY_SCALE, HALSTEAD_SCALE, distance, saturating
from actors.sampler import Sampler
from executor.inspection import Facts
from executor.outcomes import InfrastructureError
from executor.tasks import Proposal, Rejection, RejectionReason, Task

_LOG = logging.getLogger(__name__)

REDRAWS = 16
"""Draws from the buffer before it counts as having nothing that fits a prompt."""
REMEMBERED_OUTPUTS = 1000
"""Valid proposals of a kind that answer diversity looks back on."""


class ProposalOutcome(StrEnum):
    """The outcome of a proposal that could be read and that the judge did not reject."""

    VALID = "valid"
    TOO_LONG = "too_long"
    """A sound task, too long for a solver's prompt (`selfplay.max_prompt_tokens`): it does not enter the buffer."""
    DUPLICATE = "duplicate"
    """A sound task that the buffer has already (`selfplay.novelty = "reject"`)."""
    HELD_OUT = "held_out"
    """A sound task that is held out: it is neither stored, solved nor trained."""


@dataclass(frozen=True)
class Brief:
    """The prompt of an episode's proposals, with the tasks that it shows."""

    kind: str
    prompt: Prompt
    references: tuple[tuple[int, Task], ...]
    """References that the prompt shows: ids and tasks."""
    earlier: tuple[tuple[int, Task], ...] = ()
    """Tasks whose programs are g_0, g_1, ...: ids and tasks."""
    constructs: tuple[str, ...] = ()
    """Constructs that the prompt names."""


@dataclass(frozen=True)
class Draft:
    """A proposer's reply, judged. With a task it is valid, and fits a solver's prompt."""

    completion: Completion
    outcome: str
    """Value of the `FormatError`, `RejectionReason` or `ProposalOutcome`."""
    execute_s: float
    task: Task | None = None
    normal: str = ""
    """The normalised program: the buffer takes two programs with the same one for the same."""
    parts: dict[str, float] = field(default_factory=dict)
    """Measures of the program: `ignores_input`, `nodes`, `complexity`, `distance`, ...; `program` is its number."""
    measures: dict[str, float] = field(default_factory=dict)
    """Intrinsic measures, 0..1, by the names of `IntrinsicSettings`."""
    completed: Completed | None = None
    """The task that the executor made of a proposal without a fitting input (`selfplay.complete_inputs`)."""


class RecentOutputs:
    """The outputs of the last tasks of one kind, and how much another differs from them."""

    def __init__(self, limit: int = REMEMBERED_OUTPUTS) -> None:
        self._limit = limit
        self._outputs: deque[tuple[str, ...]] = deque()
        self._counts: Counter[tuple[str, ...]] = Counter()

    def diversity(self, outputs: tuple[str, ...]) -> float:
        """1 - the share of `outputs` among those remembered (1 for the first of all); then remembers them."""
        share = self._counts[outputs] / len(self._outputs) if self._outputs else 0.0
        self._outputs.append(outputs)
        self._counts[outputs] += 1
        if len(self._outputs) > self._limit:
            oldest = self._outputs.popleft()
            self._counts[oldest] -= 1
            if not self._counts[oldest]:
                del self._counts[oldest]
        return 1.0 - share

    def state(self) -> list[list[str]]:
        """The remembered outputs, oldest first, as plain data."""
        return [list(outputs) for outputs in self._outputs]

    def load(self, state: Iterable[Iterable[str]]) -> None:
        """Replace the remembered outputs by those that `state` returned."""
        self._outputs = deque(tuple(outputs) for outputs in state)
        self._counts = Counter(self._outputs)


class Proposer(ABC):
    """Asks for tasks with one sampler and one buffer. Who reads and judges the replies is left to `draft`."""

    def __init__(self, sampler: Sampler, buffer: Buffer) -> None:
        self._sampler = sampler
        self._settings = sampler.settings
        self._buffer = buffer
        self.recent = {kind: RecentOutputs() for kind in names()}
        """By kind: the outputs that answer diversity is measured against."""

    async def brief(self, kind: str, number: int | str) -> Brief | None:
        """The prompt of one episode, drawn by `number`; None where nothing that the buffer gives fits into a prompt."""
        asked = kind_of(kind)
        count = self._settings.references if asked.writes_program else 1
        earlier = await self._earlier(kind, number) if asked.writes_program else ()
        constructs = self._constructs(number) if asked.writes_program else ()
        for attempt in range(REDRAWS):
            salt = self._sampler.salt(number, f"references{attempt or ''}")
            references = await self._buffer.references(asked.reference_kinds, count, salt)
            if not references and not asked.writes_program:
                return None
            for given in (earlier, ()) if earlier else ((),):
                text = definitions([task.program for _, task in given]) if given else ""
                try:
                    prompt = self._sampler.prompts.propose(kind, [task for _, task in references], text, constructs)
                except PromptTooLong:
                    self._sampler.counts["prompts_too_long"] += 1
                    continue
                self._sampler.counts["references_left_out"] += len(references) - prompt.num_references
                shown = tuple(references[len(references) - prompt.num_references :])
                return Brief(kind, prompt, shown, tuple(given), constructs)
            if asked.writes_program:
                return None  # it does not fit without references either
        return None

    def _constructs(self, number: int | str) -> tuple[str, ...]:
        return draw_constructs(self._settings.constructs, self._sampler.draw(number, "constructs"))

    async def _earlier(self, kind: str, number: int | str) -> tuple[tuple[int, Task], ...]:
        """Tasks whose programs the new f may call; none in most episodes, or where the buffer has no fit ones."""
        share = self._settings.composite_functions
        if not share or self._sampler.draw(number, "composite") / 2**63 >= share:
            return ()
        count = 1 + self._sampler.draw(number, "composite-count") % self._settings.composite_max
        drawn = await self._buffer.references((kind,), 4 * count, self._sampler.salt(number, "composite"))
        return tuple((task_id, task) for task_id, task in drawn if fit(task.program))[-count:]

    @abstractmethod
    async def draft(self, brief: Brief, name: str) -> Draft:
        """Sample one proposal and judge it. `name`: unique among the actor's requests."""


class ModelProposer(Proposer):
    """Has a model propose, reads its replies, and has one environment judge them."""

    def __init__(self, sampler: Sampler, environment: Environment, buffer: Buffer) -> None:
        super().__init__(sampler, buffer)
        self._environment = environment
        self._labeller = Labeller(environment, pairs) if (pairs := self._settings.label_pairs) else None
        self._labelling: WeakValueDictionary[tuple[str, bool], asyncio.Lock] = WeakValueDictionary()
        """By normalised program, and whether its task has a message: held while it is being labelled."""
        self._completer = Completer(environment) if self._settings.complete_inputs else None

    async def draft(self, brief: Brief, name: str) -> Draft:
        """See `Proposer`. What the environment could not judge raises, and is never a verdict."""
        completion = await self._sampler.generate(brief.prompt, self._settings.max_propose_tokens, name)
        started = time.monotonic()
        draft = await self._judge(brief, completion)
        if self._completer is None or draft.task is not None or draft.outcome == ProposalOutcome.HELD_OUT.value:
            return draft
        completed = await self._complete(self._completer, brief, completion)
        return replace(draft, completed=completed, execute_s=time.monotonic() - started)

    async def _complete(self, completer: Completer, brief: Brief, completion: Completion) -> Completed | None:
        """The task of a proposal that is no valid one, with an input of the executor's, labelled as others are."""
        text = answer_of(brief.prompt.reply_start + completion.text, self._settings.prompt_format)
        if text is None or brief.earlier or not kind_of(brief.kind).writes_program:
            return None
        found = await completer.complete(brief.kind, text, self._sampler.salt(0, "input"))
        if found is None:
            return None
        try:
            for form in forms_of(found.task):
                self._sampler.prompts.solve(form)
        except PromptTooLong:
            return None
        self._sampler.counts["tasks_completed"] += 1
        if self._labeller is not None:
            await self._label(found.task, found.normal)
        return found

    async def _judge(self, brief: Brief, completion: Completion) -> Draft:
        """Read and judge a reply."""
        proposal = self._read(brief, completion)
        if isinstance(proposal, FormatError):
            return Draft(completion, proposal.value, 0.0)
        started = time.monotonic()
        task = await self._environment.validate(proposal)
        if isinstance(task, Rejection):
            ignores = {"ignores_input": 1.0} if task.reason is RejectionReason.IGNORES_INPUT else {}
            return Draft(completion, task.reason.value, time.monotonic() - started, parts=ignores)
        try:
            self._sampler.prompts.solve(task)
        except PromptTooLong:
            self._sampler.counts["tasks_too_long"] += 1
            return Draft(completion, ProposalOutcome.TOO_LONG.value, time.monotonic() - started)
        facts = await self._environment.inspect(task.program)
        normal = facts.normal if facts else task.program
        if is_held_out(task, normal):
            self._sampler.counts["tasks_held_out"] += 1
            return Draft(completion, ProposalOutcome.HELD_OUT.value, time.monotonic() - started)
        parts, measures = await self._describe(brief, task, facts)
        if self._labeller is not None and facts is not None:
            await self._label(task, facts.normal)
        return Draft(
            completion,
            ProposalOutcome.VALID.value,
            time.monotonic() - started,
            task,
            normal,
            parts | {"program": text_number(normal)},
            measures,
        )

    async def _label(self, task: Task, normal: str) -> None:
        """Label the program of a valid task for the supervised loss, unless that was done in this run.

        A kill meanwhile leaves it to do for the next task with this program. A failure of the sandbox leaves the
        program out: another look at it might fail as well, and would end the episode. Two actors that propose the same
        program at once both label it.
        """
        assert self._labeller is not None
        name = normal, bool(task.message)
        async with self._labelling.setdefault(name, asyncio.Lock()):
            if await self._buffer.needs_label(*name):
                try:
                    labelled = await self._labeller.label(task, normal, self._sampler.salt(0, "label"))
                except InfrastructureError as error:
                    self._sampler.counts["labels_failed"] += 1
                    _LOG.warning("a program is left out of the labels: %s", error)
                    labelled = None
                if labelled is not None:
                    await self._buffer.label(labelled)
                await self._buffer.label_tried(*name)

    def _read(self, brief: Brief, completion: Completion) -> Proposal | FormatError:
        text = answer_of(brief.prompt.reply_start + completion.text, self._settings.prompt_format)
        if text is None:
            return FormatError.NO_ANSWER
        references = [task for _, task in brief.references]
        proposal = kind_of(brief.kind).read_proposal(text, references, self._settings.induction_inputs)
        if isinstance(proposal, FormatError) or not brief.earlier:
            return proposal
        whole = composite(proposal.program, [task.program for _, task in brief.earlier])
        return replace(proposal, program=whole)

    async def _describe(
        self, brief: Brief, task: Task, facts: Facts | None
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Parts and measures of a valid proposal. A proposer that did not write the program is paid nothing for it."""
        kind = kind_of(task.kind)
        diversity = self.recent[task.kind].diversity(task.outputs)
        parts = {"answer_diversity": diversity, "ignores_input": float(task.ignores_input)}
        measures = {"answer_diversity": diversity}
        parts |= {f"fact/{name}": value for name, value in kind.facts(task).items()}
        if brief.constructs:
            used = [uses(task.program, construct) for construct in brief.constructs]
            parts["constructs"] = sum(used) / len(used)
        if brief.earlier:
            parts["composite"] = float("_make_g" in task.program)
        if facts is None:
            return parts, measures
        parts |= {
            "nodes": float(facts.nodes),
            "complexity": float(facts.complexity),
            "halstead": facts.halstead,
        }
        if not kind.writes_program:
            return parts, measures
        measures["complexity"] = saturating(facts.complexity, COMPLEXITY_SCALE)
        measures["halstead"] = saturating(facts.halstead, HALSTEAD_SCALE)
        shapes = []
        for _, reference in brief.references:
            known = await self._environment.inspect(reference.program)
            if known is not None:
                shapes.append(known.shape)
        if shapes:
            parts["distance"] = sum(distance(facts.shape, shape) for shape in shapes) / len(shapes)
            measures["distance"] = parts["distance"]
        return parts, measures
