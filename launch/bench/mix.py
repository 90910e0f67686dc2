"""Recorded self-play work: what a run asked of its judge, as a file, to be judged again as a benchmark.

A file of JSON lines, gzip where the name ends in `.gz`. `mix.jsonl.gz`, which ships, opens with a header, a line
without `op`: where the work comes from (`model`, `recipe`), of how much work it is a sample, and what was left out.
Then, in the order of the run, one line for every request:

    {"op": "validate", "kind", "program", "inputs": [text], "message"}
    {"op": "verify", "kind", "program", "inputs": [literal], "outputs": [literal], "message", "answer"}

with `answers`, a list, in place of `answer` where several answers of one task are known to belong together, as in the
shipped file. Elsewhere the lines of one task, up to eight, are taken together, whatever lies between them.
`executor.record_work` writes this format without a header, so any run can be benched: `azr bench executor --mix FILE`.

The benchmark also runs the work *without isolation*, for comparison. So `fit` leaves out whatever should not run in an
ordinary process: programs that the policy of the sandbox refuses (`executor/policy/safety.py`: files, processes,
`eval`, the interpreter's own attributes, modules other than `math`, `re` and the like), inputs and answers that are
code which the policy refuses, and loops without an end, each for both sides alike. That is a policy and no wall: bench
only work that you recorded yourself.

    python -m launch.bench.mix RECORD TARGET.jsonl.gz --proposals 200 --set model=NAME --set recipe=NAME

makes such a file from a record, deterministically: it takes validations and verified tasks at even distances over the
whole run.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from executor.policy import safety
from executor.tasks import Proposal, Task
from executor.user_error import UserError

SHIPPED = Path(__file__).with_name("mix.jsonl.gz")
KINDS = ("deduction", "abduction", "induction")
"""Kinds that the reference knows, too."""
MAX_ANSWERS = 8
"""Answers of one task that are taken together where they are recorded one by one."""


class MixError(UserError):
    """A file that is no record of self-play work."""


@dataclass(frozen=True)
class Verification:
    """One task, and the answers that were given to it."""

    task: Task
    answers: tuple[str, ...]


Item = Proposal | Verification


@dataclass
class Mix:
    """Work to be judged, in order; `left_out` counts what is not fit to run without isolation, by reason."""

    items: list[Item]
    header: dict[str, Any] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def proposals(self) -> int:
        """The number of validations."""
        return sum(isinstance(item, Proposal) for item in self.items)

    @property
    def verifications(self) -> int:
        """The number of answers to verify."""
        return sum(len(item.answers) for item in self.items if isinstance(item, Verification))

    def describe(self) -> str:
        """One line for people."""
        kinds = Counter(item.kind if isinstance(item, Proposal) else item.task.kind for item in self.items)
        left = f"; left out as unfit to run without isolation: {self.left_out.total()}" if self.left_out else ""
        return (
            f"{self.proposals} validations and {self.verifications} verifications "
            f"({', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))}){left}"
        )


def load(path: Path) -> Mix:
    """Read a record. Raises MixError, which names the line, for what is none."""
    header: dict[str, Any] = {}
    mix = Mix([])
    waiting: dict[Task, list[str]] = {}
    places: dict[Task, int] = {}

    def flush(task: Task) -> None:
        """A task's answers are one item, in the place of the first of them."""
        answers = tuple(waiting.pop(task))
        mix.items[places.pop(task)] = Verification(task, answers)

    for number, line in enumerate(_lines(path), 1):
        try:
            entry = json.loads(line)
            if number == 1 and "op" not in entry:
                header = entry
                continue
            item = _read(entry)
        except (KeyError, TypeError, ValueError) as error:
            raise MixError(f"{path}, line {number}: not a line of recorded work: {error}") from None
        if isinstance(item, Proposal):
            mix.items.append(item)
            continue
        if "answers" in entry:
            mix.items.append(item)
            continue
        (answer,) = item.answers
        if item.task not in waiting:
            waiting[item.task] = []
            places[item.task] = len(mix.items)
            mix.items.append(item)
        waiting[item.task].append(answer)
        if len(waiting[item.task]) == MAX_ANSWERS:
            flush(item.task)
    for task in list(waiting):
        flush(task)
    kept = []
    for item in mix.items:
        reason = unfit(item)
        if reason:
            mix.left_out[reason] += 1
        else:
            kept.append(item)
    if not kept:
        raise MixError(f"{path} holds no work that can be benched")
    return Mix(kept, header, mix.left_out)


