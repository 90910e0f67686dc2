"""The public reference's way of judging: a warm pool of processes that run programs themselves. No isolation at all.

This is the other side of the comparison on recorded work, in a process of its own so that its pool forks a small
process and shares no interpreter with what it is compared with. Every execution is one task of a pebble pool with a
time limit: a fresh namespace, standard output captured, the program run with `exec` in the worker itself. As in the
reference,

    a validation         is a static check in the driver's process, then two executions per input: the texts must agree;
    a deduction answer   is one execution, of `gold == answer`;
    an abduction answer  is one execution, of the program and `gold == f(answer)`;
    an induction answer  is one execution per hidden input, of the answer and `gold == f(input)`.

Both sides stop at the first input that decides. There are two drivers. `judge_as_published` waits for every execution
before it asks for the next, each a `map` over one snippet, as the reference's published code does; so a second worker
is of no use to it. `judge` keeps the pool full with many items in flight, which is what that way could give at best.

A worker limits its address space and the size of files, once, which costs the executions nothing. It is no isolation.
Model-written programs must not be run this way; `mix.py` says what is done so that the recorded work may.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import queue
import resource
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from actors.kinds.induction import hidden
from executor.policy import safety
from executor.tasks import Proposal
from launch.bench import mix

Execution = tuple[str, str]
"""A program, and the expression that is evaluated after it."""
Result = tuple[str, str]
"""`ok` and the value's repr, or what went wrong and the exception's type."""
Judging = Generator[Execution, Result, list[str]]
"""Asks for executions one after another, and returns the findings of one item."""


# ----------------------------------------------------------------------------------------------------- in the workers


def limit(memory_mb: int) -> None:
    """At the start of a worker: an address space that is limited, no files, no core dumps."""
    with open("/proc/self/statm") as statm:
        base = int(statm.read().split()[0]) * resource.getpagesize()
    limit_bytes = base + (memory_mb << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def execute(program: str, expression: str) -> Result:
    """Run `program` in this process, and evaluate `expression` after it."""
    namespace: dict[str, Any] = {"__name__": "solution"}
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(program, namespace)
            return "ok", repr(eval(expression, namespace))
    except MemoryError:
        return "memory", ""
    except BaseException as error:  # SystemExit, too, would end the worker
        return "error", type(error).__name__


def execute_one(execution: Execution) -> Result:
    """Do as `execute`, for one item of a `map`."""
    return execute(*execution)


# ------------------------------------------------------------------------------------------------------ in the driver


def judging(item: mix.Item) -> Judging:
    """The executions that judge `item`, and its findings: of a validation one, of a verification one per answer."""
    if isinstance(item, Proposal):
        return [(yield from _validate(item))]
    findings = []
    task = item.task
    for answer in item.answers:
        if task.kind == "deduction":
            finding = yield from _holds([("", f"({task.outputs[0]}) == ({answer})")])
        elif task.kind == "abduction":
            finding = yield from _holds([(task.program, f"({task.outputs[0]}) == f({answer})")])
        else:
            finding = yield from _holds([(answer.strip(), f"({gold}) == f({given})") for given, gold in hidden(task)])
        findings.append(finding)
    return findings


def _validate(proposal: Proposal) -> Generator[Execution, Result, str]:
    try:
        if safety.check(proposal.program, strict=True):
            return "unsafe"
    except (SyntaxError, ValueError):
        return "error"
    for text in proposal.inputs:
        first = yield proposal.program, f"f({text})"
        if first[0] != "ok":
            return first[0]
        second = yield proposal.program, f"f({text})"
        if second != first:
            return "nondeterministic"
    return "ok"


def _holds(executions: list[Execution]) -> Generator[Execution, Result, str]:
    for execution in executions:
        status, value = yield execution
        if status != "ok":
            return status
        if value != "True":
            return "wrong"
    return "correct"


def _result(wait: Callable[[], Result]) -> Result:
    try:
        return wait()
    except TimeoutError:
        return "timeout", ""
    except Exception as error:  # the worker died, or its answer could not be sent
        return "crashed", type(error).__name__


class Driver:
    """A warm pool, and what is asked of it."""

    def __init__(self, workers: int, timeout_s: float, memory_mb: int) -> None:
        from pebble import ProcessPool

        self._timeout_s = timeout_s
        self._pool: Any = ProcessPool(max_workers=workers, initializer=limit, initargs=(memory_mb,))
        self._items: list[mix.Item] = []
        # All workers are up once as many slow executions as there are workers, and more, are through.
        warm = [self._pool.schedule(execute, args=("", "sum(range(300_000))")) for _ in range(4 * workers)]
        for future in warm:
            future.result()

    def single(self, program: str, seconds: float) -> dict[str, Any]:
        """One execution after another."""
        latencies: list[float] = []
        started = now = time.perf_counter()
        while not latencies or now - started < seconds:
            call = f"f({len(latencies)})"
            self._pool.schedule(execute, args=(program, call), timeout=self._timeout_s).result()
            done = time.perf_counter()
            latencies.append(done - now)
            now = done
        return {"seconds": now - started, "latencies_s": latencies}

    def load(self, path: str) -> dict[str, Any]:
        """Read a mix."""
        self._items = mix.load(Path(path)).items
        return {"items": len(self._items)}

    def judge(self, in_flight: int) -> dict[str, Any]:
        """Judge the mix once, `in_flight` items at a time."""
        findings: list[list[str]] = [[] for _ in self._items]
        done: queue.SimpleQueue[tuple[int, Judging, Any]] = queue.SimpleQueue()
        started = time.perf_counter()
        waiting = iter(enumerate(self._items))
        running = sum(self._begin(waiting, findings, done) for _ in range(in_flight))
        while running:
            index, judge, future = done.get()
            if not self._go_on(index, judge, _result(future.result), findings, done):
                running -= 1
                running += self._begin(waiting, findings, done)
        return {"seconds": time.perf_counter() - started, "findings": findings}

    def judge_as_published(self) -> dict[str, Any]:
        """Judge the mix once, one execution after another."""
        findings = []
        started = time.perf_counter()
        for item in self._items:
            judge = judging(item)
            try:
                execution = next(judge)
                while True:
                    mapped = self._pool.map(execute_one, [execution], timeout=self._timeout_s)
                    execution = judge.send(_result(mapped.result().__next__))
            except StopIteration as end:
                findings.append(end.value)
        return {"seconds": time.perf_counter() - started, "findings": findings}

    def close(self) -> None:
        """End the workers."""
        self._pool.stop()
        self._pool.join()

    def _begin(self, waiting: Iterator[tuple[int, mix.Item]], findings: list[list[str]], done: Any) -> bool:
        """Start the next item that needs an execution; False if there is none."""
        return any(self._go_on(index, judging(item), None, findings, done) for index, item in waiting)

    def _go_on(self, index: int, judge: Judging, result: Result | None, findings: list[list[str]], done: Any) -> bool:
        """Hand an item its result; False if that was its last."""
        try:
            execution = next(judge) if result is None else judge.send(result)
        except StopIteration as end:
            findings[index] = end.value
            return False
        future = self._pool.schedule(execute, args=execution, timeout=self._timeout_s)
        future.add_done_callback(lambda finished: done.put((index, judge, finished)))
        return True


def main() -> None:
    """Answer lines of JSON on standard input until it ends."""
    warnings.simplefilter("ignore")  # what the compiler thinks of model-written programs; the workers inherit it
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a program prints past Python's streams is not an answer
    print("{}", file=answers, flush=True)
    driver: Driver | None = None
    for line in sys.stdin:
        message = json.loads(line)
        try:
            operation = message.pop("op")
            if operation == "start":
                driver, answer = Driver(**message), {}
            else:
                assert driver, "start comes first"
                answer = getattr(driver, operation)(**message)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer, allow_nan=False), file=answers, flush=True)
    if driver:
        driver.close()
