"""The stream measured: trajectories and bytes a second, and latency, beside other ways to bring them to another
process.

Four ways take turns, the second time backwards, each from one process to this one, at 200, 2,000 and 8,000 tokens:

- *stream*: the way of a run. An actor answers every granted slot; here everything that arrives is checked, taken by the
  gate, acknowledged, and handed out in batches.
- *raw pyzmq*: the same frames over bare ZeroMQ sockets, without any check: the limit.
- *Ray queue*: `ray.util.queue`, the trajectory as an object (pickled).
- *multiprocessing queue*: the standard library's, the trajectory as an object (pickled).

The latency of a single trajectory, from the moment before it is sent until it can be used here, is measured apart,
while nothing else travels.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import zmq

from executor.sandbox.jail import die_with_parent
from launch.bench.options import add_seconds
from launch.bench.peers import LineProcess
from launch.bench.report import Goal, Report, Samples, Slice, by_run, describe_versions, progress
from launch.bench.stream_sender import CAPACITY, trajectory
from learner.settings import BatchSettings
from learner.staleness import Gate
from learner.stream.server import StreamServer
from learner.trajectory import Trajectory, encode

TOKENS = (200, 2_000, 8_000)
SINGLES = 50
"""Trajectories whose latency is taken, in each half of a run."""
GAP_S = 0.002
PEERS = ("ray", "multiprocessing")
BYTES_GOAL = Goal(0.7)
RAY_GOAL = Goal(10.0)
RUNS = 5

DESCRIPTION = """\
Measures the stream from an actor to the learner, at 200, 2,000 and 8,000 tokens a trajectory: what a run does
(grants, checks, gate, acknowledgements), in turns with the same frames over bare ZeroMQ, a Ray queue and a
multiprocessing queue.
"""

EXAMPLES = """\
examples:
  azr bench stream                                   one to two minutes
  azr bench stream --json stream.json                the same findings as JSON too
"""


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    runs: int = 5
    seconds: float = 0.5
    """Seconds of one way at one length, in each half of a run."""
    tokens: tuple[int, ...] = TOKENS
    peers: tuple[str, ...] = PEERS


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `azr bench stream`."""
    add_seconds(parser, 0.5, "a way's time at one length, twice in each run")


def measure(arguments: argparse.Namespace) -> Report:
    """Measure as the command line says. Raises UserError."""
    return run(Options(arguments.runs, arguments.seconds))


class Way(Protocol):
    """One way to bring trajectories here."""

    def receive(self, tokens: int, seconds: float) -> tuple[int, float]:
        """Receive trajectories of `tokens` tokens for about `seconds`; returns their number and the exact seconds."""

    def latencies(self, tokens: int, count: int) -> list[float]:
        """Seconds that each of `count` single trajectories was under way."""


def run(options: Options) -> Report:
    """Measure and report."""
    report = Report(
        "stream",
        {"runs": options.runs, "seconds": options.seconds, "tokens": list(options.tokens)},
        describe_versions(("azr", "pyzmq", "msgpack", "ray")),
    )
    samples: dict[tuple[str, int], Samples] = {}
    with ExitStack() as stack:
        step = stack.enter_context(progress(2 * options.runs * len(options.tokens) + 1))
        step("starting the senders")
        ways: dict[str, Way] = {"stream": _Stream(stack), "raw pyzmq": stack.enter_context(_raw())}
        if "ray" in options.peers:
            ways["Ray queue"] = stack.enter_context(_ray_queue())
        if "multiprocessing" in options.peers:
            ways["multiprocessing queue"] = stack.enter_context(_multiprocessing_queue())
        for name, way in ways.items():
            for tokens in options.tokens:
                samples[name, tokens] = Samples(f"{name}, {tokens:,} tokens", "trajectories")
                way.receive(tokens, options.seconds / 5)
        for _ in range(options.runs):
            for names in (list(ways), list(ways)[::-1]):
                for tokens in options.tokens:
                    step(f"{tokens:,} tokens")
                    for name in names:
                        samples[name, tokens].add(_measure(ways[name], tokens, options.seconds))
            for sample in samples.values():
                sample.end_run()
    for (_, tokens), sample in samples.items():
        size = sum(len(frame) for frame in encode(trajectory(tokens)))
        row = sample.row()
        report.rows.append(row | {"detail": f"{row['rate'] * size / 1e6:.0f} MB/s"})
    _ratio(report, samples, "bytes_over_raw_zmq_8k", ("stream", "raw pyzmq"), 8_000, BYTES_GOAL)
    _ratio(report, samples, "rate_over_ray_queue_200", ("stream", "Ray queue"), 200, RAY_GOAL)
    _ratio(report, samples, "rate_over_multiprocessing_200", ("stream", "multiprocessing queue"), 200)
    _ratio(report, samples, "bytes_over_multiprocessing_8k", ("stream", "multiprocessing queue"), 8_000)
    return report


