"""The fork server inside the wall: it forks a child for each request, and reports how the child ended.

`keeper.py` forks it with an empty environment, its standard streams on the null device, and three pipes (`frames.py`).
It imports the standard library and the light files of this package, encloses itself (`namespaces.py`, `jail.py`), and
then serves requests, one at a time. It has one thread.

The server reads two numbers of a request, the limits of time and memory. The program, the input and the value pass
between the supervisor and the child (`child.py`) alone. So the memory that a child is forked with holds nothing of any
request.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import math
import os
import random
import resource
import select
import signal
import warnings
from collections.abc import Callable, Collection
from typing import Any, NoReturn

from executor.layers import Layer
from executor.policy import facades
from executor.sandbox import frames, jail, namespaces
from executor.sandbox.child import Child, warm_up
from executor.sandbox.deadline import Deadline
from executor.sandbox.frames import REPLIES, REQUESTS, VALUES

PATIENCE_S = 0.002
"""Seconds that a child runs before it may move to another CPU."""

WARM_UP_RUNS = 64
FIRST = 4
"""Largest number of objects of a size, at least one, that each child makes before it runs a program."""
SMALL, LARGE = 128, 12
"""Number of objects of each small and of each large size that `shuffle_memory` makes. More would lie on more pages, and
each child copies the pages that it writes to."""

_NULL = 1  # standard output, which is the null device
_CHILD_ENDS = {signal.SIGCHLD}


class Zygote:
    """Forks, reaps and reports children. `gate`: whether the policy applies; otherwise only the wall is left."""

    def __init__(self, gate: bool, layers: Collection[Layer]) -> None:
        self.layers = layers
        self.orphans = self.filtered = True
        """Whether a child can outlive this process, and whether it gets a filter of its own."""
        self.memory_mb = 0
        self.child = Child(gate)
        self.kept: list[object] = []
        self.pid = os.getpid()
        self.cpus = os.sched_getaffinity(0)
        self.pin = self.pinned = False
        self.unread = select.poll()
        self.unread.register(REQUESTS, select.POLLIN)
        with open("/proc/self/statm") as statm:
            self.base_bytes = int(statm.read().split()[0]) * resource.getpagesize()

    def serve(self) -> NoReturn:
        """Answer requests until the supervisor closes its end."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _CHILD_ENDS)  # `sigtimedwait` takes them
        while (numbers := frames.read_exactly(REQUESTS, frames.NUMBERS.size)) is not None:
            timeout_s, memory_mb = frames.NUMBERS.unpack(numbers)
            self._limit_memory(memory_mb)
            self._pin()
            late, code = self._wait_for(self._fork(timeout_s), timeout_s)
            self._unpin()
            if any(event & select.POLLIN for _, event in self.unread.poll(0)):
                os._exit(1)  # the child did not read its request, so this pipe can't be trusted any more
            frames.write_all(REPLIES, frames.pack(frames.ENDING.pack(late, code)))
        os._exit(0)

    def _pin(self) -> None:
        """Keep to the CPU that the scheduler has chosen, for a moment.

        Server and child take turns on the same memory: on another CPU, each would have to fill its caches anew.
        """
        if self.pin:
            self.pinned = True
            jail.bind(0, {jail.current_cpu()})

    def _unpin(self, child: int = 0) -> None:
        """Let the scheduler choose the CPU again, once a run turns out not to be short."""
        if self.pinned:
            self.pinned = False
            jail.bind(0, self.cpus)
            if child:
                jail.bind(child, self.cpus)

    def _limit_memory(self, memory_mb: int) -> None:
        """Limit the memory of this process: children inherit the limit, which saves a call in each."""
        if memory_mb != self.memory_mb and Layer.RLIMITS in self.layers:
            self.memory_mb = memory_mb
            jail.limit_memory(self.base_bytes + (memory_mb << 20))

    def _wait_for(self, child: int, timeout_s: float) -> tuple[bool, int]:
        """Reap a child, and kill it at its deadline. Returns whether it was killed then, and its exit code."""
        deadline = Deadline(child, timeout_s)
        if not signal.sigtimedwait(_CHILD_ENDS, min(timeout_s, PATIENCE_S)):
            self._unpin(child)
        while True:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return False, os.waitstatus_to_exitcode(status)
            left_s = deadline.left_s()
            if left_s <= 0:
                os.kill(child, signal.SIGKILL)
                return True, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            signal.sigtimedwait(_CHILD_ENDS, left_s)

    def _fork(self, timeout_s: float) -> int:
        """Fork a child that answers the request in the pipe. Returns its process id."""
        child = jail.fork()
        if child:
            return child
        frame = b""
        try:
            try:
                if (read := frames.read_frame(REQUESTS)) is None:
                    raise EOFError("the supervisor has gone")
                frame = read
                os.close(REQUESTS)
                os.close(REPLIES)
                if self.orphans:
                    # In a process namespace the kernel ends it with the server, which is that namespace's first
                    # process.
                    jail.die_with_parent()
                    if os.getppid() != self.pid:
                        os._exit(1)
                    jail.limit_cpu(math.ceil(timeout_s) + 1)
                if self.filtered:
                    jail.enclose_child()
            except BaseException:
                # Not the program's fault. Nothing inside the wall can send this signal, so it can't be forged.
                os.kill(os.getpid(), signal.SIGKILL)
            self.child.answer(frame, VALUES)
        finally:
            os._exit(0)

    def warm_up(self) -> None:
        """Bring the interpreter into the state in which it will fork children: see `child.warm_up`."""
        warm_up(self.child, _NULL, WARM_UP_RUNS)
        signal.pthread_sigmask(signal.SIG_BLOCK, _CHILD_ENDS)
        for _ in range(WARM_UP_RUNS):
            child = jail.fork()
            if child == 0:
                os._exit(0)
            self._wait_for(child, 60)


