"""The work of the fork server's child: read one request, check, compile and run its program, state the outcome.

A child runs one program on one input. (Variants of an input, which are run to learn more about a program, share a
child.) Its request and its statements pass between it and the supervisor alone: no other child, nor the fork server,
ever holds the program, an input or a value. So a child can lie only about the value of its own program, which the
program could do by returning it.

Most of the cost of a fork is page faults: one for each page that the child writes to, or whose code it runs for the
first time. So a child does as little as possible, and copies nothing that it can share.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from types import CodeType
from typing import Any

from executor import codec, inspection, values
from executor.policy import facades, guards, safety
from executor.sandbox.frames import (
    ERROR,
    MEMORY,
    NONCE_BYTES,
    TOO_LARGE,
    UNSAFE,
    UNSERIALISABLE,
    VALUE,
    write_all,
)

MAX_PROGRAM_BYTES = 1 << 16
MAX_INSPECTION_DEPTH = 5_000
"""Python's recursion limit while a child inspects a program. A program that needs more has no facts."""

Statement = tuple[bytes, str]
"""Kind and text of a child's statement about one input."""


class Child:
    """Answers a request in a child. The fork server makes it before it forks, so that all children share it.

    `gate`: whether programs are checked against the policy.
    """

    def __init__(self, gate: bool) -> None:
        self._gate = gate
        self.first: Sequence[Callable[[], object]] = ()
        """What each child makes before it runs a program: the fork server's `shuffle_memory` says why."""
        self._builtins = facades.program_builtins() if gate else vars(importlib.import_module("builtins"))

    def answer(self, frame: bytes, output: int) -> None:
        """Carry out the request in `frame`, and write a statement about each input to the descriptor `output`."""
        nonce = frame[:NONCE_BYTES]
        try:
            request = json.loads(memoryview(frame)[NONCE_BYTES:].tobytes())
            inputs: list[Any] = [codec.from_tagged(node) for node in request["inputs"]]
        except MemoryError:
            _state(output, nonce, (MEMORY, ""))
            return
        program, output_bytes = request["program"], request["output_bytes"]
        if request["operation"] == "inspect":
            _state(output, nonce, _inspect(program, *inputs[0], output_bytes=output_bytes))
            return
        prepared = self._compile(program)
        # Not by a comprehension, which is an object: it would take the gap to be filled, and free it again.
        kept: list[Any] = []
        for make in self.first:
            kept.append(make())  # noqa: PERF401
        # Nothing is destroyed before the end, so that no `__del__` runs between two inputs.
        first = ""
        for args in inputs:
            kind, text = found = (
                prepared if isinstance(prepared, tuple) else self._call(prepared, args, output_bytes, kept)
            )
            _state(output, nonce, found)
            if kind == MEMORY:
                break
            if kind == VALUE and request["stop_at_difference"]:
                if first and _differ(text, first):
                    break
                first = first or text

    def _compile(self, program: str) -> CodeType | Statement:
        try:
            if _is_too_large(program):
                return ERROR, "ProgramTooLarge"
            if not self._gate:
                return compile(program, "<program>", "exec", dont_inherit=True)
            found = safety.compile_checked(program)
            return (UNSAFE, f"{found[0]}: {found[1]}") if isinstance(found, tuple) else found
        except MemoryError:
            return MEMORY, ""
        except Exception as error:
            return ERROR, values.type_name(error)

    def _call(self, code: CodeType, args: tuple[Any, ...], output_bytes: int, kept: list[Any]) -> Statement:
        """Run `f` on one input and return the statement about it.

        All inputs share one dict of builtins: a copy would write to the reference count of each, and so to many pages.
        The policy keeps a program from changing the dict. One that does so all the same changes only its own answers to
        later variants.
        """
        namespace = facades.program_globals(self._builtins)
        kept.append(namespace)
        try:
            exec(code, namespace)
            function = namespace.get("f")
            if not callable(function):
                return ERROR, "MissingFunction"
            value = function(*args)
            kept.append(value)
        except MemoryError:
            return MEMORY, ""
        except BaseException as error:
            if type(error) is guards.Refused:
                return UNSAFE, str(error)
            return ERROR, values.type_name(error)
        return _encoded(value, output_bytes)


def _inspect(program: str, *options: bool, output_bytes: int) -> Statement:
    sys.setrecursionlimit(MAX_INSPECTION_DEPTH)
    try:
        if _is_too_large(program):
            return ERROR, "ProgramTooLarge"
        return _encoded(inspection.inspect(program, *options), output_bytes)
    except MemoryError:
        return MEMORY, ""
    except Exception as error:
        return ERROR, values.type_name(error)


def _encoded(value: object, output_bytes: int) -> Statement:
    try:
        return VALUE, codec.encode(value, output_bytes)
    except values.UnserialisableError as error:
        return UNSERIALISABLE, str(error)
    except values.BudgetError:
        return TOO_LARGE, ""
    except MemoryError:
        return MEMORY, ""


def _state(output: int, nonce: bytes, statement: Statement) -> None:
    kind, text = statement
    data = text.encode("ascii", "replace")
    write_all(output, nonce + (len(data) + 1).to_bytes(4, "big") + kind + data)


def _differ(one: str, other: str) -> bool:
    """Whether two encodings surely stand for different values: not where there are sets, which come in any order."""
    return one != other and '["s"' not in one and '["f"' not in one


def _is_too_large(program: str) -> bool:
    return len(program) > MAX_PROGRAM_BYTES or len(program.encode("utf-8", "surrogatepass")) > MAX_PROGRAM_BYTES


def warm_up(child: Child, output: int, runs: int) -> None:
    """Do in this process what children do, so that they inherit specialised code and full caches.

    A child that had to do this for itself would dirty pages.
    """
    nonce = bytes(NONCE_BYTES)
    programs = (
        "def f(x, y=1):\n    return {'a': [x], 'b': (x + y, 0.5, None, True), 'c': str(x)}",
        "import math\ndef f(x):\n    return [math.sqrt(x)]",
    )
    request: dict[str, Any] = {
        "operation": "run",
        "inputs": [],
        "output_bytes": 1 << 16,
        "stop_at_difference": False,
    }
    for number in range(runs):
        for program in programs:
            request |= {"program": program, "inputs": [json.loads(codec.encode((number,)))]}
            child.answer(nonce + json.dumps(request).encode("ascii"), output)
        inspection.inspect("def f(x, y):  # comment\n    return f'{x}'", True, True)
    # The last program's module. A child that replaced it would free objects at addresses that are alike in all servers.
    del sys.modules[facades.NAME]