def _ratio(
    report: Report,
    samples: dict[tuple[str, int], Samples],
    key: str,
    names: tuple[str, str],
    tokens: int,
    goal: Goal | None = None,
) -> None:
    over, under = (samples.get((name, tokens)) for name in names)
    if over is None or under is None:
        report.notes[key] = f"{' or '.join(names)} was not measured at {tokens:,} tokens"
    report.ratio(key, by_run(over.rates, under.rates) if over and under else [], goal)


def _measure(way: Way, tokens: int, seconds: float) -> Slice:
    count, took = way.receive(tokens, seconds)
    return Slice(count, took, way.latencies(tokens, SINGLES))


def _sender(way: str, endpoint: str) -> LineProcess:
    return LineProcess(f"the sender over {way}", [sys.executable, "-m", "launch.bench.stream_sender", way, endpoint])


class _Actor:
    """A server, its gate, and one actor that answers at once. A batch is `quota` solutions, and `1 + ahead` are
    open."""

    def __init__(self, stack: ExitStack, quota: int, ahead: int) -> None:
        batch = BatchSettings(kinds=("deduction",), propose={}, solve={"deduction": quota})
        self._server = StreamServer(Gate(batch, max_staleness=ahead, solutions=8), run_id="bench")
        stack.callback(self._server.close)
        self._sender = stack.enter_context(_sender("azr", self._server.endpoint))
        self._server.wait_for_members(1, 30.0)
        self._publish()

    def lengthen(self, tokens: int) -> None:
        """Have trajectories of that length from now on."""
        self._sender.ask({"tokens": tokens})
        for _ in range(2):
            self.train(self.batch())  # what was granted before may be of another length

    def batch(self) -> list[Trajectory]:
        """The next batch."""
        batch = self._server.next_batch(60.0)
        assert batch is not None
        return batch

    def train(self, batch: list[Trajectory]) -> None:
        """Say that it is trained and the next version loaded, which grants the next slots."""
        self._server.mark_trained([item.slot for item in batch])
        self._server.mark_published(self._server.gate.version + 1)
        self._publish()

    def _publish(self) -> None:
        # No weights are loaded here: the actor is at whatever version is published.
        for member in self._server.members():
            member.loaded_version = self._server.gate.version
        self._server.mark_loaded()


