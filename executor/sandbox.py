"""One sandbox, seen from outside: start its fork server, send it a request, replace it when it is dead or wedged.

Everything here blocks, and a `Sandbox` belongs to the thread that starts it: the kernel kills the fork server when that
thread ends, so that nothing outlives the pool. `pool.py` gives every sandbox a thread of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from executor import values
from executor.settings import ExecutorSettings

START_TIMEOUT_S = 60.0
"""For a cold interpreter on a slow file system."""
GRACE_S = 10.0
"""What the fork server may take beyond its children's deadlines before it counts as wedged."""
MAX_PROGRAM_BYTES = 1 << 16

_LENGTH = struct.Struct(">I")
_MAX_REPLY_BYTES = 1 << 30
# -P -s -S: nothing but the standard library on the path. Not -I, which would ignore the hash seed.
_BOOT = "import sys; sys.path.append(sys.argv[1]); from executor import zygote; sys.path.pop(); import json; \
zygote.main(int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), json.loads(sys.argv[5]))"


class InfrastructureError(RuntimeError):
    """The sandbox itself failed. It says nothing about the program, and is never a verdict or a reward."""


class Status(StrEnum):
    """What became of one execution."""

    OK = "ok"
    ERROR = "error"
    """It does not parse, has no function `f`, or raised."""
    TIMEOUT = "timeout"
    MEMORY = "memory"
    OUTPUT_TOO_LARGE = "output_too_large"
    """The value is beyond the codec's budgets. Nothing is ever cut off to fit."""
    UNSERIALISABLE = "unserialisable"
    """The value is not made of exact builtin types."""
    UNSAFE = "unsafe"
    """Refused by the policy, or stopped by the wall."""
    NONDETERMINISTIC = "nondeterministic"
    """Two sandboxes did not agree; found by the judge."""
    CRASHED = "crashed"
    """The process died, or did not answer in the agreed form."""
    INFRASTRUCTURE = "infrastructure"
    """The sandbox's own failure; tried again, then raised as InfrastructureError, never returned."""


@dataclass(frozen=True)
class Outcome:
    """The finding on one input: `value` is canonical text where the status is ok, `detail` is for people."""

    status: Status
    value: str = ""
    detail: str = ""


