"""Held-out tasks: small and fixed, outside of the buffer and of every batch.

A self-play run makes its own tasks, so its solve rate rises as well when its proposals become trivial. These tasks stay
what they are. They are solved greedily, outside of slots, with the run's own prompts and limits. (A proposer may come
upon one by itself: they are that small. What it trains on then is a task of its own.)
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.engine.generation import Engine, Sampling
from actors.environment import Environment
from actors.kinds.registry import kind_of, names
from actors.parsing import FormatError, answer_of
from actors.prompt_builder import Prompt, PromptBuilder, PromptTooLong
from actors.settings import SelfPlaySettings
from executor.tasks import Task

TASKS = Path(__file__).with_name("heldout.jsonl")
"""The tasks that ship; `python -m launch.shipped.heldout_tasks` writes them anew."""


@dataclass(frozen=True)
class HeldoutTask:
    """A task to measure with. `difficulty`: 1 (one operation) to 3 (two steps)."""

    name: str
    difficulty: int
    task: Task

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        task = self.task
        return {
            "name": self.name,
            "difficulty": self.difficulty,
            "kind": task.kind,
            "program": task.program,
            "inputs": list(task.inputs),
            "outputs": list(task.outputs),
            "message": task.message,
        } | ({"texts": dict(task.texts)} if task.texts else {})

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> HeldoutTask:
        """The inverse of `to_json`; raises KeyError or ValueError."""
        texts = data.get("texts", {})
        task = Task(
            data["kind"], data["program"], tuple(data["inputs"]), tuple(data["outputs"]), data["message"], texts
        )
        return cls(data["name"], int(data["difficulty"]), task)


def load_tasks(path: Path = TASKS) -> list[HeldoutTask]:
    """The held-out tasks, in the order of the file."""
    return [HeldoutTask.from_json(json.loads(line)) for line in path.read_text().splitlines()]


class Heldout:
    """Measures one engine's policy on the held-out tasks, every `selfplay.heldout_every` versions."""

    def __init__(
        self,
        engine: Engine,
        environment: Environment,
        settings: SelfPlaySettings,
        tasks: Sequence[HeldoutTask] | None = None,
    ) -> None:
        """`tasks`: others than those that ship."""
        self._engine = engine
        self._environment = environment
        self._settings = settings
        self._tasks = tasks
        self.measured = -1
        """The version that was measured last; -1: none. A run that goes on exactly sets it."""
        self._busy = False

    async def maybe_run(self, version: int) -> dict[str, float] | None:
        """Measure, if `selfplay.heldout_every` versions have passed since the last time; None if not.

        The first version is always measured: it is what the others are compared with. A call while another is busy is
        None as well. See `run` for the numbers and the errors; a measurement that raised is not repeated before the
        next is due.
        """
        every = self._settings.heldout_every
        if not every or self._busy or (self.measured >= 0 and version // every <= self.measured // every):
            return None
        self._busy = True
        self.measured = version
        try:
            return await self.run(version)
        finally:
            self._busy = False

    def undo(self, version: int) -> None:
        """The learner goes on from `version`, as after a restart: later versions are measured anew."""
        self.measured = min(self.measured, version)

    async def run(self, version: int) -> dict[str, float]:
        """Solve every task once, at temperature 0, with the policy that the engine runs: `version`, in name.

        Returns `heldout/<kind>` (share solved), `heldout/mean` (over the kinds), `heldout/difficulty_<n>`,
        `heldout/tasks`, `heldout/skipped` (tasks that do not fit into a prompt; they are in no rate), and
        `heldout/version`. Tokens that were sampled while new weights came in are of a later version. Raises
        EngineAborted, InfrastructureError.
        """
        if self._tasks is None:
            self._tasks = load_tasks()
        settings = self._settings
        builder = PromptBuilder(
            self._engine.tokenizer, settings.prompt_format, settings.max_prompt_tokens, settings.induction_inputs
        )
        prompts: list[tuple[HeldoutTask, Prompt]] = []
        for entry in self._tasks:
            try:
                prompts.append((entry, builder.solve(entry.task)))
            except PromptTooLong:
                continue
        running = [asyncio.ensure_future(self._solves(entry, prompt, version)) for entry, prompt in prompts]
        try:
            solved = await asyncio.gather(*running)
        finally:
            for task in running:
                task.cancel()
        groups: dict[str, list[bool]] = defaultdict(list)
        for (entry, _), correct in zip(prompts, solved, strict=True):
            groups[entry.task.kind].append(correct)
            groups[f"difficulty_{entry.difficulty}"].append(correct)
        rates = {name: sum(group) / len(group) for name, group in sorted(groups.items())}
        kinds = [rates[kind] for kind in names() if kind in rates]
        numbers = {f"heldout/{name}": rate for name, rate in rates.items()}
        if kinds:
            numbers["heldout/mean"] = sum(kinds) / len(kinds)
        return numbers | {
            "heldout/tasks": float(len(self._tasks)),
            "heldout/skipped": float(len(self._tasks) - len(prompts)),
            "heldout/version": float(version),
        }

    async def _solves(self, entry: HeldoutTask, prompt: Prompt, version: int) -> bool:
        sampling = Sampling(max_tokens=self._settings.max_solve_tokens, temperature=0.0, stop=prompt.stop)
        completion = await self._engine.generate(prompt.token_ids, sampling, f"heldout-{version}-{entry.name}")
        text = answer_of(prompt.reply_start + completion.text, self._settings.prompt_format)
        answer = FormatError.NO_ANSWER if text is None else kind_of(entry.task.kind).read_answer(text)
        if isinstance(answer, FormatError):
            return False
        return (await self._environment.verify(entry.task, answer)).correct
