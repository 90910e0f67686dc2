"""The learner's socket and the one thread that owns it: receiving, sending, who is let in.

Other threads `post`; the thread is woken and sends. Nothing here waits: what a peer does not take is not waited for,
and no peer can hold the thread for longer than a round, however much it sends.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Protocol

import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from learner.stream import wire
from learner.stream.keys import LearnerKeys
from learner.stream.wire import MAX_FRAME_BYTES, MAX_FRAMES

ROUND_MESSAGES = 256
"""Messages that are received before what they caused is sent: a flood must not keep acknowledgements back."""
COPIED_BYTES = 8192
"""A frame below that is copied out of ZeroMQ's receive buffer of this size, which it would keep alive as a whole. A
larger one has its own memory, and is used where it is."""
BIND_TIMEOUT_S = 30.0
"""Seconds to wait for a fixed port: an earlier life of the learner may still be closing it."""
BACKLOG = 4096
"""Connections that may wait to be accepted: a cluster's actors all start at once."""
PEER_MESSAGES = 1000
"""Messages that ZeroMQ holds for one peer, each way; a peer that sends more is slowed down by TCP."""
ZAP = "inproc://zeromq.zap.01"
WATCHED = zmq.Event.HANDSHAKE_FAILED_NO_DETAIL | zmq.Event.HANDSHAKE_FAILED_PROTOCOL | zmq.Event.DISCONNECTED


class Handler(Protocol):
    """The user of the socket. Every method is called on the socket's thread."""

    def receive(self, identity: bytes, frames: list[bytes | memoryview]) -> None:
        """One message came: at most `wire.MAX_FRAMES + 1` frames of it. Must not raise for anything that a peer
        sent."""

    def received(self) -> None:
        """A round is over: up to `ROUND_MESSAGES` calls of `receive` came before."""

    def tick(self, now: float) -> None:
        """A heartbeat is due. `now`: seconds on the monotonic clock."""

    def reached(self, identity: bytes, reachable: bool) -> None:
        """A message was sent to `identity`, or could not be because there is no connection to it."""


