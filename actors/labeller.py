"""Labels programs: has the executor say what a proposed program returns for further inputs.

Left out is what would teach a model to copy or to guess: programs that give back what they get, or the same value
whatever they get, and programs of held-out tasks.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from actors.environment import Environment
from actors.heldout.tasks import held_out_programs
from actors.labelled import LabelledProgram
from executor.input_samples import sample_inputs
from executor.literals import parse_args
from executor.outcomes import Status
from executor.tasks import Task
from executor.values import gives_back

MIN_OUTPUTS = 2
"""Smallest number of different outputs of a program that is taken."""
MAX_OUTPUT_LENGTH = 200
"""Largest length of an output, in characters."""
SPARE = 2
"""Inputs that are tried for each pair that is wanted: for some the program fails."""


class Labeller:
    """Labels programs with one environment."""

    def __init__(self, environment: Environment, num_pairs: int) -> None:
        """`num_pairs`: the most pairs of a program, at least `MIN_OUTPUTS`."""
        self._environment = environment
        self._num_pairs = num_pairs

    async def label_all(self, found: Sequence[tuple[Task, str]], seed: str) -> list[LabelledProgram]:
        """Label the programs of validated tasks, each given with its normalised program: one for each normal form, in
        the order of their first tasks, whose inputs and message may come from any of its tasks. Raises as `label`."""
        groups: dict[str, list[Task]] = {}
        for task, normal in found:
            groups.setdefault(normal, []).append(task)
        labelled = []
        for normal, tasks in groups.items():
            message = next((task.message for task in tasks if task.message), "")
            inputs = [given for task in tasks[1:] for given in task.inputs]
            labelled.append(await self.label(replace(tasks[0], message=message), normal, seed, inputs))
        return [one for one in labelled if one is not None]

    async def label(self, task: Task, normal: str, seed: str, inputs: Sequence[str] = ()) -> LabelledProgram | None:
        """The program of `task`, which is validated, with its own pairs and further ones; None for one that is left
        out.

        `inputs`: further canonical inputs to try first; others are a function of the task's first input, of the program
        and of `seed`. Raises InfrastructureError.
        """
        if normal in held_out_programs():
            return None
        args, draw = parse_args(task.inputs[0]), random.Random(f"{seed}/{normal}")
        sampled = sample_inputs(args, SPARE * self._num_pairs, draw)
        more = [given for given in dict.fromkeys([*inputs, *sampled]) if given not in task.inputs]
        more = more[: SPARE * self._num_pairs]
        outcomes = await self._environment.evaluate(task.program, more)
        found = [*zip(task.inputs, task.outputs, strict=True)]
        found += [(given, one.value) for given, one in zip(more, outcomes, strict=True) if one.status is Status.OK]
        pairs = self._chosen(found)
        if len({output for _, output in pairs}) < MIN_OUTPUTS:
            return None
        return LabelledProgram(task.program, normal, tuple(pairs), task.message)

    def _chosen(self, found: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Pairs whose output is none of the arguments, few of them with the same output."""
        often = max(1, self._num_pairs // 2)
        outputs: Counter[str] = Counter()
        pairs: list[tuple[str, str]] = []
        for given, output in found:
            copied = gives_back(parse_args(given), output)
            if copied or len(output) > MAX_OUTPUT_LENGTH or outputs[output] == often or len(pairs) == self._num_pairs:
                continue
            outputs[output] += 1
            pairs.append((given, output))
        return pairs
