"""Writes the held-out tasks: `python -m launch.shipped.heldout_tasks` makes `actors/heldout.jsonl` anew.

The programs and inputs are written by hand below; the outputs are what the sandbox says. Each program gives one task of
each kind: deduction asks for the first input's output, abduction for an input that gives the second input's output,
induction for the program from the first half of its pairs. Difficulty 1: what the prompt's own example or one operation
shows; 2: one idiom of Python; 3: two steps, a loop or a condition. They are small on purpose: a model of 135M
parameters must be able to solve some, or a curve over a run shows nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import NamedTuple

from actors.environment import Environment
from actors.heldout import TASKS, HeldoutTask
from executor.judge import Judge
from executor.pool import SerialPool
from executor.settings import ExecutorSettings
from executor.tasks import Proposal, Rejection


class Source(NamedTuple):
    """One function, by hand. Four inputs: two to show, two to hide."""

    difficulty: int
    parameters: str
    body: str
    message: str
    inputs: tuple[str, str, str, str]

    @property
    def program(self) -> str:
        """The function's text."""
        return f"def f({self.parameters}):\n    {self.body}"


SOURCES = (
    # -- 1: one operation
    Source(1, "x", "return x", "f gives back its argument.", ("5", "'tea'", "[1, 2]", "-3")),
    Source(1, "x", "return x + 1", "f adds 1.", ("3", "9", "20", "-1")),
    Source(1, "x", "return x - 1", "f takes 1 away.", ("8", "4", "1", "30")),
    Source(1, "x", "return x + 10", "f adds 10.", ("2", "15", "40", "0")),
    Source(1, "x", "return x * 2", "f doubles.", ("4", "7", "11", "0")),
    Source(1, "x", "return x * 10", "f multiplies by 10.", ("3", "6", "12", "1")),
    Source(1, "x", "return -x", "f changes the sign.", ("6", "2", "-9", "0")),
    Source(1, "x", "return x * x", "f squares.", ("3", "5", "10", "1")),
    Source(1, "a, b", "return a + b", "f adds two numbers.", ("2, 3", "10, 5", "7, 7", "0, 4")),
    Source(1, "a, b", "return a - b", "f subtracts.", ("9, 4", "6, 1", "12, 12", "3, 5")),
    Source(1, "a, b", "return a * b", "f multiplies two numbers.", ("3, 4", "2, 8", "5, 0", "6, 6")),
    Source(1, "a, b", "return a", "f gives back its first argument.", ("1, 2", "'x', 'y'", "0, 9", "7, 7")),
    Source(1, "a, b", "return b", "f gives back its second argument.", ("1, 2", "'x', 'y'", "0, 9", "5, 7")),
    Source(1, "x", "return x > 0", "f says whether a number is positive.", ("4", "-2", "10", "0")),
    Source(1, "x", "return x > 5", "f says whether a number is above 5.", ("9", "2", "6", "1")),
    Source(1, "s", "return s + '!'", "f adds an exclamation mark.", ("'hi'", "'go'", "'wow'", "''")),
    Source(1, "s", "return s + s", "f says it twice.", ("'ab'", "'no'", "'x'", "'cat'")),
    Source(1, "s", "return 'a' + s", "f puts an a in front.", ("'bc'", "'t'", "'way'", "''")),
    Source(1, "s", "return len(s)", "f counts the characters.", ("'cat'", "'house'", "'a'", "''")),
    Source(1, "s", "return s.upper()", "f makes capital letters.", ("'dog'", "'tree'", "'a b'", "'X'")),
    Source(1, "s", "return s.lower()", "f makes small letters.", ("'DOG'", "'Sun'", "'A B'", "'x'")),
    Source(1, "a", "return a[0]", "f gives the first item.", ("[7, 8, 9]", "[3, 1]", "[5]", "[0, 4, 4]")),
    Source(1, "a", "return len(a)", "f counts the items.", ("[1, 2, 3]", "[5, 5]", "[]", "[9, 8, 7, 6]")),
    Source(1, "x", "return [x]", "f puts its argument into a list.", ("4", "'a'", "0", "-2")),
    # -- 2: one idiom
    Source(2, "a", "return a[-1]", "f gives the last item.", ("[7, 8, 9]", "[3, 1]", "[5]", "[0, 4, 6]")),
    Source(2, "s", "return s[0]", "f gives the first letter.", ("'sun'", "'moon'", "'a'", "'Big'")),
    Source(2, "s", "return s[::-1]", "f turns a text around.", ("'abc'", "'no'", "'top'", "'ab'")),
    Source(2, "a", "return a[::-1]", "f turns a list around.", ("[1, 2, 3]", "[4, 5]", "[6]", "[9, 0, 9, 1]")),
    Source(2, "a", "return sum(a)", "f adds up the items.", ("[1, 2, 3]", "[10, 5]", "[]", "[4, 4, 4]")),
    Source(2, "a", "return max(a)", "f gives the largest item.", ("[3, 9, 2]", "[1, 4]", "[7]", "[-1, -5]")),
    Source(2, "a", "return min(a)", "f gives the smallest item.", ("[3, 9, 2]", "[1, 4]", "[7]", "[-1, -5]")),
    Source(2, "a", "return sorted(a)", "f sorts.", ("[3, 1, 2]", "[9, 8]", "[]", "[5, 7, 5]")),
    Source(2, "x", "return x % 2 == 0", "f says whether a number is even.", ("4", "7", "0", "11")),
    Source(2, "x", "return x % 3", "f gives the remainder by 3.", ("5", "7", "9", "2")),
    Source(2, "x", "return x // 2", "f halves and rounds down.", ("9", "6", "1", "15")),
    Source(2, "x", "return abs(x)", "f takes away the sign.", ("-4", "6", "0", "-10")),
    Source(2, "x", "return str(x)", "f writes a number as text.", ("12", "7", "-3", "100")),
    Source(2, "s", "return int(s)", "f reads a number.", ("'12'", "'7'", "'-3'", "'100'")),
    Source(2, "s", "return s.split()", "f gives the words.", ("'a b'", "'one two three'", "'x'", "'go on'")),
    Source(2, "s", "return s.strip()", "f removes spaces at the ends.", ("' a'", "'hi '", "' x y '", "'z'")),
    Source(2, "s", "return list(s)", "f gives the letters as a list.", ("'abc'", "'no'", "''", "'x'")),
    Source(2, "s", "return s * 3", "f says it three times.", ("'ab'", "'x'", "''", "'ho'")),
    Source(2, "n", "return list(range(n))", "f counts from 0.", ("3", "5", "0", "1")),
    Source(2, "a, b", "return max(a, b)", "f gives the larger number.", ("3, 8", "9, 2", "4, 4", "-1, 0")),
    Source(2, "a, b", "return a == b", "f says whether both are equal.", ("1, 1", "2, 3", "'a', 'a'", "0, 5")),
    Source(2, "a, b", "return [a, b]", "f makes a list of its arguments.", ("1, 2", "'a', 'b'", "0, 0", "7, 3")),
    Source(2, "a, b", "return (b, a)", "f swaps its arguments.", ("1, 2", "'a', 'b'", "0, 9", "7, 3")),
    Source(2, "a, x", "return x in a", "f says whether an item is there.",
           ("[1, 2], 2", "[3], 4", "[], 1", "[7, 8], 7")),
    # -- 3: two steps, a loop or a condition
    Source(3, "x", "return x * 2 + 1", "f doubles and adds 1.", ("3", "5", "0", "10")),
    Source(3, "x", "return (x + 1) * 3", "f adds 1 and triples.", ("2", "4", "0", "9")),
    Source(3, "x", "return x * x - x", "f squares and takes the number away.", ("3", "5", "1", "10")),
    Source(3, "a", "return [x + 1 for x in a]", "f adds 1 to every item.", ("[1, 2]", "[5, 0, 9]", "[]", "[7]")),
    Source(3, "a", "return [x * 2 for x in a]", "f doubles every item.", ("[1, 2]", "[5, 0, 9]", "[]", "[7]")),
    Source(3, "a", "return [x for x in a if x > 0]", "f keeps what is positive.",
           ("[1, -2, 3]", "[-4, 5]", "[]", "[0, 8]")),
    Source(3, "a", "return a[0] + a[-1]", "f adds the first and the last.",
           ("[1, 2, 3]", "[5, 5]", "[4]", "[7, 0, 2]")),
    Source(3, "a", "return a[1:]", "f leaves out the first item.", ("[1, 2, 3]", "[5, 6]", "[4]", "[7, 0, 2]")),
    Source(3, "a", "return sum(a) * 2", "f doubles the sum.", ("[1, 2]", "[5]", "[]", "[3, 3, 4]")),
    Source(3, "a", "return max(a) - min(a)", "f gives the range of the items.",
           ("[3, 9, 2]", "[1, 4]", "[7]", "[10, 0]")),
    Source(3, "s", "return s[0].upper()", "f gives the first letter as a capital.",
           ("'sun'", "'moon'", "'a'", "'Big'")),
    Source(3, "s", "return s.count('a')", "f counts the letter a.", ("'banana'", "'cat'", "'xyz'", "'aa'")),
    Source(3, "s", "return s.replace('a', 'o')", "f makes every a an o.", ("'cat'", "'banana'", "'xyz'", "'a'")),
    Source(3, "s", "return '-'.join(s)", "f puts dashes between letters.", ("'abc'", "'no'", "'x'", "'four'")),
    Source(3, "s", "return len(s.split())", "f counts the words.",
           ("'a b'", "'one two three'", "'x'", "'go on and on'")),
    Source(3, "x", "return 'even' if x % 2 == 0 else 'odd'", "f names even and odd numbers.", ("4", "7", "0", "11")),
)  # fmt: skip


def proposals() -> Iterator[tuple[str, int, Proposal]]:
    """Every held-out task before the sandbox has seen it: name, difficulty, proposal."""
    for number, source in enumerate(SOURCES):
        first, second, *_ = source.inputs
        for kind, inputs, message in (
            ("deduction", (first,), ""),
            ("abduction", (second,), ""),
            ("induction", source.inputs, source.message),
        ):
            yield f"{kind}-{number:02d}", source.difficulty, Proposal(kind, source.program, inputs, message)


async def make(environment: Environment) -> list[HeldoutTask]:
    """All tasks, their outputs computed and their determinism checked. Raises ValueError for one that is no task."""
    made = []
    for name, difficulty, proposal in proposals():
        task = await environment.validate(proposal)
        if isinstance(task, Rejection):
            raise ValueError(f"{name}: {task}")
        made.append(HeldoutTask(name, difficulty, task))
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
