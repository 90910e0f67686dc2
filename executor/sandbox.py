"""One sandbox, seen from outside: start its fork server, send it a request, replace it when it is dead or wedged.

Everything here blocks, and a `Sandbox` belongs to the thread that starts it: the kernel kills the fork server when that
thread ends, so that nothing outlives the pool. `pool.py` gives every sandbox a thread of its own.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from executor import codec, frames, literals, values
from executor.cgroup import Cgroup
from executor.deadline import MAX_STRETCH
from executor.inspection import FACTS_BYTES, Facts
from executor.layers import ALL, Layer, Tier, tier_of
from executor.settings import ExecutorSettings
from executor.user_error import UserError

START_TIMEOUT_S = 60.0
"""For a cold interpreter on a slow file system."""
GRACE_S = 10.0
"""What the fork server may take beyond its children's deadlines before it counts as wedged."""

MAX_REPLY_BYTES = 1 << 30
_STOP_TIMEOUT_S = 5.0
_SERVER_BYTES = 128 << 20
"""What a fork server and its keeper may take of a control group, beyond two executions' memory."""
# -P -s -S: nothing but the standard library on the path. Not -I, which would ignore the hash seed.
_BOOT = "import sys, json; sys.path.append(sys.argv[1]); from executor import keeper, zygote; sys.path.pop(); \
keeper.main(int(sys.argv[2]), json.loads(sys.argv[3]))"


class InfrastructureError(UserError):
    """The sandbox itself failed. It says nothing about the program, and is never a verdict or a reward."""

    exit_code = 3


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
    isolated: bool = True
    """False for what ran without seccomp, which `executor.allow_unsafe` permits."""


@dataclass(frozen=True)
class Limits:
    """What one execution may take; the meanings are those of ExecutorSettings."""

    timeout_s: float
    memory_mb: int
    output_bytes: int

    @classmethod
    def of(cls, settings: ExecutorSettings) -> Limits:
        """The limits that `settings` give."""
        return cls(settings.timeout_s, settings.memory_mb, settings.output_bytes)

    def within(self, outer: Limits) -> Limits:
        """These, if a sandbox made for `outer` can hold to them; its control group is no larger. Raises ValueError."""
        if self.memory_mb > outer.memory_mb:
            raise ValueError(
                f"{self.memory_mb} MiB for one execution is beyond executor.memory_mb = {outer.memory_mb}; raise that"
            )
        return self


class DeadError(Exception):
    """The fork server is dead, wedged, or has found a failure that is not the program's. Its work can be done again."""


def failed_twice(error: DeadError) -> InfrastructureError:
    """What callers get when a second fork server has failed as the first did."""
    return InfrastructureError(f"the sandbox failed twice on one request: {error}")


class Task(StrEnum):
    """What a fork server is asked to do with a program."""

    RUN = "run"
    INSPECT = "inspect"
    """To read it (`inspection.py`). The one input is the arguments for that, the value is the facts."""


@dataclass(frozen=True)
class Request:
    """One program and its inputs, ready to be sent to a fork server."""

    program: str
    nodes: str
    """The inputs, encoded, with commas between them."""
    count: int
    required: int
    """How many of the inputs must have an outcome: the rest are variants."""
    limits: Limits
    fail_fast: bool
    task: Task = Task.RUN

    @classmethod
    def of(
        cls, program: str, inputs: Sequence[str], limits: Limits, fail_fast: bool, variants: Sequence[str] = ()
    ) -> Request:
        """Encode `inputs`. Raises values.CodecError for one that is not literals."""
        given = [*inputs, *variants]
        nodes = ",".join([_encoded(text) if len(text) <= _SHORT else _encode(text) for text in given])
        return cls(program, nodes, len(given), len(inputs), limits, fail_fast)

    @classmethod
    def inspection(cls, program: str, limits: Limits, strip_comments: bool, strip_docstrings: bool) -> Request:
        """To have `program` read."""
        nodes = _encoded(f"{strip_comments}, {strip_docstrings}")
        return cls(program, nodes, 1, 1, replace(limits, output_bytes=FACTS_BYTES), True, Task.INSPECT)

    @property
    def timeout_s(self) -> float:
        """When the answer is overdue, in seconds."""
        return self.count * MAX_STRETCH * self.limits.timeout_s + GRACE_S

    def frame(self, careful: bool) -> bytes:
        """The bytes to send. `careful`: a fork server has died on this, so the next one may not touch it itself."""
        options = {
            "task": self.task,
            "program": self.program,
            "required": self.required,
            "fail_fast": self.fail_fast,
            "careful": careful,
            "limits": [self.limits.timeout_s, self.limits.memory_mb, self.limits.output_bytes],
        }
        data = f'{json.dumps(options)[:-1]},"inputs":[{self.nodes}]}}'.encode("ascii")
        return frames.pack(data)


