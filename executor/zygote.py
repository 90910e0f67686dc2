"""The fork server inside the wall: it forks a child per request, runs the program there, and says what became of it.

Forked by `keeper.py` with an empty environment, its standard streams on the null device, and two pipes. It imports the
standard library and this package's light files, encloses itself (`namespaces.py`, `jail.py`), and then serves requests,
one at a time. It is single-threaded.

A short, plain program is checked and compiled here, where the memory is warm, and kept for the next time; any other, and
one on which a fork server has died before, in the child. The status of a run is the server's own finding, from the
child's frames, its deadline and its wait status. A child can lie about its own program's value only, which the program
could do by returning it: expected outputs never come here, and other programs are in memory that children do not get.

Most of what a fork costs are page faults, on every page that the child writes or whose code it runs for the first time.
So a child does as little as possible before it calls the program, and copies nothing that it can share.

Frames to and from the supervisor: a length (four bytes, big-endian) and, inwards, JSON; outwards, a line an outcome,
`status TAB detail TAB encoded value`. Frames from a child: a nonce, a length, one byte that names the kind of statement,
and its text.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import math
import os
import resource
import select
import signal
import struct
import sys
import warnings
from collections.abc import Callable, Collection
from types import CodeType
from typing import Any, NoReturn

from executor import codec, facades, frames, guards, inspection, jail, keeper, namespaces, safety, values
from executor.deadline import Deadline
from executor.layers import Layer
from executor.programs import ProgramCache

MAX_PLAIN_CHARACTERS, MAX_PLAIN_DEPTH = 4096, 12
"""A program beyond these is compiled in a child: the parser's worst cases need long text or deep nesting."""

MAX_PROGRAM_BYTES = 1 << 16
MAX_INSPECTION_DEPTH = 5_000
"""Python's recursion limit for a child that reads a program; one that needs more may crash."""

VARIANTS_SHARE = 0.25
"""Of one input's time, what all variants may take together: they are asked out of curiosity."""

PATIENCE_MS = 2
"""How long a child may run before its frames are read as they come. (A full pipe makes it wait for no longer.)"""

WARM_UP_RUNS = 64

_NULL = 1  # standard output, which is the null device
_NONCE_BYTES = 16
_HEADER = struct.Struct(f">{_NONCE_BYTES}sI")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"()[]{}"))

# What a child may state; the texts are the encoded value, an exception's type, or what was refused.
VALUE, ERROR, MEMORY, TOO_LARGE, UNSERIALISABLE, UNSAFE = b"V", b"E", b"M", b"L", b"U", b"G"
_STATUS = {
    VALUE: "ok",
    ERROR: "error",
    MEMORY: "memory",
    TOO_LARGE: "output_too_large",
    UNSERIALISABLE: "unserialisable",
    UNSAFE: "unsafe",
}

Outcome = tuple[str, str, str]
"""(status, detail, encoded value)"""

Refusal = tuple[bytes, str]
"""What a child states of a program that is not run."""

INSPECT = "inspect"
"""In place of a program's code: it is to be read, not run."""
Code = CodeType | str | None
"""What a child is to run: code, INSPECT, or None where it has to compile the program itself."""


def read_frame(fd: int) -> bytes | None:
    """One frame, or None at the end of the stream. For blocking descriptors."""
    header = _read_exactly(fd, frames.LENGTH.size)
    return None if header is None else _read_exactly(fd, frames.LENGTH.unpack(header)[0])


