"""Both ends of a run's control socket, over which `azr scale` and `azr verify` send requests to the driver.

The socket is in the run's scratch folder (`launch/run/scratch.py`), which only the run's user can enter. Requests and
answers are JSON objects: an answer is `{"ok": true, ...}` or `{"ok": false, "error": why}`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import zmq

from executor.user_error import UserError
from launch.json_lines import to_json
from launch.run.scratch import check_private, scratch_of

ANSWER_S = 10.0
"""Seconds that `ask` waits for the driver's answer."""

Handler = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class ControlError(UserError):
    """A run does not answer, or refuses a request; the message says what to do."""


class ControlServer:
    """Answers requests on the run's socket, on a thread of its own, until closed."""

    def __init__(self, run: Path, handlers: Mapping[str, Handler]) -> None:
        """The run's scratch folder must exist. `handlers`: by name, the function that answers `{"do": name, ...}`.

        Its UserError or ValueError is sent as `error`.
        """
        self._handlers = handlers
        path = socket_path(run)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, 1 << 16)
        self._socket.bind(f"ipc://{path}")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="azr-control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._stop.set()
        self._thread.join()
        self._socket.close()
        self._context.term()

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
    """Ask the driver of the run in folder `run`; returns its answer without `ok`. Raises ControlError."""
    path = socket_path(run)
    context = zmq.Context()
    socket = context.socket(zmq.REQ)
    socket.setsockopt(zmq.LINGER, 0)
    try:
        if path.exists():
            check_private(path.parent.parent)
            socket.connect(f"ipc://{path}")
            socket.send(to_json({"do": do, **details}).encode())
        if not path.exists() or not socket.poll(int(1000 * ANSWER_S)):
            raise ControlError(
                f"nobody answers for the run {run}: is it running, on this machine and as this user? "
                "`azr train` starts one"
            )
        answer: dict[str, Any] = json.loads(socket.recv())
    finally:
        socket.close()
        context.term()
    if not answer.pop("ok"):
        raise ControlError(f"the run {run} refuses: {answer.get('error')}")
    return answer


def socket_path(run: Path) -> Path:
    """The path of the control socket of the run in folder `run`."""
    return scratch_of(run) / "control"
