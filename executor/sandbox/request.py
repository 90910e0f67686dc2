"""A request to a sandbox: the bytes to send, and the outcomes that the answer stands for.

`Request` describes the work of one child. `Exchange` is one attempt at it: it makes the bytes to send, takes the bytes
that come back, and turns them into outcomes. Neither does input or output, so that a blocking sandbox and an event loop
share them.
"""

from __future__ import annotations

import functools
import json
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from executor import codec, literals, values
from executor.inspection import FACTS_BYTES, Facts
from executor.outcomes import DeadError, Limits, Outcome, Status
from executor.sandbox import frames
from executor.sandbox.deadline import MAX_STRETCH

GRACE_S = 10.0
"""Seconds that the fork server may take beyond its child's deadline before it counts as hung."""

_STATUS = {
    frames.VALUE: Status.OK,
    frames.ERROR: Status.ERROR,
    frames.MEMORY: Status.MEMORY,
    frames.TOO_LARGE: Status.OUTPUT_TOO_LARGE,
    frames.UNSERIALISABLE: Status.UNSERIALISABLE,
    frames.UNSAFE: Status.UNSAFE,
}


class Operation(StrEnum):
    """An operation of a child on a program."""

    RUN = "run"
    INSPECT = "inspect"
    """Read it (`inspection.py`). The one input holds the options of the inspection; the value is the facts."""


@dataclass(frozen=True)
class Request:
    """The work of one child: a program, its inputs, and the limits."""

    program: str
    nodes: str
    """The inputs, encoded and separated by commas."""
    count: int
    limits: Limits
    operation: Operation = Operation.RUN
    optional: bool = False
    """Whether inputs may be left without an outcome: several share the child, one after another."""
    stop_at_difference: bool = False
    """Whether the child stops at a value that differs from an earlier one. Only where `optional`."""

    @classmethod
    def run(cls, program: str, given: str, limits: Limits) -> Request:
        """A request to run `program` on one input. Raises values.CodecError for an input that is not literals."""
        return cls(program, _node(given), 1, limits)

    @classmethod
    def probe(cls, program: str, inputs: Sequence[str], limits: Limits, stop_at_difference: bool) -> Request:
        """A request to run `program` on `inputs` in one child, as far as it gets. Raises values.CodecError."""
        nodes = ",".join([_node(text) for text in inputs])
        return cls(program, nodes, len(inputs), limits, optional=True, stop_at_difference=stop_at_difference)

    @classmethod
    def inspection(cls, program: str, limits: Limits, strip_comments: bool, strip_docstrings: bool) -> Request:
        """A request to find the facts of `program`."""
        nodes = _node(f"{strip_comments}, {strip_docstrings}")
        return cls(program, nodes, 1, replace(limits, output_bytes=FACTS_BYTES), Operation.INSPECT)

    @property
    def timeout_s(self) -> float:
        """Seconds after which the answer is overdue."""
        return MAX_STRETCH * self.limits.timeout_s + GRACE_S


