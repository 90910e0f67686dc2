"""The fork server inside the wall: it forks a child per request, runs the program there, and says what became of it.

Started by `sandbox.py` with exec, an empty environment, its standard streams on the null device, and two pipes. It
imports the standard library and this package's light files, encloses itself (`jail.py`), and then serves requests, one
at a time. It is single-threaded.

A program that has not been seen before is parsed, checked and compiled in the child, so that no text can hurt the
server; once a child has compiled it, the server compiles and caches it for the next time. The status of a run is the
server's own finding, from the child's frames, its deadline and its wait status. A child can lie about its own program's
value only, which the program could do by returning it: expected outputs never come here.

Frames to and from the supervisor: a length (four bytes, big-endian) and JSON. Frames from a child: a nonce, a length,
one byte that names the kind of statement, and its text.
"""

from __future__ import annotations

import contextlib
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
import time
from collections import OrderedDict
from types import CodeType
from typing import Any, NoReturn

from executor import jail, safety, values

MAX_CACHED_PROGRAMS = 256

# Codecs that `str.encode` would have to load from files, which can't be opened any more.
_CODECS = ("ascii", "cp1252", "latin_1", "utf_16", "utf_16_be", "utf_16_le", "utf_32", "utf_8_sig", "unicode_escape")

_LENGTH = struct.Struct(">I")
_NONCE_BYTES = 16
_HEADER = struct.Struct(f">{_NONCE_BYTES}sI")

# What a child may state; the texts are the encoded value, an exception's type, or what was refused.
COMPILED, VALUE, ERROR, MEMORY, TOO_LARGE, UNSERIALISABLE, UNSAFE = b"C", b"V", b"E", b"M", b"L", b"U", b"G"
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


def read_frame(fd: int) -> bytes | None:
    """One frame, or None at the end of the stream. For blocking descriptors."""
    header = _read_exactly(fd, _LENGTH.size)
    return None if header is None else _read_exactly(fd, _LENGTH.unpack(header)[0])


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


def pack_frame(message: object) -> bytes:
    """A frame of JSON for the other side of the pipe."""
    data = json.dumps(message, separators=(",", ":")).encode("ascii")
    return _LENGTH.pack(len(data)) + data