def _read_exactly(fd: int, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        part = os.read(fd, min(size - len(data), 1 << 20))
        if not part:
            return None
        data += part
    return bytes(data)


def write_all(fd: int, data: bytes) -> None:
    """Write every byte of `data` to a blocking descriptor."""
    while data:
        data = data[os.write(fd, data) :]


def pack_outcomes(outcomes: list[Outcome]) -> bytes:
    """A frame of outcomes for the supervisor."""
    return frames.pack("\n".join(["\t".join(outcome) for outcome in outcomes]).encode("ascii"))


class Zygote:
    """The fork server's state. `gate`: whether there is a policy; without, only the wall is left."""

    def __init__(self, requests: int, replies: int, gate: bool, layers: Collection[Layer]) -> None:
        self.requests = requests
        self.replies = replies
        self.gate = gate
        self.layers = layers
        self.orphans = self.filtered = True
        """Whether a child can outlive this process, and whether it gets a filter of its own."""
        self.limits: list[float] = []
        self.timeout_s = 1.0
        self.output_bytes = 1 << 16
        self.kept: list[object] = []
        self.programs = ProgramCache()
        self.builtins = facades.program_builtins() if gate else vars(importlib.import_module("builtins"))
        self.pid = os.getpid()
        self.cpus = os.sched_getaffinity(0)
        self.pin = self.pinned = False
        with open("/proc/self/statm") as statm:
            self.base_bytes = int(statm.read().split()[0]) * resource.getpagesize()

    def serve(self) -> NoReturn:
        """Answer requests until the supervisor closes its end."""
        while (frame := read_frame(self.requests)) is not None:
            request = json.loads(frame)
            self._set_limits(request["limits"])
            inputs = [codec.from_tagged(node) for node in request["inputs"]]
            self._stay()
            if request["task"] == "inspect":
                outcomes = self.inspect(request["program"], inputs)
            else:
                required = request["required"]
                outcomes = self.run(request["program"], inputs, required, request["fail_fast"], request["careful"])
            self._roam()
            write_all(self.replies, pack_outcomes(outcomes))
        os._exit(0)

    def _stay(self) -> None:
        """Keep to the CPU that the scheduler has chosen, for a moment: server and child take turns on the same memory, and
        moved to another CPU, each would fill its caches anew."""
        if self.pin:
            self.pinned = True
            jail.bind(0, {jail.current_cpu()})

    def _roam(self, child: int = 0) -> None:
        """Give the scheduler its choice back, as soon as a run turns out to be no short one."""
        if self.pinned:
            self.pinned = False
            jail.bind(0, self.cpus)
            if child:
                jail.bind(child, self.cpus)

    def _set_limits(self, limits: list[float]) -> None:
        """`limits`: seconds, MiB, bytes of output."""
        if limits == self.limits:
            return
        self.limits = limits
        self.timeout_s, memory_mb, output_bytes = limits
        self.output_bytes = int(output_bytes)
        if Layer.RLIMITS in self.layers:
            # Of this process, because it is inherited: one call fewer in each child.
            jail.limit_memory(self.base_bytes + (int(memory_mb) << 20))

    def run(self, program: str, inputs: list[Any], required: int, fail_fast: bool, careful: bool) -> list[Outcome]:
        """Run `f` of `program` on each of `inputs` (tuples of arguments).

        One child runs them one after another, each in fresh globals; after one that ended its child, the rest go on in
        a new one. With `fail_fast` the last outcome may be the first that is not ok. With `careful` the program is
        compiled in the child.

        Of the inputs, the first `required` need an outcome. The rest are variants: the child that runs the last of the
        others goes on with them, up to the first with another value than an input had, within a share of one input's
        time. A variant whose outcome is missing, for whatever reason, has none.
        """
        prepared = self._prepare(program, careful)
        if isinstance(prepared, tuple):
            return [(_STATUS[prepared[0]], prepared[1], "")] * (1 if fail_fast else required)
        outcomes: list[Outcome] = []
        while (done := len(outcomes)) < required:
            outcomes += self._run_child(program, prepared, inputs[done:], required - done, fail_fast)
            if fail_fast and len(outcomes) <= required and outcomes[-1][0] != "ok":
                break
        return outcomes

    def inspect(self, program: str, inputs: list[Any]) -> list[Outcome]:
        """The facts of `program`, found in a child: the one outcome's value. `inputs` holds one tuple of arguments."""
        if _is_too_large(program):
            return [("error", "ProgramTooLarge", "")]
        return self._run_child(program, INSPECT, inputs, 1, True)

    def _prepare(self, program: str, careful: bool) -> CodeType | Refusal | None:
        """The program compiled, or why it is refused; None where that is for the child to find out."""
        if _is_too_large(program):
            return ERROR, "ProgramTooLarge"
        code = self.programs.get(program)
        if code is None and not careful and _is_plain(program):
            prepared = self._compile_checked(program)
            if isinstance(prepared, tuple):
                return prepared
            code = prepared
            self.programs.put(program, code)
        return code

    def _compile_checked(self, program: str) -> CodeType | Refusal:
        try:
            found = safety.compile_checked(program) if self.gate else _compile(program)
            return (UNSAFE, _printable(f"{found[0]}: {found[1]}")) if isinstance(found, tuple) else found
        except MemoryError:
            return MEMORY, ""
        except Exception as error:
            return ERROR, _printable(values.type_name(error))

    # ------------------------------------------------------------------------------------------ the server's side

    def _run_child(self, program: str, code: Code, batch: list[Any], required: int, fail_fast: bool) -> list[Outcome]:
        """Fork, collect, reap. At least one outcome; fewer than the batch if the child did not survive."""
        nonce = os.urandom(_NONCE_BYTES)
        reader, writer = os.pipe()
        try:
            child = jail.fork()
        except OSError as error:
            os.close(reader)
            os.close(writer)
            return [("infrastructure", f"fork: {error.strerror}", "")]
        if child == 0:
            self._child(program, code, batch, required, writer, nonce)
        os.close(writer)
        outcomes, verdict = self._collect(child, reader, nonce, len(batch), required, fail_fast)
        os.close(reader)
        if verdict != "ended":
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if verdict == "done":
            return outcomes
        return [*outcomes, self._post_mortem(verdict, status)]

    def _collect(
        self, child: int, reader: int, nonce: bytes, count: int, required: int, fail_fast: bool
    ) -> tuple[list[Outcome], str]:
        """Read a child's frames up to its end or the deadline, which every frame but a variant's extends.

        Returns the outcomes and `done` (there is nothing to add to them), or why a required one is missing: `deadline`,
        `protocol`, or `ended`.
        """
        outcomes: list[Outcome] = []
        data = bytearray()
        poll = select.poll()
        # Most children have ended within moments: to be woken by that alone saves a switch of processes per frame.
        poll.register(reader, 0)
        deadline = Deadline(child, self.timeout_s)
        if not poll.poll(min(self.timeout_s * 1000, PATIENCE_MS)):
            self._roam(child)
        poll.modify(reader, select.POLLIN)
        while True:
            while (left_s := deadline.left_s()) > 0 and not (readable := poll.poll(math.ceil(left_s * 1000))):
                pass
            if left_s <= 0 or not readable:
                # Too late to leave, but not too late to answer.
                return outcomes, "done" if len(outcomes) >= required else "deadline"
            part = os.read(reader, 1 << 16)
            if not part:
                return outcomes, "done" if len(outcomes) >= required else "ended"
            data += part
            share = 0.0
            while len(data) >= _HEADER.size:
                sent, size = _HEADER.unpack_from(data)
                if sent != nonce or not 0 < size <= self.output_bytes + 1 or len(outcomes) == count:
                    return outcomes[: required - 1], "protocol"
                if len(data) < _HEADER.size + size:
                    break
                status = _STATUS.get(bytes(data[_HEADER.size : _HEADER.size + 1]))
                text = data[_HEADER.size + 1 : _HEADER.size + size].decode("ascii", "replace")
                del data[: _HEADER.size + size]
                if status is None or not text.isascii() or "\n" in text or "\t" in text:
                    return outcomes[: required - 1], "protocol"
                outcomes.append((status, "", text) if status == "ok" else (status, _printable(text), ""))
                if len(outcomes) <= required:
                    share = VARIANTS_SHARE if len(outcomes) == required < count else 1
                    if fail_fast and status != "ok":
                        return outcomes, "done"
                if status == "memory":
                    return outcomes, "done"
            if data and len(outcomes) == count:
                return outcomes[: required - 1], "protocol"
            if share:
                deadline.restart(share * self.timeout_s)

    def _post_mortem(self, verdict: str, status: int) -> Outcome:
        """The finding about a child that owes an outcome: `verdict` as of `_collect`, `status` its exit code."""
        if verdict == "deadline":
            return "timeout", "", ""
        if verdict == "protocol":
            return "crashed", "not the agreed frames", ""
        if status == -signal.SIGSYS:
            return "unsafe", "system call", ""
        if status == -signal.SIGXCPU:
            return "timeout", "", ""
        if status == -signal.SIGKILL and Layer.SECCOMP in self.layers:
            return "infrastructure", "not enclosed, or killed from outside", ""
        return "crashed", signal.Signals(-status).name if status < 0 else f"exit {status}", ""

    # ------------------------------------------------------------------------------------------- the child's side

    def _child(self, program: str, code: Code, batch: list[Any], required: int, writer: int, nonce: bytes) -> NoReturn:
        try:
            try:
                os.closerange(keeper.REQUESTS, writer)  # the reader too, which was made before the writer
                if self.orphans:
                    # In a process namespace the kernel ends it with the server, which is that namespace's first process.
                    jail.die_with_parent()
                    if os.getppid() != self.pid:
                        os._exit(1)
                    jail.limit_cpu(math.ceil(self.timeout_s * len(batch)) + 1)
                if self.filtered:
                    jail.enclose_child()
            except BaseException:
                # Not the program's fault. Nothing inside the wall can send this signal, so it can't be forged.
                os.kill(os.getpid(), signal.SIGKILL)
            self._answer(program, code, batch, required, writer, nonce)
        finally:
            os._exit(0)

    def _answer(self, program: str, code: Code, batch: list[Any], required: int, writer: int, nonce: bytes) -> None:
        """Run the program on every input and write a frame for each; of those beyond `required`, up to another value."""
        if isinstance(code, str):
            prepared: CodeType | Refusal = self._inspect(program, *batch[0])
        else:
            prepared = code or self._compile_checked(program)
        first = ""
        kept: list[Any] = []  # nothing is destroyed before the end, so that no `__del__` runs between two inputs
        for place, args in enumerate(batch):
            kind, text = prepared if isinstance(prepared, tuple) else self._call(prepared, args, kept)
            data = text.encode("ascii", "replace")
            write_all(writer, nonce + (len(data) + 1).to_bytes(4, "big") + kind + data)
            if place == 0:
                first = text
            elif place >= required and kind == VALUE and _differ(text, first):
                break

    def warm_up(self) -> None:
        """Do what children do, here: the interpreter then has specialised their code and filled its caches, which are
        inherited. Done in each child for itself, it would dirty pages there.
        """
        nonce = bytes(_NONCE_BYTES)
        code = _compile("def f(x, y=1):\n    return {'a': [x], 'b': (x + y, 0.5, None, True), 'c': str(x)}")
        for number in range(WARM_UP_RUNS):
            self._answer("", code, [(number,)], 1, _NULL, nonce)
            self.run("def f(x): return [x]", [(number,)], 1, fail_fast=True, careful=False)
            inspection.inspect("def f(x, y):  # comment\n    return f'{x}'", True, True)

    def _call(self, code: CodeType, args: tuple[Any, ...], kept: list[Any]) -> Refusal:
        """What the child states of one input.

        The builtins are one object for all inputs: a copy would touch every one of them. The policy gives a program no
        way to it; one that gets there changes its own later answers, which the second run then finds.
        """
        namespace = facades.program_globals(self.builtins)
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
                return UNSAFE, _printable(str(error))
            return ERROR, values.type_name(error)
        try:
            return VALUE, codec.encode(value, self.output_bytes)
        except values.UnserialisableError as error:
            return UNSERIALISABLE, str(error)
        except values.BudgetError:
            return TOO_LARGE, ""
        except MemoryError:
            return MEMORY, ""

    def _inspect(self, program: str, *options: bool) -> Refusal:
        sys.setrecursionlimit(MAX_INSPECTION_DEPTH)
        try:
            return VALUE, codec.encode(inspection.inspect(program, *options), self.output_bytes)
        except MemoryError:
            return MEMORY, ""
        except values.BudgetError:
            return TOO_LARGE, ""
        except Exception as error:
            return ERROR, values.type_name(error)


def _differ(one: str, other: str) -> bool:
    """Whether two encodings are those of different values. A set's elements come in any order: then it can't be told."""
    return one != other and '["s"' not in one and '["f"' not in one


def _is_too_large(program: str) -> bool:
    return len(program) > MAX_PROGRAM_BYTES or len(program.encode("utf-8", "surrogatepass")) > MAX_PROGRAM_BYTES


def _compile(program: str) -> CodeType:
    return compile(program, "<program>", "exec", dont_inherit=True)


def _is_plain(program: str) -> bool:
    """Whether the parser can't be made to work hard by this text."""
    if len(program) > MAX_PLAIN_CHARACTERS:
        return False
    depth = 0
    for character in program.encode("utf-8", "replace").translate(None, _NOT_BRACKETS):
        depth += 1 if character in b"([{" else -1
        if depth > MAX_PLAIN_DEPTH:
            return False
    return True


def _printable(text: str) -> str:
    """Model-made text for a line of ASCII."""
    return "".join([letter if " " <= letter <= "~" else "?" for letter in text[:100]])


def _shift_addresses() -> list[object]:
    """Allocations of random number and size, to be kept: no two fork servers then give one object one place.

    The kernel moves whole pages only. Without this, the last digits of `id(x)`, or of a `repr` with an address in it,
    would agree in both runs of the determinism check. To be called before the imports, so that it moves what they make.
    """
    makers: list[Callable[[], object]] = [object, lambda: 0.1 + len(makers)]
    # The other size classes of CPython's allocator, by way of a type whose own part is 33 bytes; beyond them is malloc.
    makers += [functools.partial(bytes, size) for size in range(15, 480, 16)]
    kept = [make() for make, count in zip(makers, os.urandom(len(makers)), strict=True) for _ in range(count % 32)]
    return [*kept, bytes(1024 + 16 * os.urandom(1)[0])]


def main(
    requests: int, replies: int, config: dict[str, Any], wanted: Collection[Layer], missing: namespaces.Missing
) -> NoReturn:
    """Build the wall, report it, serve. On failure the report says why, and nothing is served.

    `missing` is what the keeper could not have of `wanted`.
    """
    shifted = _shift_addresses()
    os.environ.pop("LD_BIND_NOW", None)
    try:
        warnings.simplefilter("ignore")  # programs' own, which the compiler gives
        facades.load_codecs()
        # What stays away is known only when there is no way back to the file system.
        zygote = Zygote(requests, replies, config["gate"], wanted)
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
            write_all(replies, frames.pack(json.dumps({"error": f"{type(error).__name__}: {error}"}).encode("ascii")))
        os._exit(1)
    zygote.kept = shifted
    zygote.pin = config["pin"]
    zygote.warm_up()
    if zygote.gate:
        facades.seal()
    # Collected objects would be written to, and every page that is written to after a fork is copied.
    gc.collect()
    gc.freeze()
    write_all(replies, frames.pack(json.dumps({"missing": missing}).encode("ascii")))
    zygote.serve()