class ServerSocket:
    """A ROUTER with its thread."""

    def __init__(self, bind: str, keys: LearnerKeys | None, lock: threading.RLock) -> None:
        """Bind the socket; `start` begins to receive. `lock`: guards what other threads post."""
        self.failure: BaseException | None = None
        """The exception that ended the thread, if one did."""
        self.denied: Counter[str] = Counter({"denied_key": 0, "denied_handshake": 0, "disconnects": 0})
        """Number of connections that presented a foreign key, that failed the handshake, and that ended."""
        self._keys = keys
        self._lock = lock
        self._outbox: deque[tuple[bytes, bytes]] = deque()
        self._stop_at: float | None = None
        self._may_stop: Callable[[], bool] = lambda: True
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.ROUTER_HANDOVER, 1),  # an actor that connects again takes over from its broken connection
            (zmq.ROUTER_MANDATORY, 1),  # nothing is dropped without our knowing
            (zmq.LINGER, 1000),
            (zmq.BACKLOG, BACKLOG),
            (zmq.SNDHWM, PEER_MESSAGES),
            (zmq.RCVHWM, PEER_MESSAGES),
            (zmq.MAXMSGSIZE, MAX_FRAME_BYTES),
            (zmq.HEARTBEAT_IVL, wire.TCP_SILENT_MS // 3),
            (zmq.HEARTBEAT_TIMEOUT, wire.TCP_SILENT_MS),
        ):
            self._socket.setsockopt(option, value)
        self._zap: zmq.Socket[bytes] | None = None
        if keys is not None:
            self._zap = self._context.socket(zmq.REP)
            self._zap.bind(ZAP)
            self._socket.zap_domain = b"azr"
            self._socket.curve_secretkey = keys.own.secret
            self._socket.curve_server = True
        monitored, woken = f"inproc://monitor-{id(self)}", f"inproc://wake-{id(self)}"
        self._socket.monitor(monitored, WATCHED)
        self._monitor = self._context.socket(zmq.PAIR)
        self._monitor.connect(monitored)
        self._wake_in = self._context.socket(zmq.PULL)
        self._wake_in.bind(woken)
        self._wake_out = self._context.socket(zmq.PUSH)
        self._wake_out.connect(woken)
        try:
            self._bind(bind)
        except zmq.ZMQError:
            self._context.destroy(linger=0)
            raise
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._thread = threading.Thread(target=self._serve, name="azr-stream", daemon=True)

    def start(self, handler: Handler) -> None:
        """Start the thread, which calls `handler`."""
        self._handler = handler
        self._thread.start()

    def post(self, identity: bytes, frame: bytes) -> None:
        """Send a frame soon, on the thread. It is lost if there is no connection, or no room in it."""
        with self._lock:
            self._outbox.append((identity, frame))
        if threading.current_thread() is not self._thread:
            self.wake()

    def wake(self) -> None:
        """Wake the thread."""
        with self._lock, contextlib.suppress(zmq.Again, zmq.ZMQError):
            self._wake_out.send(b"", zmq.NOBLOCK)

    def stop(self, may_stop: Callable[[], bool], within_s: float) -> None:
        """End the thread once `may_stop()` holds, or after `within_s` seconds, and close every socket."""
        with self._lock:
            self._may_stop, self._stop_at = may_stop, time.monotonic() + within_s
        self.wake()
        self._thread.join(timeout=10 + within_s)
        self._wake_out.close(0)
        self._context.term()

    def _bind(self, bind: str) -> None:
        deadline = time.monotonic() + BIND_TIMEOUT_S
        while True:
            try:
                self._socket.bind(bind)
                return
            except zmq.ZMQError as error:
                if error.errno != zmq.EADDRINUSE or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    # -- the thread ----------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            self._run()
        except BaseException as error:  # whatever it is: the learner's thread must not wait without end
            self.failure = error
        finally:
            self._socket.disable_monitor()
            for socket in (self._socket, self._monitor, self._wake_in, self._zap):
                if socket is not None:
                    socket.close()

    def _run(self) -> None:
        poller = zmq.Poller()
        handlers: dict[Any, Callable[[], None]] = {
            self._wake_in: self._on_wake,
            self._socket: self._on_messages,
            self._monitor: self._on_monitor,
        }
        if self._zap is not None:
            handlers[self._zap] = self._on_zap
        for socket in handlers:
            poller.register(socket, zmq.POLLIN)
        next_beat = 0.0
        while True:
            wait_s = 0.05 if self._stop_at is not None else max(0.0, next_beat - time.monotonic())
            for socket, _ in poller.poll(timeout=int(1000 * wait_s) + 1):
                handlers[socket]()
            now = time.monotonic()
            if now >= next_beat:
                next_beat = now + wire.HEARTBEAT_S
                self._handler.tick(now)
            with self._lock:  # what `stop`'s caller posted before it is sent before the end
                stop_at = self._stop_at
                self._flush()
                if stop_at is not None and (now > stop_at or self._may_stop()):
                    return

    def _on_wake(self) -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                self._wake_in.recv(zmq.NOBLOCK)

    def _on_messages(self) -> None:
        for _ in range(ROUND_MESSAGES):
            try:
                frame = self._socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            identity = frame.bytes
            frames: list[bytes | memoryview] = []
            while frame.more:
                frame = self._socket.recv(copy=False)
                if len(frames) <= MAX_FRAMES:  # one more than any message has is enough to refuse it
                    frames.append(frame.bytes if len(frame) < COPIED_BYTES else frame.buffer)
            self._handler.receive(identity, frames)
        self._handler.received()

    def _on_monitor(self) -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                event = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))["event"]
                self.denied["disconnects" if event == zmq.Event.DISCONNECTED else "denied_handshake"] += 1

    def _on_zap(self) -> None:
        """Answer ZeroMQ's question whether a connection's key is one of the run's actors (RFC 27)."""
        assert self._zap is not None and self._keys is not None
        version, request, _domain, _address, _identity, mechanism, *credentials = self._zap.recv_multipart()
        known = mechanism == b"CURVE" and len(credentials) == 1 and z85.encode(credentials[0]) in self._keys.actors
        if not known:
            self.denied["denied_key"] += 1
        status = [b"200", b"OK"] if known else [b"400", b"no key of this run"]
        self._zap.send_multipart([version, request, *status, b"actor" if known else b"", b""])

    def _flush(self) -> None:
        while self._outbox:
            identity, frame = self._outbox.popleft()
            try:
                self._socket.send_multipart([identity, frame], zmq.NOBLOCK)
            except zmq.Again:
                pass  # connected, and not reading: control messages are sent again, and at last it is lost
            except zmq.ZMQError as error:
                if error.errno != zmq.EHOSTUNREACH:
                    raise
                self._handler.reached(identity, False)
                continue
            self._handler.reached(identity, True)
