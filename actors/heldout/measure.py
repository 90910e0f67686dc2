"""Solves the held-out tasks with the policy of one engine, outside of slots, with the run's own prompts and limits.

    consumes     what is due: the first version, every `selfplay.heldout_every`-th, and the last
    gated by     a bound on the requests in flight, so that episodes go on beside a measurement
    unblocks     the end of a run, which waits for the last version's measurement

All samples of a task are asked together, and so share its prompt in the engine's prefix cache.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from actors.engine.generation import Completion, Engine, Sampling
from actors.environment import Environment
from actors.heldout.measurement import Measurement, TaskResult, prompt_settings
from actors.heldout.tasks import SET, HeldoutTask, digest, load_tasks
from actors.kinds.registry import kind_of
from actors.parsing import FormatError, answer_of
from actors.prompt_builder import Prompt, PromptBuilder, PromptTooLong
from actors.sampler import hash_seed
from actors.settings import SelfPlaySettings
from actors.solved_examples import is_copy
from actors.token_ledger import HELD_OUT
from executor.tasks import Task

BESIDE = 4
"""Beside episodes a measurement takes the engine's places, divided by this."""
_SEED = 20_250_505
"""Of the samples: the same of every version, so that two versions differ by their weights alone."""
_LONGEST_ANSWER = 200
"""Characters of an answer that a measurement keeps."""


class _Asked(NamedTuple):
    entry: HeldoutTask
    prompt: Prompt


