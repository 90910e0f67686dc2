"""Writes the held-out tasks: `python -m launch.shipped.heldout_tasks` makes `actors/heldout/tasks.jsonl` anew.

The programs and inputs are written by hand (`heldout_programs.py`); the outputs are what the sandbox says. Every
program gives a task of each kind, with one exception: where the output, given back as the input, gives the output once
more (`s.upper()`), abduction would be solved by copying. There the next program of the same difficulty gives a second
abduction task in its place.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict

from actors.environment import Environment
from actors.heldout.tasks import TASKS, HeldoutTask
from executor.judge import Judge
from executor.pool import SerialPool
from executor.settings import ExecutorSettings
from executor.tasks import Proposal, Rejection, Task
from launch.shipped.heldout_programs import Program, programs


def ordered() -> list[Program]:
    """The programs in an order in which difficulties are balanced among the first N, whatever N is."""
    by_difficulty: dict[int, list[Program]] = defaultdict(list)
    for program in programs():
        by_difficulty[program.difficulty].append(program)
    placed = []
    for difficulty, group in by_difficulty.items():
        random.Random(difficulty).shuffle(group)  # the table has programs on numbers first
        placed += [((index + 0.5) / len(group), program) for index, program in enumerate(group)]
    return [program for _, program in sorted(placed, key=lambda one: (one[0], one[1].difficulty))]


async def make(environment: Environment) -> list[HeldoutTask]:
    """All tasks, their outputs computed and their determinism checked. Raises ValueError for one that is no task."""

    async def task_of(number: int, program: Program, kind: str, inputs: tuple[str, ...], letter: str) -> HeldoutTask:
        message = program.message if kind == "induction" else ""
        task = await environment.validate(Proposal(kind, program.text, inputs, message))
        facts = await environment.inspect(program.text)
        if isinstance(task, Rejection) or facts is None:
            raise ValueError(f"{program.text}: {task}")
        return HeldoutTask(f"{kind}-{number:03d}{letter}", program.difficulty, task, facts.normal)

    async def is_copied(task: Task) -> bool:
        return (await environment.verify(task, task.outputs[0])).correct

    found = list(enumerate(ordered()))
    abductions: list[list[HeldoutTask]] = []
    for number, program in found:
        tasks = [
            await task_of(number, program, "abduction", (given,), letter)
            for given, letter in zip((program.inputs[1], program.inputs[3]), ("", "b"), strict=True)
        ]
        abductions.append([one for one in tasks if not await is_copied(one.task)])
    made = []
    spare = {number: tasks[1] for number, tasks in enumerate(abductions) if len(tasks) > 1}
    for number, program in found:
        if abductions[number]:
            abduction = abductions[number][0]
        else:
            near = [other for other, one in spare.items() if one.difficulty == program.difficulty]
            abduction = spare.pop(min(near, key=lambda other: abs(other - number)))
        made += [
            await task_of(number, program, "deduction", program.inputs[:1], ""),
            abduction,
            await task_of(number, program, "induction", program.inputs, ""),
        ]
    return made


async def _main() -> None:
    settings = ExecutorSettings()
    pool = SerialPool(settings)
    await pool.start()
    try:
        made = await make(Environment(Judge(pool, settings)))
    finally:
        await pool.close()
    TASKS.write_text("".join(json.dumps(task.to_json(), allow_nan=False) + "\n" for task in made))
    print(f"{len(made)} tasks in {TASKS}")


if __name__ == "__main__":
    asyncio.run(_main())
