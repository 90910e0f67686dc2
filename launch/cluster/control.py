"""Both ends of a run's control socket, over which `azr scale` and `azr verify` send requests to the driver.

The driver listens on TCP, at the address by which other machines reach it, or on loopback where the run has a Ray of
its own. `control.json` in the run folder, mode 0600, says where, and holds CURVE keys of this attempt alone: so who can
read the run folder's private files, on whichever machine, can ask, and nobody else. Requests and answers are JSON
objects: an answer is `{"ok": true, ...}` or `{"ok": false, "error": why}`.
"""

from __future__ import annotations

import json
import os
import platform
import socket as sockets
import stat
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import zmq
from zmq.auth.thread import ThreadAuthenticator

from executor.user_error import UserError
from launch.json_file import read_json
from launch.json_lines import to_json
from launch.run.folder import RunFolder
from launch.whole_file import write_text
from learner.stream.keys import KeyPair

ANSWER_S = 10.0
"""Seconds that `ask` waits for the driver's answer."""
CONNECT_S = 5.0
"""Seconds that `ask` waits for a connection."""

Handler = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class ControlError(UserError):
    """A run does not answer, or refuses a request; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """The content of `control.json`."""

    address: str
    """`tcp://host:port`"""
    driver_key: str
    """The driver's public key, as are the following Z85 text of 40 characters."""
    public_key: str
    """The public key of who asks."""
    secret_key: str = field(repr=False)
    """The secret key of who asks."""
    attempt: int
    host: str
    """The driver's, with its process id and the time when it began to listen."""
    pid: int
    time: str

    @property
    def driver(self) -> str:
        """The driver in words."""
        return f"the driver of attempt {self.attempt}, process {self.pid} on {self.host}, since {self.time}"


class _Asker:
    """Lets in the one public key that `control.json` gives; see `ThreadAuthenticator.configure_curve_callback`."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def callback(self, domain: str, key: bytes) -> bool:
        return key == self._key


class ControlServer:
    """Answers requests to the run's driver, on a thread of its own, until closed."""

    def __init__(self, run: Path, handlers: Mapping[str, Handler], host: str, attempt: int = 0) -> None:
        """`run`: the run's folder. `handlers`: by name, the function that answers `{"do": name, ...}`. `host`: the
        address to listen at. `attempt`: the number of the run's.

        A handler's UserError or ValueError is sent as `error`.
        """
        self._handlers = handlers
        self._path = RunFolder(run).control
        own, asker = KeyPair.make(), KeyPair.make()
        self._context = zmq.Context()
        self._authenticator = ThreadAuthenticator(self._context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback("*", _Asker(asker.public))
        self._socket = self._context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, 1 << 16)
        self._socket.curve_server = True
        self._socket.curve_publickey, self._socket.curve_secretkey = own.public, own.secret
        self._socket.bind(f"tcp://{host}:0")
        self._endpoint = Endpoint(
            address=self._socket.getsockopt_string(zmq.LAST_ENDPOINT),
            driver_key=own.public.decode(),
            public_key=asker.public.decode(),
            secret_key=asker.secret.decode(),
            attempt=attempt,
            host=platform.node(),
            pid=os.getpid(),
            time=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        )
        write_text(self._path, to_json(asdict(self._endpoint)) + "\n", mode=0o600)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="azr-control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering, and remove `control.json` unless it is another driver's by now."""
        self._stop.set()
        self._thread.join()
        self._socket.close()
        self._authenticator.stop()
        self._context.term()
        if read_json(self._path) == asdict(self._endpoint):
            self._path.unlink(missing_ok=True)

    def _serve(self) -> None:
        while not self._stop.is_set():
            if self._socket.poll(200):
                self._socket.send(to_json(self._answer(self._socket.recv())).encode())

    def _answer(self, data: bytes) -> dict[str, Any]:
        try:
            request = json.loads(data)
            handler = self._handlers.get(str(request.pop("do")))
            if handler is None:
                raise ValueError(f"this run knows {', '.join(sorted(self._handlers))}")
            return {"ok": True, **handler(request)}
        except (UserError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            return {"ok": False, "error": str(error)}


def ask(run: Path, do: str, **details: Any) -> dict[str, Any]:
    """Ask the driver of the run in folder `run`, from any machine that sees the folder and reaches the driver's.

    Returns its answer without `ok`. Raises ControlError.
    """
    endpoint = _read(run)
    _check_listens(run, endpoint)
    context = zmq.Context()
    socket = context.socket(zmq.REQ)
    socket.setsockopt(zmq.LINGER, 0)
    socket.curve_publickey, socket.curve_secretkey = endpoint.public_key.encode(), endpoint.secret_key.encode()
    socket.curve_serverkey = endpoint.driver_key.encode()
    try:
        socket.connect(endpoint.address)
        socket.send(to_json({"do": do, **details}).encode())
        if not socket.poll(int(1000 * ANSWER_S)):
            raise ControlError(
                f"nobody answers for the run {run}: {endpoint.driver}, listens at {endpoint.address} and gave no "
                f"answer within {ANSWER_S:.0f} s. Is it stopped? {run}/logs/driver.*.log says what it does"
            )
        answer: dict[str, Any] = json.loads(socket.recv())
    finally:
        socket.close()
        context.term()
    if not answer.pop("ok"):
        raise ControlError(f"the run {run} refuses: {answer.get('error')}")
    return answer


def _read(run: Path) -> Endpoint:
    path = RunFolder(run).control
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        found = json.loads(path.read_text())
        endpoint = Endpoint(**found)
    except FileNotFoundError:
        raise ControlError(
            f"nobody answers for the run {run}: it has no {path.name}, so it is not running, or has not begun to. "
            "`azr train` starts one"
        ) from None
    except OSError as error:
        raise ControlError(
            f"nobody can be asked for the run {run}: {path} cannot be read ({error.strerror}). Only the user who "
            "started the run can"
        ) from None
    except (ValueError, TypeError):
        raise ControlError(f"{path} is damaged: start the run again, and it is written anew") from None
    if mode & 0o077:
        raise ControlError(
            f"{path} can be read or written by others (mode {mode:04o}), and it holds keys: delete it, and start the "
            "run again"
        )
    return endpoint


def _check_listens(run: Path, endpoint: Endpoint) -> None:
    """Raise ControlError where nothing listens at the driver's address: ZeroMQ would go on trying."""
    host, _, port = endpoint.address.removeprefix("tcp://").rpartition(":")
    try:
        sockets.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        here = (
            "it was killed, and the run has ended"
            if endpoint.host == platform.node()
            else "it was killed, or this machine does not reach it"
        )
        raise ControlError(
            f"nobody answers for the run {run}: {endpoint.driver}, listened at {endpoint.address} ({why}). So {here}; "
            f"where that run is certainly gone, `azr train --resume {run}` goes on"
        ) from None