class Heldout:
    """Measures one engine's policy on the held-out tasks."""

    def __init__(
        self,
        engine: Engine,
        environment: Environment,
        settings: SelfPlaySettings,
        width: int,
        tasks: Sequence[HeldoutTask] | None = None,
        keep: Callable[[Measurement], object] = lambda measurement: None,
        forget: Callable[[int], object] = lambda version: None,
    ) -> None:
        """`width`: samples in flight at once, where nothing else is; `engine.max_num_seqs`, for example. `tasks`:
        others than those that ship. `keep` is called with each measurement, and `forget` with a version whose later
        ones were undone: what was kept of those no longer counts."""
        self._engine = engine
        self._environment = environment
        self._settings = settings
        self._width = width
        self._tasks = tasks
        self._keep = keep
        self._forget = forget
        self.measured = -1
        """The version that was measured last; -1: none. A run that goes on exactly sets it."""
        self._done = -1
        """The last version whose measurement ended well."""
        self._life = 0
        self._running: set[asyncio.Task[None]] = set()
        self._measuring: int | None = None
        self._work: Callable[[int], None] = lambda places: None

    async def maybe_run(self, version: int, alone: bool = False) -> dict[str, float] | None:
        """Measure, if `selfplay.heldout_every` versions have passed since the last time; None if not.

        The first version is always measured: it is what the others are compared with. A call while another is busy is
        None as well. `alone`: nothing else uses the engine. Returns the metrics of `Measurement.numbers`. Raises
        EngineAborted, InfrastructureError; a measurement that raised is not repeated before the next is due.
        """
        every = self._settings.heldout_every
        busy = self._measuring is not None
        if not every or busy or (self.measured >= 0 and version // every <= self.measured // every):
            return None
        return await self._measure(version, alone)

    async def run_last(self, version: int) -> dict[str, float] | None:
        """Measure the last version of a run, unless that was done. None where nothing is measured in this run.

        Nothing is granted any more, so the whole engine is used. Raises as `maybe_run`.
        """
        if not self._settings.heldout_every or self._done == version:
            return None
        return await self._measure(version, alone=True)

    def hurry(self) -> int | None:
        """Nothing else needs the engine any more: a measurement that goes on takes all of it. Returns its version, or
        None."""
        if self._measuring is not None:
            self._work(self._width)
        return self._measuring

    def undo(self, version: int) -> None:
        """The learner goes on from `version`, as after a restart: later versions are measured anew."""
        self.measured = min(self.measured, version)
        if self._done > version:  # whether `version` itself was measured is not known any more
            self._done = -1
        self._life += 1
        self._forget(version)

    async def _measure(self, version: int, alone: bool) -> dict[str, float]:
        self._measuring = self.measured = version
        life = self._life
        try:
            measurement = await self.run(version, alone)
        finally:
            self._measuring = None
        if life == self._life:
            self._done = version
            self._keep(measurement)
        return measurement.numbers()

    async def run(self, version: int, alone: bool = True) -> Measurement:
        """Solve every task `selfplay.heldout_samples` times with the policy that the engine runs: `version`, in name.

        Raises EngineAborted, InfrastructureError.
        """
        began = time.monotonic()
        tasks = self._tasks if self._tasks is not None else load_tasks(self._settings.heldout_tasks)
        settings = self._settings
        builder = PromptBuilder(
            self._engine.tokenizer, settings.prompt_format, settings.max_prompt_tokens, settings.induction_inputs
        )
        left: deque[_Asked] = deque()
        skipped = []
        for entry in tasks:
            try:
                left.append(_Asked(entry, builder.solve(entry.task, examples_for(entry, tasks, settings.examples))))
            except PromptTooLong:
                skipped.append(entry.name)
        order = [asked.entry.name for asked in left]
        results: dict[str, TaskResult] = {}
        newest, tokens = version, 0

        async def work() -> None:
            nonlocal newest, tokens
            while left:
                asked = left.popleft()
                completions, result = await self._solve(asked, version)
                results[asked.entry.name] = result
                tokens += sum(len(one.token_ids) for one in completions)
                newest = max([newest, *(span.version for one in completions for span in one.versions)])

        running: set[asyncio.Task[None]] = set()

        def widen(places: int) -> None:
            while len(running) < max(1, places // settings.heldout_samples):
                running.add(asyncio.ensure_future(work()))

        self._work = widen
        try:
            widen(self._width if alone else self._width // BESIDE)
            while waiting := {one for one in running if not one.done()}:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for one in done:
                    one.result()
        finally:
            await _end(running)
        return Measurement(
            set=SET,
            digest=digest(tasks),
            version=version,
            newest=newest,
            samples=settings.heldout_samples,
            temperature=settings.heldout_temperature,
            seconds=round(time.monotonic() - began, 3),
            tokens=tokens,
            skipped=tuple(skipped),
            results={name: results[name] for name in order},
            prompt_settings=prompt_settings(settings, len(tasks)),
        )

    async def _solve(self, asked: _Asked, version: int) -> tuple[list[Completion], TaskResult]:
        """All samples of one task, together: they share the prompt in the engine's prefix cache."""
        entry, prompt, settings = asked.entry, asked.prompt, self._settings
        task, kind = entry.task, kind_of(entry.task.kind)

        def sample(index: int) -> asyncio.Future[Completion]:
            name = f"{entry.name}.{index}"
            sampling = Sampling(
                max_tokens=settings.max_solve_tokens,
                temperature=settings.heldout_temperature,
                stop=prompt.stop,
                seed=hash_seed(_SEED, name) if settings.heldout_temperature else None,
            )
            return asyncio.ensure_future(
                self._engine.generate(prompt.token_ids, sampling, f"{HELD_OUT}{version}-{name}")
            )

        samples = [sample(index) for index in range(settings.heldout_samples)]
        try:
            completions = await asyncio.gather(*samples)
        finally:
            await _end(samples)
        texts = [answer_of(prompt.reply_start + one.text, settings.prompt_format) for one in completions]
        answers = [FormatError.NO_ANSWER if text is None else kind.read_answer(text) for text in texts]
        readable = [answer for answer in answers if not isinstance(answer, FormatError)]
        verdicts = iter(await self._environment.verify_all(task, readable) if readable else ())
        correct = [not isinstance(answer, FormatError) and next(verdicts).correct for answer in answers]
        copied = [False if isinstance(one, FormatError) else kind.is_copy(task, one) for one in answers]
        return list(completions), TaskResult(
            task.kind,
            entry.difficulty,
            entry.normal,
            tuple(correct),
            tuple(None if isinstance(one, FormatError) else one[:_LONGEST_ANSWER] for one in answers),
            tuple(bool(one) for one in copied) if None not in copied else (),
        )


async def _end(tasks: Collection[asyncio.Future[Any]]) -> None:
    """Cancel what still runs, and wait for it: the next measurement may use the same names of requests."""
    for one in tasks:
        one.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def examples_for(entry: HeldoutTask, tasks: Sequence[HeldoutTask], count: int) -> list[Task]:
    """The solved examples that the prompt of `entry` shows (`selfplay.examples`): of `tasks`, of the same kind and with
    other programs.

    An episode takes them from the task buffer. Here they are the same at every version, so that two measurements differ
    by their weights alone.
    """
    others = [one for one in tasks if one.task.kind == entry.task.kind] if count else []
    random.Random(entry.name).shuffle(others)
    chosen = {entry.normal: entry.task}
    for other in others:
        if len(chosen) > count:
            break
        if not is_copy(other.task):
            chosen.setdefault(other.normal, other.task)
    return list(chosen.values())[1:]