def _lines(path: Path) -> Iterator[str]:
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            yield from (line for line in file if line.strip())
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise MixError(f"{path} cannot be read: {error}") from None


def _read(entry: dict[str, Any]) -> Item:
    kind, inputs, message = entry["kind"], tuple(entry["inputs"]), entry.get("message", "")
    outputs, answers = tuple(entry.get("outputs", ())), tuple(entry.get("answers", ()))
    texts = [entry["program"], message, *inputs, *outputs, *answers, entry.get("answer", "")]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a text is not a string")
    if kind not in KINDS:
        raise ValueError(f"{kind!r:.40} is none of {', '.join(KINDS)}")
    if entry["op"] == "validate":
        return Proposal(kind, entry["program"], inputs, message)
    if entry["op"] == "verify":
        return Verification(Task(kind, entry["program"], inputs, outputs, message), answers or (entry["answer"],))
    raise ValueError(f"unknown op {entry['op']!r}")


# --------------------------------------------------------------------------------------- fit to run without isolation


def unfit(item: Item) -> str | None:
    """Why `item` must not run without isolation; None where nothing speaks against it."""
    if isinstance(item, Proposal):
        return _unfit_program(item.program) or _unfit_expressions(item.inputs)
    task = item.task
    reason = _unfit_program(task.program) or _unfit_expressions([*task.inputs, *task.outputs])
    if task.kind == "induction":
        return reason or next((found for answer in item.answers if (found := _unfit_program(answer))), None)
    return reason or _unfit_expressions(item.answers)


def _unfit_expressions(texts: Sequence[str]) -> str | None:
    # What is evaluated there is `f(TEXT)`, and `TEXT` may be any code.
    return next((reason for text in texts if (reason := _unfit_program(f"f({text})"))), None)


def _unfit_program(program: str) -> str | None:
    try:
        found = safety.check(program, strict=True)
        if found:
            return f"policy: {found[0]}"
        for node in ast.walk(ast.parse(program)):
            if isinstance(node, ast.While) and isinstance(node.test, ast.Constant) and node.test.value:
                return "endless loop"
    except (SyntaxError, ValueError):
        return None  # it will not run anywhere
    except (RecursionError, MemoryError):
        return "too deep to be read"
    return None


# ------------------------------------------------------------------------------------------------------------- making


def sample(mix: Mix, proposals: int) -> list[Item]:
    """At most `proposals` validations and tasks to verify in the run's own proportion, at even distances over the
    run."""
    validations = [index for index, item in enumerate(mix.items) if isinstance(item, Proposal)]
    tasks = [index for index, item in enumerate(mix.items) if isinstance(item, Verification)]
    share = min(1.0, proposals / max(1, len(validations)))
    chosen = set(_even(validations, share)) | set(_even(tasks, share))
    return [item for index, item in enumerate(mix.items) if index in chosen]


def _even(indices: list[int], share: float) -> list[int]:
    count = round(len(indices) * share)
    return [indices[position * len(indices) // count] for position in range(count)]


def write(path: Path, items: Sequence[Item], header: dict[str, Any]) -> None:
    """Write a mix with its header; the same items give the same bytes."""
    lines = [header]
    for item in items:
        if isinstance(item, Proposal):
            lines.append({"op": "validate", **_fields(item)})
        else:
            task = {**_fields(item.task), "outputs": list(item.task.outputs)}
            lines.append({"op": "verify", **task, "answers": list(item.answers)})
    data = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines).encode("ascii")
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def _fields(item: Proposal | Task) -> dict[str, Any]:
    return {"kind": item.kind, "program": item.program, "inputs": list(item.inputs), "message": item.message}


def main(argv: Sequence[str] | None = None) -> int:
    """Make a mix from a record; see the head of this file."""
    parser = argparse.ArgumentParser(prog="python -m launch.bench.mix", description="make a mix from a record of a run")
    parser.add_argument("record", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--proposals", type=int, default=200, help="how many validations at most (default %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=TEXT", help="for the header")
    arguments = parser.parse_args(argv)
    try:
        mix = load(arguments.record)
    except MixError as error:
        print(f"azr: {error}", file=sys.stderr)
        return 2
    header = {"format": "azr-mix-1", **dict(text.split("=", 1) for text in arguments.set)}
    header |= {
        "sampled_from": {"validations": mix.proposals, "verifications": mix.verifications},
        "left_out": dict(mix.left_out),
    }
    write(arguments.target, sample(mix, arguments.proposals), header)
    print(load(arguments.target).describe())
    return 0


if __name__ == "__main__":
    sys.exit(main())