class Zygote:
    """The fork server's state. `config`: timeout_s, memory_mb, output_bytes, gate (False leaves only the wall)."""

    def __init__(self, requests: int, replies: int, config: dict[str, Any]) -> None:
        self.requests = requests
        self.replies = replies
        self.timeout_s: float = config["timeout_s"]
        self.memory_bytes: int = config["memory_mb"] << 20
        self.output_bytes: int = config["output_bytes"]
        self.gate: bool = config["gate"]
        self.programs: OrderedDict[str, CodeType | None] = OrderedDict()
        """Programs that a child has compiled; None until the server has done so itself."""
        self.builtins = safety.program_builtins() if self.gate else vars(importlib.import_module("builtins"))
        self.pid = os.getpid()
        with open("/proc/self/statm") as statm:
            self.base_bytes = int(statm.read().split()[0]) * resource.getpagesize()

    def serve(self) -> NoReturn:
        """Answer requests until the supervisor closes its end."""
        while (frame := read_frame(self.requests)) is not None:
            request = json.loads(frame)
            inputs = [values.decode(text, values.MAX_INPUT_BYTES) for text in request["inputs"]]
            outcomes = self.run(request["program"], inputs, request["fail_fast"])
            write_all(self.replies, pack_frame(outcomes))
        os._exit(0)

    def run(self, program: str, inputs: list[Any], fail_fast: bool) -> list[Outcome]:
        """Run `f` of `program` on each of `inputs` (tuples of arguments).

        One child runs them one after another, each in fresh globals; after one that ended its child, the rest go on in
        a new one. With `fail_fast` the last outcome may be the first that is not ok.
        """
        outcomes: list[Outcome] = []
        while len(outcomes) < len(inputs):
            code = self._lookup(program)
            outcomes += self._run_child(program, code, inputs[len(outcomes) :], fail_fast)
            if fail_fast and outcomes[-1][0] != "ok":
                break
        return outcomes

    def _lookup(self, program: str) -> CodeType | None:
        """The compiled program if a child has compiled it before."""
        if program not in self.programs:
            return None
        self.programs.move_to_end(program)
        code = self.programs[program]
        if code is None:
            code = self.programs[program] = _compile(program)
        return code

    def _remember(self, program: str) -> None:
        self.programs[program] = None
        if len(self.programs) > MAX_CACHED_PROGRAMS:
            self.programs.popitem(last=False)

    # ------------------------------------------------------------------------------------------ the server's side

    def _run_child(self, program: str, code: CodeType | None, batch: list[Any], fail_fast: bool) -> list[Outcome]:
        """Fork, collect, reap. At least one outcome; fewer than the batch if the child did not survive."""
        nonce = os.urandom(_NONCE_BYTES)
        reader, writer = os.pipe()
        try:
            child = os.fork()
        except OSError as error:
            os.close(reader)
            os.close(writer)
            return [("infrastructure", f"fork: {error.strerror}", "")]
        if child == 0:
            self._child(program, code, batch, reader, writer, nonce)
        os.close(writer)
        outcomes, verdict = self._collect(program, reader, nonce, len(batch), fail_fast)
        os.close(reader)
        if verdict != "ended":
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if verdict == "done":
            return outcomes
        return [*outcomes, _post_mortem(verdict, status)]

    def _collect(
        self, program: str, reader: int, nonce: bytes, count: int, fail_fast: bool
    ) -> tuple[list[Outcome], str]:
        """Read a child's frames up to its end or the deadline, which every frame extends.

        Returns the outcomes and `done` (there is nothing to add to them), or why one is missing: `deadline`,
        `protocol`, or `ended`.
        """
        outcomes: list[Outcome] = []
        data = bytearray()
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        deadline = time.monotonic() + self.timeout_s
        while True:
            left_ms = math.ceil((deadline - time.monotonic()) * 1000)
            if left_ms <= 0 or not poll.poll(left_ms):
                # Too late to leave, but not too late to answer.
                return outcomes, "done" if len(outcomes) == count else "deadline"
            part = os.read(reader, 1 << 16)
            if not part:
                return outcomes, "done" if len(outcomes) == count else "ended"
            data += part
            while len(data) >= _HEADER.size:
                sent, size = _HEADER.unpack_from(data)
                if sent != nonce or not 0 < size <= self.output_bytes + 1 or len(outcomes) == count:
                    return outcomes[: count - 1], "protocol"
                if len(data) < _HEADER.size + size:
                    break
                statement = bytes(data[_HEADER.size : _HEADER.size + 1])
                text = bytes(data[_HEADER.size + 1 : _HEADER.size + size]).decode("ascii", "replace")
                del data[: _HEADER.size + size]
                deadline = time.monotonic() + self.timeout_s
                if statement == COMPILED:
                    self._remember(program)
                    continue
                if statement not in _STATUS:
                    return outcomes[: count - 1], "protocol"
                status = _STATUS[statement]
                outcomes.append((status, "", text) if status == "ok" else (status, text, ""))
                if status == "memory" or (fail_fast and status != "ok"):
                    return outcomes, "done"
            if data and len(outcomes) == count:
                return outcomes[:-1], "protocol"

    # ------------------------------------------------------------------------------------------- the child's side

    def _child(
        self, program: str, code: CodeType | None, batch: list[Any], reader: int, writer: int, nonce: bytes
    ) -> NoReturn:
        try:
            try:
                for fd in (reader, self.requests, self.replies):
                    os.close(fd)
                cpu_s = math.ceil(self.timeout_s * len(batch)) + 1
                jail.enclose_child(self.pid, self.base_bytes + self.memory_bytes, cpu_s)
            except BaseException:
                # Not the program's fault. Nothing inside the wall can send this signal, so it can't be forged.
                os.kill(os.getpid(), signal.SIGKILL)
            gc.enable()
            # Other programs may be what an induction answer should find for itself.
            self.programs.clear()
            refusal = None
            if code is None:
                code, refusal = self._compile_checked(program)
                if code is not None:
                    write_all(writer, _statement(nonce, COMPILED, ""))
            kept: list[Any] = []  # nothing is destroyed before the end, so that no `__del__` runs between two inputs
            for args in batch:
                statement = refusal or self._call(code, args, kept)
                write_all(writer, _statement(nonce, *statement))
        finally:
            os._exit(0)

    def _compile_checked(self, program: str) -> tuple[CodeType | None, tuple[bytes, str] | None]:
        try:
            if self.gate and (found := safety.check(program)):
                return None, (UNSAFE, f"{found[0]}: {ascii(found[1])[1:-1][:80]}")
            return _compile(program), None
        except MemoryError:
            return None, (MEMORY, "")
        except Exception as error:
            return None, (ERROR, values.type_name(error))

    def _call(self, code: CodeType | None, args: tuple[Any, ...], kept: list[Any]) -> tuple[bytes, str]:
        """What the child states of one input."""
        namespace: dict[str, Any] = {"__name__": "solution", "__builtins__": dict(self.builtins)}
        kept.append(namespace)
        try:
            exec(code, namespace)  # type: ignore[arg-type]  # there is code where there was no refusal
            function = namespace.get("f")
            if not callable(function):
                return ERROR, "MissingFunction"
            value = function(*args)
            kept.append(value)
        except MemoryError:
            return MEMORY, ""
        except BaseException as error:
            return ERROR, values.type_name(error)
        try:
            return VALUE, values.encode(value, self.output_bytes)
        except values.UnserialisableError as error:
            return UNSERIALISABLE, str(error)
        except values.BudgetError:
            return TOO_LARGE, ""
        except MemoryError:
            return MEMORY, ""