class Sandbox:
    """A fork server under one hash seed. Not thread-safe, but for `abort`.

    With `gate=False` the policy is off and only the wall is left, for tests of the wall.
    """

    def __init__(self, settings: ExecutorSettings, hash_seed: int, gate: bool = True) -> None:
        self._settings = settings
        self._hash_seed = hash_seed
        self._gate = gate
        self._process: subprocess.Popen[bytes] | None = None
        self._requests = self._replies = -1
        self._aborted = False
        self.landlock = 0
        """The Landlock version in force inside; 0 where the kernel has none."""

    @property
    def pid(self) -> int | None:
        """The fork server's process id while it runs."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the fork server. Raises InfrastructureError where it, or its wall, can't be had."""
        settings = self._settings
        config = settings.model_dump(include={"timeout_s", "memory_mb", "output_bytes"}) | {"gate": self._gate}
        its_requests, self._requests = os.pipe()
        self._replies, its_replies = os.pipe()
        root = str(Path(__file__).resolve().parent.parent)
        arguments = [root, str(its_requests), str(its_replies), str(os.getpid()), json.dumps(config)]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-s", "-S", "-B", "-c", _BOOT, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(its_requests, its_replies),
                env={"PYTHONHASHSEED": str(self._hash_seed)},
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            self._stop()
            raise InfrastructureError(f"the sandbox's interpreter could not be started: {error}") from error
        finally:
            os.close(its_requests)
            os.close(its_replies)
        os.set_blocking(self._requests, False)
        os.set_blocking(self._replies, False)
        try:
            hello = json.loads(self._read_frame(time.monotonic() + START_TIMEOUT_S))
        except _DeadError as error:
            code = self._process.poll()
            self._stop()
            raise InfrastructureError(f"the sandbox did not start: {error} (exit code {code})") from None
        if "error" in hello:
            self._stop()
            raise InfrastructureError(f"no sandbox without its wall, so nothing will be run: {hello['error']}")
        self.landlock = hello["landlock"]

    def execute(self, program: str, inputs: Sequence[str], fail_fast: bool = False) -> list[Outcome]:
        """Run `f` of `program` on every input (the text between the parentheses of a call, literals only).

        Returns one outcome per input, aligned; with `fail_fast` those up to the first that is not ok.
        Raises values.CodecError for an input that is not literals, InfrastructureError if the fork server fails twice.
        """
        if len(program.encode("utf-8", "surrogatepass")) > MAX_PROGRAM_BYTES:
            outcome = Outcome(Status.ERROR, detail="ProgramTooLarge")
            return [outcome] * (1 if fail_fast else len(inputs))
        limit = values.MAX_INPUT_BYTES
        encoded = [values.encode(values.parse_args(text, limit), limit) for text in inputs]
        request = json.dumps({"program": program, "inputs": encoded, "fail_fast": fail_fast}).encode("ascii")
        for attempt in (1, 2):
            if self._aborted:
                raise InfrastructureError("the pool was closed")
            try:
                if self._process is None:
                    self.start()
                return self._exchange(request, len(inputs))
            except _DeadError as error:
                self._stop()
                if attempt == 2 and not self._aborted:
                    raise InfrastructureError(f"the sandbox failed twice on one request: {error}") from None
        raise InfrastructureError("the pool was closed")

    def abort(self) -> None:
        """Make a request that is under way in another thread fail soon. Only `close` may follow."""
        self._aborted = True
        process = self._process
        if process:
            process.kill()

    def close(self) -> None:
        """End and reap the fork server; its children die with it."""
        self._aborted = True
        self._stop()

    def _stop(self) -> None:
        for fd in (self._requests, self._replies):
            if fd >= 0:
                os.close(fd)
        self._requests = self._replies = -1
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _exchange(self, request: bytes, count: int) -> list[Outcome]:
        deadline = time.monotonic() + count * self._settings.timeout_s + GRACE_S
        self._write(_LENGTH.pack(len(request)) + request, deadline)
        outcomes = []
        for status, detail, text in json.loads(self._read_frame(deadline)):
            if status == Status.INFRASTRUCTURE:
                raise _DeadError(detail)
            outcomes.append(self._outcome(Status(status), detail, text))
        return outcomes

    def _outcome(self, status: Status, detail: str, text: str) -> Outcome:
        if status is not Status.OK:
            return Outcome(status, detail=detail)
        try:
            return Outcome(status, values.canonical(values.decode(text, self._settings.output_bytes)))
        except values.CodecError as error:
            return Outcome(Status.CRASHED, detail=f"not an encoded value: {error}")

    def _write(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            self._wait(self._requests, select.POLLOUT, deadline)
            try:
                view = view[os.write(self._requests, view) :]
            except BrokenPipeError:
                raise _DeadError("the fork server died") from None

    def _read_frame(self, deadline: float) -> bytes:
        (size,) = _LENGTH.unpack(self._read(_LENGTH.size, deadline))
        if size > _MAX_REPLY_BYTES:
            raise _DeadError("the fork server sent an impossible length")
        return self._read(size, deadline)

    def _read(self, size: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._wait(self._replies, select.POLLIN, deadline)
            with contextlib.suppress(BlockingIOError):
                part = os.read(self._replies, size - len(data))
                if not part:
                    raise _DeadError("the fork server died")
                data += part
        return bytes(data)

    def _wait(self, fd: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(fd, event)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise _DeadError("the fork server did not answer in time")


class _DeadError(Exception):
    """The fork server is dead, wedged, or has found a failure that is not the program's."""