def shuffle_memory() -> tuple[list[object], list[Callable[[], object]]]:
    """Make the addresses of new objects differ between fork servers, in their last digits too.

    The kernel randomises whole pages only. Without this, the hash of an object, or a `repr` with an address in it,
    would end in the same digits in all runs of a program. Makes objects of many sizes, keeps a random number of each
    size, and frees the others in random order: CPython reuses their memory in the reverse of that order. Then fills a
    random number of the gaps of each size. Returns the objects to keep alive, and what each child is to make before it
    runs a program: a random number of objects of each size up to 512 bytes, which CPython's own allocator serves. An
    older object that is freed meanwhile leaves a gap that comes before all others, at the same address in each server.
    These objects are such that the garbage collector does not count: it would tell servers apart.
    """
    chance = random.SystemRandom()
    # CPython keeps lists of free objects of some of these types.
    small: list[Callable[[], object]] = [list, dict, set, object, functools.partial(float, "0.1")]
    small += [functools.partial(tuple, bytes(size)) for size in range(1, 8)]
    # Size classes of CPython's allocator, by way of a type whose own part is 33 bytes; and sizes of the C library's.
    small += [functools.partial(bytes, size) for size in range(15, 144, 16)]
    kind: type = type
    of_a_class = kind.__basicsize__ + kind.__itemsize__ + 16  # the last for the garbage collector
    sizes = [*range(159, 1040, 16), *range(1500, 6000, 900), of_a_class - 33, 70_000]
    large: list[Callable[[], object]] = [functools.partial(bytes, size) for size in sizes]
    made = [[make() for _ in range(count)] for makers, count in ((small, SMALL), (large, LARGE)) for make in makers]
    kept: list[object] = []
    for objects in made:
        chance.shuffle(objects)
        kept += objects[: chance.randrange(len(objects) // 2)]
    freed = [one for objects in made for one in objects]
    made.clear()
    chance.shuffle(freed)
    freed.clear()
    # Gaps that were there before may come first: each server goes on at another one.
    kept += [make() for make in small + large for _ in range(chance.randrange(LARGE))]
    uncounted: list[Callable[[], object]] = [functools.partial(bytes, size) for size in range(15, 480, 16)]
    first = [make for make in uncounted for _ in range(chance.randint(1, FIRST))]
    return kept, first


def main(config: dict[str, Any], wanted: Collection[Layer], missing: namespaces.Missing) -> NoReturn:
    """Build the wall, report it, and serve requests. On failure, report the reason and end.

    `missing`: the layers of `wanted` that the keeper could not build.
    """
    os.environ.pop("LD_BIND_NOW", None)
    try:
        warnings.simplefilter("ignore")  # the compiler's, about programs
        facades.load_codecs()
        # Made now, since it reads files; which layers are missing is known only when no file can be read any more.
        zygote = Zygote(config["gate"], wanted)
        missing = namespaces.enter_others(wanted, missing)
        jail.die_with_parent()
        missing |= jail.harden(wanted)
        if Layer.SECCOMP in wanted:
            try:
                jail.enclose_server()
            except jail.JailError as error:
                missing[Layer.SECCOMP] = str(error)
            else:
                jail.self_test()
        zygote.layers = frozenset(wanted) - set(missing)
        zygote.orphans = Layer.PID_NAMESPACE not in zygote.layers
        zygote.filtered = Layer.SECCOMP in zygote.layers
    except BaseException as error:
        with contextlib.suppress(OSError):
            report = json.dumps({"error": f"{type(error).__name__}: {error}"})
            frames.write_all(REPLIES, frames.pack(report.encode("ascii")))
        os._exit(1)
    zygote.pin = config["pin"]
    zygote.warm_up()
    if config["gate"]:
        facades.seal()
    # Collected objects would be written to, and every page that is written to after a fork is copied.
    gc.collect()
    zygote.kept, zygote.child.first = shuffle_memory()
    gc.freeze()
    frames.write_all(REPLIES, frames.pack(json.dumps({"missing": missing}).encode("ascii")))
    zygote.serve()