class _Stream:
    """One actor with many slots for the rate, one with a single slot for the latency."""

    def __init__(self, stack: ExitStack) -> None:
        self._many = _Actor(stack, CAPACITY // 4, ahead=3)
        self._single = _Actor(stack, 1, ahead=0)

    def receive(self, tokens: int, seconds: float) -> tuple[int, float]:
        self._many.lengthen(tokens)
        started = time.perf_counter()
        count = 0
        while (took := time.perf_counter() - started) < seconds:
            batch = self._many.batch()
            self._many.train(batch)
            count += len(batch)
        return count, took

    def latencies(self, tokens: int, count: int) -> list[float]:
        self._single.lengthen(tokens)
        found = []
        for _ in range(count):
            (item,) = self._single.batch()
            found.append(time.monotonic() - item.timings["sent_at"])
            time.sleep(GAP_S)  # before the next is granted: it comes at once
            self._single.train([item])
        return found


class _Raw:
    def __init__(self, socket: zmq.Socket[bytes], sender: LineProcess) -> None:
        self._socket = socket
        self._sender = sender
        self._rate = 1000.0

    def receive(self, tokens: int, seconds: float) -> tuple[int, float]:
        count = max(100, int(self._rate * seconds))
        self._sender.tell({"tokens": tokens, "count": count, "gap_s": 0})
        self._socket.recv_multipart()
        started = time.perf_counter()
        for _ in range(count - 1):
            self._socket.recv_multipart()
        took = time.perf_counter() - started
        self._sender.answer()
        self._rate = count / took
        return count - 1, took

    def latencies(self, tokens: int, count: int) -> list[float]:
        from learner.trajectory import decode

        self._sender.tell({"tokens": tokens, "count": count, "gap_s": GAP_S})
        found = []
        for _ in range(count):
            frames = self._socket.recv_multipart()
            arrived = time.monotonic()
            found.append(arrived - decode(frames).timings["sent_at"])
        self._sender.answer()
        return found


@contextmanager
def _raw() -> Iterator[_Raw]:
    context = zmq.Context()
    socket = context.socket(zmq.PULL)
    socket.bind("tcp://127.0.0.1:0")
    try:
        with _sender("zmq", socket.getsockopt_string(zmq.LAST_ENDPOINT)) as sender:
            yield _Raw(socket, sender)
    finally:
        socket.close(0)
        context.term()


class _Queue:
    """A queue of objects that a process at the other end fills as `order` says."""

    def __init__(self, get: Callable[[], Any], order: Callable[[int, int, float], None]) -> None:
        self._get = get
        self._order = order
        self._rate = 200.0

    def receive(self, tokens: int, seconds: float) -> tuple[int, float]:
        count = max(20, int(self._rate * seconds))
        self._order(tokens, count, 0.0)
        self._get()
        started = time.perf_counter()
        for _ in range(count - 1):
            self._get()
        took = time.perf_counter() - started
        self._rate = count / took
        return count - 1, took

    def latencies(self, tokens: int, count: int) -> list[float]:
        self._order(tokens, count, GAP_S)
        found = []
        for _ in range(count):
            item = self._get()
            found.append(time.monotonic() - item.timings["sent_at"])
        return found


def fill(target: Any, tokens: int, count: int, gap_s: float) -> None:
    """Put `count` trajectories of `tokens` tokens into a queue, `gap_s` seconds apart."""
    made = trajectory(tokens)
    for _ in range(count):
        if gap_s:
            time.sleep(gap_s)
            made = trajectory(tokens, sent_at=time.monotonic())
        target.put(made)


def fill_as_told(orders: Any, target: Any) -> None:
    """Fill `target` for each order that comes from `orders`, until it is None; runs in a process of its own."""
    die_with_parent()
    while (order := orders.get()) is not None:
        fill(target, *order)


@contextmanager
def _multiprocessing_queue() -> Iterator[_Queue]:
    context = multiprocessing.get_context("spawn")
    orders, target = context.Queue(), context.Queue(CAPACITY)
    process = context.Process(target=fill_as_told, args=(orders, target), daemon=True)
    process.start()
    try:
        yield _Queue(lambda: target.get(timeout=60), lambda *order: orders.put(order))
    finally:
        orders.put(None)
        process.join(10)
        process.kill()


@contextmanager
def _ray_queue() -> Iterator[_Queue]:
    import ray
    from ray.util.queue import Queue

    ray.init(
        num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False, _node_ip_address="127.0.0.1"
    )
    try:
        target = Queue(maxsize=CAPACITY)
        filler = ray.remote(num_cpus=1)(fill)
        ray.get(filler.remote(target, 10, 1, 0.0))
        target.get(timeout=60)

        def order(tokens: int, count: int, gap_s: float) -> None:
            filler.remote(target, tokens, count, gap_s)

        yield _Queue(lambda: target.get(timeout=60), order)
    finally:
        ray.shutdown()
