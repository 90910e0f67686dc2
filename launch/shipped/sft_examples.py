"""Writes the examples of the recipe sft-smollm2-cpu: `python -m launch.shipped.sft_examples` makes its file anew.

The programs are written by hand below, none of them a held-out one (`launch.shipped.heldout_tasks`); what they return
is what the sandbox says. Each program gives a task of each kind, and each task the examples of its solver and of its
proposer, as `azr sft-data` makes them.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import NamedTuple

from launch.recipe import RECIPES
from launch.sft.data import examples, validated

FILE = RECIPES / "sft-smollm2-cpu.jsonl"


class Source(NamedTuple):
    """One function, by hand, with two inputs."""

    parameters: str
    body: str
    message: str
    inputs: tuple[str, str]


SOURCES = (
    Source("x", "return x + 7", "f adds 7.", ("5", "20")),
    Source("x", "return x - 4", "f takes 4 away.", ("9", "4")),
    Source("x", "return 3 * x", "f triples.", ("6", "11")),
    Source("x", "return x * 5 - 2", "f multiplies by 5 and takes 2 away.", ("3", "8")),
    Source("x", "return x ** 3", "f raises to the third power.", ("2", "5")),
    Source("x", "return 100 - x", "f takes the number away from 100.", ("30", "1")),
    Source("x", "return x // 4 + x % 4", "f divides by 4 and adds the remainder.", ("11", "30")),
    Source("x", "return x if x > 3 else 3", "f gives at least 3.", ("9", "1")),
    Source("x", "return [x, x * x]", "f gives a number and its square.", ("4", "9")),
    Source("n", "return sum(range(n))", "f adds up the numbers below n.", ("5", "8")),
    Source("n", "return [i * i for i in range(n)]", "f lists the first squares.", ("4", "2")),
    Source("n", "return 'ab' * n", "f repeats ab.", ("3", "1")),
    Source("a, b", "return a * b + a", "f multiplies and adds the first.", ("2, 5", "7, 1")),
    Source("a, b", "return abs(a - b)", "f gives the distance.", ("3, 9", "12, 5")),
    Source("a, b", "return a ** 2 + b ** 2", "f adds two squares.", ("3, 4", "1, 6")),
    Source("a, b", "return min(a, b) * 10", "f multiplies the smaller one by 10.", ("4, 7", "9, 2")),
    Source("a, b", "return f'{a}-{b}'", "f joins two values by a dash.", ("1, 2", "'x', 'y'")),
    Source("a, b", "return a % b == 0", "f says whether b divides a.", ("12, 4", "7, 2")),
    Source("s", "return s + s[::-1]", "f adds the text turned around.", ("'abc'", "'no'")),
    Source("s", "return s[1:] + s[0]", "f moves the first letter to the end.", ("'stone'", "'pit'")),
    Source("s", "return s[:2]", "f keeps two letters.", ("'garden'", "'up'")),
    Source("s", "return s.title()", "f makes every word begin with a capital.", ("'red house'", "'my dog'")),
    Source("s", "return s.replace('e', '3')", "f writes 3 for e.", ("'tree'", "'sleep'")),
    Source("s", "return sorted(s)", "f sorts the letters.", ("'bread'", "'cab'")),
    Source("s", "return len(s) * 2", "f doubles the number of letters.", ("'lamp'", "'sea'")),
    Source(
        "s", "return [len(w) for w in s.split()]", "f gives the length of each word.", ("'a big cat'", "'good night'")
    ),
    Source("a", "return [x * x for x in a]", "f squares every item.", ("[1, 3]", "[2, 5, 4]")),
    Source("a", "return a + a[:1]", "f adds the first item once more.", ("[4, 6]", "[1, 2, 3]")),
    Source("a", "return a[::2]", "f keeps every other item.", ("[5, 6, 7, 8]", "[1, 2, 3]")),
    Source("a", "return sum(x for x in a if x % 2)", "f adds up the odd items.", ("[1, 2, 3]", "[4, 5, 7]")),
    Source("a", "return sorted(a, reverse=True)", "f sorts from large to small.", ("[2, 9, 4]", "[1, 3]")),
    Source("a", "return len(a) + max(a)", "f adds the length and the largest item.", ("[3, 8]", "[5, 1, 1]")),
    Source("a", "return [str(x) for x in a]", "f writes every item as text.", ("[1, 20]", "[7, 0, 3]")),
    Source("a", "return {x: x + 1 for x in a}", "f maps every item to the next number.", ("[1, 5]", "[9, 2]")),
)


def write(file: Path) -> int:
    """Write the examples to `file`; returns how many."""
    lines = []
    for source in SOURCES:
        program = f"def f({source.parameters}):\n    {source.body}"
        for kind, inputs, message in (
            ("deduction", source.inputs[:1], ""),
            ("abduction", source.inputs[1:], ""),
            ("induction", source.inputs, source.message),
        ):
            lines.append(
                json.dumps({"kind": kind, "program": program, "inputs": inputs, "message": message}, allow_nan=False)
            )
    validated_tasks, rejected = asyncio.run(validated(list(enumerate(lines))))
    tasks = [task for task, _ in validated_tasks]
    if rejected:
        raise SystemExit(f"no tasks: {rejected}")
    found = [example for example in examples(tasks, "completion", ("solve", "propose"), 1, 0) if example]
    file.write_text("".join(f"{json.dumps(example, allow_nan=False)}\n" for example in found))
    return len(found)


if __name__ == "__main__":
    print(f"{write(FILE)} examples to {FILE}")