def facts_of(outcome: Outcome) -> Facts | Outcome:
    """What an inspection found; the outcome itself where that is no facts."""
    if outcome.status is not Status.OK:
        return outcome
    try:
        # The canonical text can be longer than the encoding by quotes and commas only.
        return Facts.of(literals.parse_literal(outcome.value, 2 * FACTS_BYTES))
    except ValueError as error:
        return Outcome(Status.CRASHED, detail=str(error), isolated=outcome.isolated)


class Sandbox:
    """A fork server under one hash seed. Not thread-safe, but for `abort`.

    With `gate=False` the policy is off and only the wall is left; `layers` are those of the wall that are tried, all of
    them by default. Both are for tests and measurements. A layer that can't be had is reported by `layers`; without
    seccomp, or a layer of `settings.require`, nothing starts.
    """

    def __init__(
        self, settings: ExecutorSettings, hash_seed: int, gate: bool = True, layers: frozenset[Layer] = ALL
    ) -> None:
        self._settings = settings
        self._limits = Limits.of(settings)
        self._hash_seed = hash_seed
        self._gate = gate
        self._wanted = layers
        self._process: subprocess.Popen[bytes] | None = None
        self._cgroup: Cgroup | None = None
        self._requests = self._replies = -1
        self._received = bytearray()
        self._aborted = False
        self._isolated = True
        self.layers: dict[Layer, str] = {}
        """Every layer: "" where it is active, otherwise why it is not. Empty before the first start."""
        self.pid: int | None = None
        """The fork server's process id while it runs."""
        self.starts = 0
        """How often a fork server has been started."""
        self.executions = 0
        """How many inputs have been run."""

    @property
    def tier(self) -> Tier:
        """The tier that the active layers amount to."""
        return tier_of([layer for layer, why in self.layers.items() if not why])

    def start(self) -> None:
        """Start the fork server. Raises InfrastructureError where it, or what must be of its wall, can't be had."""
        missing = {layer: "switched off" for layer in Layer if layer not in self._wanted}
        if Layer.CGROUP in self._wanted:
            try:
                self._cgroup = Cgroup.create(2 * (self._limits.memory_mb << 20) + _SERVER_BYTES)
            except OSError as error:
                missing[Layer.CGROUP] = error.strerror or str(error)
        try:
            missing |= self._launch()
        except DeadError as error:
            code = self._process.poll() if self._process else None
            self.stop()
            raise InfrastructureError(f"the sandbox did not start: {error} (exit code {code})") from None
        self.layers = {layer: missing.get(layer, "") for layer in Layer}
        self._isolated = self.tier is not Tier.D
        self.starts += 1
        try:
            self._check_layers()
        except InfrastructureError:
            self.stop()
            raise

    def _launch(self) -> dict[Layer, str]:
        """Start the processes and wait until the wall stands. Returns what is missing of it."""
        config = {
            "gate": self._gate,
            "layers": sorted(self._wanted),
            "pin": self._settings.pin_cpus,
            "cgroup": [str(folder) for folder in self._cgroup.folders] if self._cgroup else [],
        }
        root = str(Path(__file__).resolve().parent.parent)
        command = [sys.executable, "-P", "-s", "-S", "-B", "-c", _BOOT, root, str(os.getpid()), json.dumps(config)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                # LD_BIND_NOW: no child has to look up symbols for itself.
                env={"PYTHONHASHSEED": str(self._hash_seed), "LD_BIND_NOW": "1"},
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            self.stop()
            raise InfrastructureError(f"the sandbox's interpreter could not be started: {error}") from error
        assert self._process.stdin and self._process.stdout
        self._requests, self._replies = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._requests, False)
        os.set_blocking(self._replies, False)
        deadline = time.monotonic() + START_TIMEOUT_S
        # The keeper and the fork server both write here, in any order, and each in one piece.
        found: dict[str, Any] = {}
        while not found.keys() >= {"zygote", "missing"} and "error" not in found:
            found |= json.loads(self._read_frame(deadline))
        if "error" in found:
            self.stop()
            raise InfrastructureError(f"no sandbox without its wall, so nothing will be run: {found['error']}")
        self.pid = found["zygote"]
        return {Layer(name): why for name, why in found["missing"].items()}

    def _check_layers(self) -> None:
        lacking = [layer for layer in self._settings.require if self.layers[layer]]
        if lacking:
            reasons = "; ".join(f"{layer}: {self.layers[layer]}" for layer in lacking)
            raise InfrastructureError(
                f"executor.require asks for layers that are not to be had here ({reasons}). `azr doctor` says what helps."
            )
        if self.tier is Tier.D and not self._settings.allow_unsafe:
            raise InfrastructureError(
                "the wall is too weak to run model-written programs: "
                + "; ".join(f"{layer}: {why}" for layer, why in self.layers.items() if why)
                + ". `azr doctor` says what helps; executor.allow_unsafe=true runs them all the same."
            )

    def execute(
        self,
        program: str,
        inputs: Sequence[str],
        limits: Limits | None = None,
        *,
        fail_fast: bool = False,
        variants: Sequence[str] = (),
    ) -> list[Outcome]:
        """Run `f` of `program` on every input (the text between the parentheses of a call, literals only).

        Returns one outcome per input, aligned; with `fail_fast` those up to the first that is not ok; then those of
        `variants` that were run, see `Pool.execute`. Raises values.CodecError for an input that is not literals,
        ValueError for memory beyond the settings', InfrastructureError if the fork server fails twice.
        """
        limits = limits.within(self._limits) if limits else self._limits
        return self.answer(Request.of(program, inputs, limits, fail_fast, variants))

    def answer(self, request: Request) -> list[Outcome]:
        """Have `request` done, by a second fork server if the first fails. Raises InfrastructureError."""
        for attempt in (1, 2):
            if self._aborted:
                break
            try:
                if self._process is None:
                    self.start()
                deadline = time.monotonic() + request.timeout_s
                self._write(request.frame(careful=attempt == 2), deadline)
                return self.outcomes(request, self._read_frame(deadline))
            except DeadError as error:
                self.stop()
                if attempt == 2 and not self._aborted:
                    raise failed_twice(error) from None
        raise InfrastructureError("the pool was closed")

    def outcomes(self, request: Request, frame: bytes) -> list[Outcome]:
        """The outcomes that the fork server's answer to `request` states. Raises DeadError for a failure of its own."""
        found = []
        for line in frame.decode("ascii").split("\n"):
            status, detail, text = line.split("\t", 2)
            if status == Status.INFRASTRUCTURE:
                raise DeadError(detail)
            found.append(self._outcome(Status(status), detail, text, request.limits))
        if request.task is Task.RUN:
            self.executions += len(found)
        return found

    def abort(self) -> None:
        """Make a request that is under way in another thread fail soon. Only `close` may follow."""
        self._aborted = True
        process = self._process
        if process:
            process.terminate()

    def close(self) -> None:
        """End and reap the fork server; its children die with it."""
        self._aborted = True
        self.stop()

    def stop(self) -> None:
        """End and reap the fork server. It can be started again."""
        self.pid = None
        self._requests = self._replies = -1
        self._received.clear()
        if process := self._process:
            self._process = None
            # The keeper kills the fork server and leaves when all that was inside is gone.
            process.terminate()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    pipe.close()
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()  # the kernel takes the rest with it
                process.wait()
        if self._cgroup:
            self._cgroup.remove()
            self._cgroup = None

    def _outcome(self, status: Status, detail: str, text: str, limits: Limits) -> Outcome:
        if status is not Status.OK:
            return Outcome(status, detail=detail, isolated=self._isolated)
        try:
            value = (
                _read_short(text) if len(text) <= min(_SHORT, limits.output_bytes) else _read(text, limits.output_bytes)
            )
        except values.CodecError as error:
            return Outcome(Status.CRASHED, detail=f"not an encoded value: {error}", isolated=self._isolated)
        return Outcome(status, value, isolated=self._isolated)

    @property
    def pipes(self) -> tuple[int, int]:
        """Descriptors for requests and replies, non-blocking; -1 while there is no fork server."""
        return self._requests, self._replies

    def _write(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._requests, view) :]
            except BlockingIOError:
                self._wait(self._requests, select.POLLOUT, deadline)
            except BrokenPipeError:
                raise DeadError("the fork server died") from None

    def _read_frame(self, deadline: float) -> bytes:
        """The next frame, without its length. What came with it stays for the next call."""
        received = self._received
        while True:
            if len(received) >= frames.LENGTH.size:
                (size,) = frames.LENGTH.unpack_from(received)
                if size > MAX_REPLY_BYTES:
                    raise DeadError("the fork server sent an impossible length")
                end = frames.LENGTH.size + size
                if len(received) >= end:
                    frame = bytes(received[frames.LENGTH.size : end])
                    del received[:end]
                    return frame
            self._wait(self._replies, select.POLLIN, deadline)
            with contextlib.suppress(BlockingIOError):
                part = os.read(self._replies, 1 << 16)
                if not part:
                    raise DeadError("the fork server died")
                received += part

    def _wait(self, fd: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(fd, event)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise DeadError("the fork server did not answer in time")


_SHORT = 512
"""Values up to this length are remembered in their other form: a task's inputs, and so its outputs, come many times."""


def _encode(text: str) -> str:
    limit = values.MAX_INPUT_BYTES
    return codec.encode(literals.parse_args(text, limit), limit)


def _read(text: str, max_bytes: int) -> str:
    return values.canonical(codec.decode(text, max_bytes))


@functools.lru_cache(maxsize=4096)
def _read_short(text: str) -> str:
    return _read(text, _SHORT)


_encoded = functools.lru_cache(maxsize=4096)(_encode)