def _compile(program: str) -> CodeType:
    return compile(program, "<program>", "exec", dont_inherit=True)


def _statement(nonce: bytes, kind: bytes, text: str) -> bytes:
    data = kind + text.encode("ascii", "replace")
    return _HEADER.pack(nonce, len(data)) + data


def _post_mortem(verdict: str, status: int) -> Outcome:
    """The finding about a child that owes an outcome: `verdict` as of `_collect`, `status` its exit code."""
    if verdict == "deadline":
        return "timeout", "", ""
    if verdict == "protocol":
        return "crashed", "not the agreed frames", ""
    if status == -signal.SIGSYS:
        return "unsafe", "system call", ""
    if status == -signal.SIGXCPU:
        return "timeout", "", ""
    if status == -signal.SIGKILL:
        return "infrastructure", "not enclosed, or killed from outside", ""
    return "crashed", signal.Signals(-status).name if status < 0 else f"exit {status}", ""


def main(requests: int, replies: int, parent: int, config: dict[str, Any]) -> NoReturn:
    """Build the wall, report it, serve. On failure the report says why, and nothing is served."""
    try:
        for codec in _CODECS:
            importlib.import_module(f"encodings.{codec}")
        zygote = Zygote(requests, replies, config)
        landlock = jail.harden(parent)
        jail.enclose_server()
        jail.self_test()
    except BaseException as error:
        with contextlib.suppress(OSError):
            write_all(replies, pack_frame({"error": f"{type(error).__name__}: {error}"}))
        os._exit(1)
    # Collected objects would be written to, and every page that is written to after a fork is copied.
    gc.collect()
    gc.freeze()
    gc.disable()
    write_all(replies, pack_frame({"landlock": landlock}))
    zygote.serve()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))