class Exchange:
    """One attempt at a request on one fork server. `isolated`: whether seccomp is active there."""

    def __init__(self, request: Request, isolated: bool) -> None:
        self._request = request
        self._isolated = isolated
        self._nonce = os.urandom(frames.NONCE_BYTES)
        self._stated = bytearray()
        self._reply = bytearray()
        self._room = request.count * (frames.STATEMENT.size + request.limits.output_bytes + 1)

    def to_send(self) -> bytes:
        """The bytes for the pipe of requests: numbers for the fork server, then a frame for the child."""
        request, limits = self._request, self._request.limits
        options = {
            "operation": request.operation,
            "program": request.program,
            "stop_at_difference": request.stop_at_difference,
            "output_bytes": limits.output_bytes,
        }
        content = f'{json.dumps(options)[:-1]},"inputs":[{request.nodes}]}}'.encode("ascii")
        return frames.NUMBERS.pack(limits.timeout_s, limits.memory_mb) + frames.pack(self._nonce + content)

    def take_statements(self, data: bytes) -> bool:
        """Take bytes from the pipe of values. Returns whether more may follow, by the statements' largest size."""
        self._stated += data[: max(0, self._room + 1 - len(self._stated))]
        return len(self._stated) <= self._room

    def take_reply(self, data: bytes) -> bool:
        """Take bytes from the pipe of replies. Returns whether the reply is complete. Raises DeadError if malformed."""
        self._reply += data
        if len(self._reply) < frames.LENGTH.size:
            return False
        size: int = frames.LENGTH.size + frames.LENGTH.unpack_from(self._reply)[0]
        if size != frames.LENGTH.size + frames.ENDING.size or len(self._reply) > size:
            raise DeadError("the fork server sent an impossible frame")
        return len(self._reply) == size

    def outcomes(self) -> list[Outcome]:
        """The outcomes of the request, once the reply is complete and the pipe of values is empty.

        One outcome; for an optional request, those that the child stated. Raises DeadError for a failure that is not
        the program's.
        """
        late, code = frames.ENDING.unpack_from(self._reply, frames.LENGTH.size)
        found, rest = self._statements()
        if self._request.optional:
            return found
        if found and not rest:
            # It counts even if the child then ended late, or not as it should.
            return found
        return [self._missing(late, code, rest)]

    def _statements(self) -> tuple[list[Outcome], bytes]:
        """The outcomes that the child stated in the agreed form, and the bytes that follow them."""
        found: list[Outcome] = []
        data = bytes(self._stated)
        header, limit = frames.STATEMENT.size, self._request.limits.output_bytes
        while len(found) < self._request.count and len(data) >= header:
            nonce, size = frames.STATEMENT.unpack_from(data)
            if nonce != self._nonce or not 0 < size <= limit + 1 or len(data) < header + size:
                break
            status = _STATUS.get(data[header : header + 1])
            text = data[header + 1 : header + size].decode("ascii", "replace")
            if status is None or not text.isascii():
                break
            found.append(self._outcome(status, text))
            data = data[header + size :]
        return found, data

    def _outcome(self, status: Status, text: str) -> Outcome:
        if status is not Status.OK:
            return Outcome(status, detail=_printable(text), isolated=self._isolated)
        limit = self._request.limits.output_bytes
        try:
            if len(text) <= min(_SHORT, limit):
                value = _read_short(text)
            else:
                value = (_read_recent if len(text) <= values.MAX_BYTES else _read)(text, limit)
        except values.CodecError as error:
            return Outcome(Status.CRASHED, detail=f"not an encoded value: {error}", isolated=self._isolated)
        return Outcome(status, value, isolated=self._isolated)

    def _missing(self, late: bool, code: int, rest: bytes) -> Outcome:
        """The outcome of a child that did not state one. `rest`: the bytes that it wrote instead."""
        status, detail = Status.CRASHED, signal.Signals(-code).name if code < 0 else f"exit {code}"
        if late or code == -signal.SIGXCPU:
            status, detail = Status.TIMEOUT, ""
        elif code == -signal.SIGSYS:
            status, detail = Status.UNSAFE, "system call"
        elif code == -signal.SIGKILL and self._isolated:
            raise DeadError("a child was not enclosed, or killed from outside")
        elif rest:
            detail = "not the agreed frames"
        return Outcome(status, detail=detail, isolated=self._isolated)


def facts_of(outcome: Outcome) -> Facts | Outcome:
    """The facts that an inspection found, or its outcome if it found none."""
    if outcome.status is not Status.OK:
        return outcome
    try:
        # The canonical text can be longer than the encoding by quotes and commas only.
        return Facts.of(literals.parse_literal(outcome.value, 2 * FACTS_BYTES))
    except ValueError as error:
        return Outcome(Status.CRASHED, detail=str(error), isolated=outcome.isolated)


_SHORT = 512
"""Values up to this length are remembered in their other form: a task's inputs, and so its outputs, come many times."""


def _node(text: str) -> str:
    return _encoded(text) if len(text) <= _SHORT else _encode(text)


def _encode(text: str) -> str:
    limit = values.MAX_INPUT_BYTES
    return codec.encode(literals.parse_args(text, limit), limit)


def _read(text: str, max_bytes: int) -> str:
    return values.canonical(codec.decode(text, max_bytes))


_read_recent = functools.lru_cache(maxsize=32)(_read)
"""Remembers long values: the runs of one program give the same one several times, and reading it can take 50 ms."""


@functools.lru_cache(maxsize=4096)
def _read_short(text: str) -> str:
    return _read(text, _SHORT)


_encoded = functools.lru_cache(maxsize=4096)(_encode)


def _printable(text: str) -> str:
    """Model-written text, cut to 100 characters and made safe for a line of ASCII."""
    return "".join([letter if " " <= letter <= "~" else "?" for letter in text[:100]])
