"""A process with the weight receivers of many rehearsed engines, which is stopped between two broadcasts.

gloo has a thread for each member of a group, which looks for work a hundred times a second. On the node of a real actor
that is nothing. A thousand on one machine take more than half a core, which the control plane then lacks. A process
that is stopped (SIGSTOP) takes none, and its connections stay.

    engine -> host     SharedReceivers, a request with the engine's key
    host -> process    ReceiverProcess: continues the process for the first request, stops it after the last answer
    process            `python -m launch.rehearsal.receiver_process`: OwnReceivers for each key
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import psutil

from executor.signals import end_with_parent, ignore_signals, withheld

if TYPE_CHECKING:
    from launch.rehearsal.receivers import OwnReceivers
    from learner.weights.group import GroupSpec
    from learner.weights.manifest import TensorSpec

NICENESS = 19
"""Hundreds of threads that run at once would leave the single threads of the control plane hardly a share."""
_LENGTH = struct.Struct("<I")
Request = Literal["connect", "receive", "checksums", "close"]


class ReceiversEnded(ConnectionError):
    """The process of the receivers has ended."""


class ReceiverProcess:
    """The host's end. It belongs to one asyncio loop."""

    def __init__(
        self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Use `start`."""
        self._process = process
        self._psutil = psutil.Process(process.pid)
        self._writer = writer
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._stopped = False
        self.ended = asyncio.Event()
        self._listening = asyncio.ensure_future(self._listen(reader))

    @classmethod
    async def start(cls) -> ReceiverProcess:
        """Start the process. It ends with the thread that calls this."""
        mine, theirs = socket.socketpair()
        with theirs, withheld():
            command = [sys.executable, "-m", __name__, str(theirs.fileno()), str(os.getpid())]
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        return cls(process, *await asyncio.open_unix_connection(sock=mine))

    async def ask(self, key: str, request: Request, *arguments: Any) -> Any:
        """The answer for the engine `key`. Raises what the request raised there, ReceiversEnded."""
        if self.ended.is_set():
            raise ReceiversEnded("the process of the weight receivers has ended")
        number = next(self._numbers)
        asked = self._asked[number] = asyncio.get_running_loop().create_future()
        if self._stopped:
            self._signal(signal.SIGCONT)
        self._stopped = False
        self._writer.write(_framed((number, key, request, arguments)))
        return await asked

    def cpu_s(self) -> float:
        """CPU seconds of the process so far."""
        with contextlib.suppress(psutil.Error):
            times = self._psutil.cpu_times()
            return float(times.user + times.system)
        return 0.0

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_stopped(self) -> bool:
        """Whether it stands still, for lack of requests."""
        return self._stopped

    def kill(self) -> None:
        """End the process."""
        self._process.kill()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                number, failed, found = await _read(reader)
                asked = self._asked.pop(number)
                if not asked.done():  # else its caller was cancelled
                    asked.set_exception(found) if failed else asked.set_result(found)
                if not self._asked:
                    self._stopped = True
                    self._signal(signal.SIGSTOP)
        self.ended.set()
        self._process.kill()
        self._process.wait()
        self._writer.close()
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(ReceiversEnded("the process of the weight receivers has ended"))

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)


class SharedReceivers:
    """See `launch.rehearsal.receivers.Receivers`: those of one engine, in a process that several share."""

    def __init__(self, process: ReceiverProcess, key: str, num_workers: int) -> None:
        """`key`: names the engine among those of the process."""
        self._process = process
        self._key = f"{key}/{num_workers}"
        self._closing: asyncio.Future[Any] | None = None

    async def connect(self, spec: GroupSpec, rank: int) -> None:
        """See `Receivers`."""
        await self._process.ask(self._key, "connect", spec, rank)

    async def receive(self, manifest: Sequence[TensorSpec]) -> None:
        """See `Receivers`."""
        await self._process.ask(self._key, "receive", list(manifest))

    async def checksums(self) -> dict[str, str]:
        """See `Receivers`."""
        found: dict[str, str] = await self._process.ask(self._key, "checksums")
        return found

    async def died(self) -> None:
        """See `Receivers`."""
        await self._process.ended.wait()

    def close(self) -> None:
        """See `Receivers`."""

        async def leave() -> None:
            with contextlib.suppress(ReceiversEnded):
                await self._process.ask(self._key, "close")

        self._closing = asyncio.ensure_future(leave())


async def _serve(connection: socket.socket) -> None:
    """Answer requests until the other end is closed."""
    from launch.rehearsal.receivers import OwnReceivers

    reader, writer = await asyncio.open_unix_connection(sock=connection)
    engines: dict[str, OwnReceivers] = {}

    async def answer(number: int, key: str, request: Request, arguments: tuple[Any, ...]) -> None:
        failed, found = False, None
        try:
            if request == "close":
                if engine := engines.pop(key, None):
                    engine.close()
            else:
                if key not in engines:
                    engines[key] = OwnReceivers(int(key.rpartition("/")[2]))
                found = await getattr(engines[key], request)(*arguments)
        except Exception as error:
            failed, found = True, error
        writer.write(_framed((number, failed, found)))

    tasks = set()
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            task = asyncio.ensure_future(answer(*await _read(reader)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)


def _framed(message: Any) -> bytes:
    body = pickle.dumps(message)
    return _LENGTH.pack(len(body)) + body


async def _read(reader: asyncio.StreamReader) -> Any:
    (size,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return pickle.loads(await reader.readexactly(size))


def _main(descriptor: int, parent: int) -> None:
    """Serve on the socket `descriptor` as long as the process `parent` runs."""
    end_with_parent()  # a process that is stopped does not notice that its connection is closed
    ignore_signals()
    os.nice(NICENESS)
    if os.getppid() == parent:
        asyncio.run(_serve(socket.socket(fileno=descriptor)))


if __name__ == "__main__":
    _main(*map(int, sys.argv[1:]))
    os._exit(0)  # threads may wait for weights that never come
