"""Examples for the learner's supervised loss, out of labelled programs: prompts of self-play and their right responses.

The prompts are built as an episode builds them, and the responses end as an engine would end them, so what is learned
is what is sampled. One thing differs: a solver of induction sees half of all pairs of a program, where a task of play
has `selfplay.induction_inputs`. Which examples a step gets is a function of the seed, the step and the labelled
programs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from actors.constructs import asked_for
from actors.kinds.registry import kind_of
from actors.labelled import LabelledProgram
from actors.prompt_builder import Prompt, PromptBuilder, PromptTooLong
from actors.responses import response_to
from actors.settings import SelfPlaySettings
from executor.tasks import Task
from learner.sft.data import Example
from learner.trajectory import Role

Draw = Callable[[int, str], Sequence[LabelledProgram]]
"""(count, seed) -> up to that many distinct labelled programs (`TaskBuffer.labelled`)."""
PER_PROGRAM = 2
"""Most examples of one program in a step."""
PROPOSE_SHARE = 0.25
"""Share of the examples that are proposers' replies, where both roles are trained. A program is drawn once, however
often it was proposed."""


class LabelledExamples:
    """Draws and builds the examples of each step."""

    def __init__(
        self,
        draw: Draw,
        tokenizer: Any,
        settings: SelfPlaySettings,
        kinds: Mapping[Role, Sequence[str]],
        count: int,
        seed: int,
    ) -> None:
        """`kinds`: those that each role is trained on. `count`: examples a step (`learner.batch.labelled`)."""
        self._draw = draw
        self._encode: Callable[[str], list[int]] = lambda text: tokenizer.encode(text, add_special_tokens=False)
        self._settings = settings
        self._prompts = PromptBuilder(
            tokenizer, settings.prompt_format, settings.max_prompt_tokens, settings.induction_inputs
        )
        self._kinds = kinds
        self._count = count
        self._seed = seed

    def __call__(self, step: int) -> list[Example]:
        """The examples of `step`: up to the count, fewer with few programs, or where some do not fit the limits."""
        name = f"{self._seed}/labelled/{step}"
        programs, draw = self._draw(self._count, name), random.Random(name)
        count = min(self._count, PER_PROGRAM * len(programs))
        made = [self._example(programs[index % len(programs)], programs, draw) for index in range(count)]
        return [example for example in made if example is not None]

    def _example(
        self, program: LabelledProgram, others: Sequence[LabelledProgram], draw: random.Random
    ) -> Example | None:
        """An example of a random role and kind, with a random pair."""
        proposes = draw.random() < PROPOSE_SHARE
        if not self._kinds[Role.PROPOSE if proposes else Role.SOLVE]:
            proposes = not proposes
        kinds = self._kinds[Role.PROPOSE if proposes else Role.SOLVE]
        by_kind: dict[str, list[Task]] = {}
        for task in program.tasks(self._settings.induction_inputs if proposes else len(program.pairs)):
            if task.kind in kinds:
                by_kind.setdefault(task.kind, []).append(task)
        if not by_kind:
            return None
        task = draw.choice(by_kind[draw.choice(list(by_kind))])
        kind = kind_of(task.kind)
        try:
            if proposes:
                asked = asked_for(task.program, self._settings.constructs, draw) if kind.writes_program else ()
                references = self._references(task, program, others, draw)
                prompt = self._prompts.propose(task.kind, references, constructs=asked)
                return self._built(prompt, kind.proposal_reply(task), self._settings.max_propose_tokens)
            prompt = self._prompts.solve(task, self._solved(task, program, others, draw))
            return self._built(prompt, kind.answer_reply(task), self._settings.max_solve_tokens)
        except PromptTooLong:
            return None

    def _references(
        self, task: Task, program: LabelledProgram, others: Sequence[LabelledProgram], draw: random.Random
    ) -> list[Task]:
        """What a proposer of `task` is shown: tasks of other programs, or its own program where the kind is given
        one."""
        kind = kind_of(task.kind)
        if not kind.writes_program:
            return [task]
        return self._others(kind.reference_kinds, self._settings.references, program, others, draw)

    def _solved(
        self, task: Task, program: LabelledProgram, others: Sequence[LabelledProgram], draw: random.Random
    ) -> list[Task]:
        """What a solver of `task` is shown (`selfplay.examples`): tasks of its kind with other programs."""
        return self._others((task.kind,), self._settings.examples, program, others, draw)

    def _others(
        self,
        kinds: Sequence[str],
        count: int,
        program: LabelledProgram,
        others: Sequence[LabelledProgram],
        draw: random.Random,
    ) -> list[Task]:
        """Up to `count` tasks of `kinds`, each of another program than `program`."""
        pool = [other for other in others if other.normal != program.normal]
        found = [
            [one for one in other.tasks(len(other.pairs)) if one.kind in kinds]
            for other in draw.sample(pool, len(pool))
        ]
        return [draw.choice(tasks) for tasks in found if tasks][:count]

    def _built(self, prompt: Prompt, answer: str, max_tokens: int) -> Example | None:
        response = response_to(prompt, answer, self._settings.prompt_format)
        tokens = [] if response is None else self._encode(response)
        if not 0 < len(tokens) <= max_tokens:
            return None
        return Example(np.array(prompt.token_ids, dtype=np.int64), np.array(tokens, dtype=np.int64), 1.0)
