"""One rank's membership of one weight group: who has arrived where, deadlines, and errors that name ranks.

What `WeightSender` and `WeightReceiver` work on. The backend is NCCL on GPUs and gloo on CPUs. They differ in how the
group is built (`_process_group`) and in who keeps a bucket's deadline (`Group.broadcast`, `Broadcast.wait`).
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist

DEFAULT_BUCKET_BYTES = 16 << 20
# A receiver's deadlines for word from the sender end this much later than the sender's own, so that the word arrives.
_GRACE_S = 5.0

# By default torch ends a process whose NCCL peer dies, after a minute for a dump. Here the wait raises, and the process
# goes on.
_NCCL_ENVIRONMENT = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    "TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC": "1",
}
_NCCL_POLL_S = 0.001
_TIMER_SLACK_NS = 100_000_000
_PR_SET_TIMERSLACK = 29  # prctl(2), Linux
_HERE = "1"

Backend = Literal["gloo", "nccl", "local"]


@dataclass(frozen=True)
class GroupSpec:
    """The address and size of a group, for a receiver to join. With backend `local`, `host` names a `LocalChannel`."""

    group_id: int
    host: str
    port: int
    world_size: int
    backend: Backend
    timeout_s: float
    bucket_bytes: int = DEFAULT_BUCKET_BYTES
    delta: bool = False
    """Each bucket has a header, and its payload may be what has changed (`delta.py`)."""

    def to_json(self) -> dict[str, Any]:
        """Return a plain dict, for the stream."""
        return asdict(self)

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> GroupSpec:
        """The inverse of `to_json`."""
        return cls(**item)


class WeightSyncError(RuntimeError):
    """A broadcast failed, and its group is closed. `missing`: ranks that had not arrived, or that died. `refused`:
    ranks that refused what arrived."""

    def __init__(
        self,
        what: str,
        *,
        group_id: int,
        phase: str,
        rank: int,
        missing: Sequence[int] = (),
        refused: Sequence[int] = (),
    ) -> None:
        named = f" (missing: ranks {list(missing)})" if missing and "ranks" not in what else ""
        super().__init__(f"weight sync, group {group_id}, phase {phase}, rank {rank}: {what}{named}")
        self.what = what
        self.group_id = group_id
        self.phase = phase
        self.rank = rank
        self.missing = list(missing)
        self.refused = list(refused)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle it with its fields: processes that receive for others hand it on."""
        fields = {name: getattr(self, name) for name in ("group_id", "phase", "rank", "missing", "refused")}
        return partial(type(self), **fields), (self.what,)


class WeightSyncTimeout(WeightSyncError):
    """A deadline passed. The message names the rank that waited and the ranks it waited for."""


class Group:
    """One rank's membership of one weight group. Each rank sets keys in the store as it arrives, so errors can name
    ranks."""

    def __init__(self, spec: GroupSpec, rank: int, store: dist.Store) -> None:
        self.spec = spec
        self.rank = rank
        self._store = dist.PrefixStore(f"azr/{spec.group_id}", store)
        self._process_group: Any = None
        self._travelling: set[Broadcast] = set()
        # The sender gives up earlier by the time in which survivors then say that they live: a receiver that dies costs
        # it `timeout_s` in all.
        self._grace_s = min(_GRACE_S, spec.timeout_s / 4)
        self.bucket_s = spec.timeout_s - self._grace_s if rank == 0 else spec.timeout_s
        """Seconds that a bucket may take."""
        self._update = 0
        self._linked = False

    def assemble(self) -> None:
        """Wait for every rank, then build the process group. Raises `WeightSyncTimeout`, `WeightSyncError`."""
        if self.rank == 0:
            missing = self._await([self._key("joined", rank) for rank in self._receivers()], self.spec.timeout_s)
            # The verdict lets receivers that are waiting give up with the learner, and say why.
            self._store.set("verdict", json.dumps(missing, allow_nan=False))
            if missing:
                raise self._timeout("connect", missing)
        else:
            self._announce("joined")
            if self._await(["verdict"], self.spec.timeout_s + _GRACE_S):
                raise self._timeout("connect", [0])
            missing = json.loads(self._store.get("verdict"))
            if missing:
                raise self._timeout("connect", missing)
        deadline = timedelta(seconds=self.spec.timeout_s)
        try:
            self._process_group = _process_group(self.spec, self.rank, self._store, deadline)
            if self.spec.backend == "gloo":
                self._link()
        except RuntimeError as error:
            self.close()
            if isinstance(error, WeightSyncError):
                raise
            raise self._error(f"the process group could not be built: {error}", "connect") from error
        self._linked = True

    def _link(self) -> None:
        """Connect the ranks that broadcasts of this group run between, by one of no content.

        gloo would do it in the first bucket. There, other ranks do not notice one that dies or gives up before it has
        connected: they wait for five deadlines, and so does closing the group.
        Raises WeightSyncError, which names nobody: who is missing shows when the next group is built.
        """
        try:
            self.broadcast(torch.zeros(1, dtype=torch.uint8)).wait()
        except WeightSyncError as error:
            raise self._error(f"the ranks could not connect: {error.what}", "connect") from error
        if self.rank != 0:
            self._announce("linked")
        elif self._await([self._key("linked", rank) for rank in self._receivers()], self.spec.timeout_s):
            raise self._error("the ranks could not connect: some did not say that they have", "connect")

    def begin_update(self, base_id: int = 0) -> list[int]:
        """Wait until every rank is ready for the same update. With `spec.delta`, a receiver tells the id of its base,
        and the sender gets the ids of all."""
        self._update += 1
        if self.rank == 0:
            return [int(word) for word in self._hear("ready")]
        self._announce("ready", str(base_id))
        return []

    def end_update(self) -> None:
        """Wait, on the sender, until every receiver has the last bucket. Raises `WeightSyncError` if one has refused
        the update."""
        if self.rank == 0:
            refused = {rank: word for rank, word in enumerate(self._hear("done"), 1) if word != _HERE}
            if refused:
                what = f"ranks {list(refused)} refuse the update: {refused[min(refused)]}"
                raise self._error(what, "done", refused=list(refused))
            for rank in self._receivers():
                self._store.delete_key(self._key("ready", rank))
                self._store.delete_key(self._key("done", rank))
        else:
            self._announce("done")

    def broadcast(self, flat: torch.Tensor) -> Broadcast:
        """Begin a broadcast of `flat` from rank 0 to all. Every rank calls this in the same order."""
        options = dist.BroadcastOptions()
        options.rootRank = 0
        # NCCL's is when torch's watchdog steps in, which it is not to: `Broadcast.wait` has the deadline.
        options.timeout = timedelta(days=1) if self.spec.backend == "nccl" else timedelta(seconds=self.bucket_s)
        started = time.monotonic()
        try:
            broadcast = Broadcast(self, flat, self._process_group.broadcast([flat], options))
        except RuntimeError as error:
            raise self.broken(error, time.monotonic() - started) from error
        self._travelling.add(broadcast)
        return broadcast

    def arrived(self, broadcast: Broadcast) -> None:
        """Mark this rank's broadcast as complete."""
        self._travelling.discard(broadcast)

    def broken(self, error: RuntimeError, waited_s: float) -> WeightSyncError:
        """Return the error to raise for a broadcast that failed after `waited_s` seconds."""
        if waited_s >= self.bucket_s:
            return self._timeout("transfer", self._unfinished())
        why = str(error).partition("\n")[0]  # torch goes on with the machine's stack
        return self._error(f"the broadcast broke: {why}", "transfer", self._unfinished())

    def refuse(self, why: str) -> WeightSyncError:
        """Tell the sender, as a receiver, that the update came out wrong here. Returns the error to raise."""
        with suppress(WeightSyncError):
            self._announce("done", why)
        return self._error(why, "delta")

    def say_alive(self) -> None:
        """Tell the sender, as a receiver whose broadcast failed, that this rank is alive."""
        with suppress(WeightSyncError):
            self._announce("alive")

    def without_survivors(self, error: WeightSyncError) -> WeightSyncError:
        """Return the sender's `error`, naming only the ranks that died or hang; none if a connection broke between
        ranks that all live. Call it once the group is closed: live receivers notice that and announce themselves."""
        silent = self._await([self._key("alive", rank) for rank in error.missing], self._grace_s)
        if isinstance(error, WeightSyncTimeout):
            return self._timeout(error.phase, silent)
        return self._error(error.what, error.phase, silent)

    def close(self) -> None:
        """Abort running broadcasts and leave the group. gloo cannot abort: the end of its group waits for broadcasts
        that still run, up to their deadline. A receiver leaves that wait to a thread. The sender waits, once the group
        is linked: only when its connections are closed do receivers see that the update has failed. Before that, they
        have a deadline of their own."""
        group, self._process_group = self._process_group, None
        if group is not None:
            group.abort()  # does nothing in gloo, whose connections end with the last that refers to them
        references = [group, *(broadcast.forget() for broadcast in self._travelling)]
        del group
        lingers = self.spec.backend == "gloo" and bool(self._travelling)
        self._travelling.clear()
        if lingers and (self.rank != 0 or not self._linked):
            threading.Thread(
                target=references.clear, name=f"end of weight group {self.spec.group_id}", daemon=True
            ).start()
        else:
            references.clear()

    def _receivers(self) -> range:
        return range(1, self.spec.world_size)

    def _key(self, phase: str, rank: int) -> str:
        return f"{phase}/{self._update}/{rank}"

    def _await(self, keys: list[str], seconds: float) -> list[int]:
        """Wait for keys; returns the ranks (the last part of a key) whose key is missing after `seconds`."""
        try:
            self._store.wait(keys, timedelta(seconds=seconds))
        except RuntimeError:
            return [int(key.rpartition("/")[2]) if "/" in key else 0 for key in keys if not self._has(key)]
        return []

    def _has(self, key: str) -> bool:
        try:
            return bool(self._store.check([key]))
        except RuntimeError:  # the learner's store is gone
            return False

    def _hear(self, phase: str) -> list[str]:
        """Wait for the word of each receiver. The words are read only with `spec.delta`; else they say nothing."""
        keys = [self._key(phase, rank) for rank in self._receivers()]
        if missing := self._await(keys, self.spec.timeout_s):
            raise self._timeout(phase, missing)
        return [word.decode() for word in self._store.multi_get(keys)] if self.spec.delta else []

    def _announce(self, phase: str, word: str = _HERE) -> None:
        try:
            self._store.set(self._key(phase, self.rank), word)
        except RuntimeError as error:
            raise self._error(f"rank 0 is gone: {error}", phase, [0]) from error

    def _unfinished(self) -> list[int]:
        if self.rank != 0:
            return [0]
        return [rank for rank in self._receivers() if not self._has(self._key("done", rank))]

    def _timeout(self, phase: str, missing: list[int]) -> WeightSyncTimeout:
        what = f"waited {self.spec.timeout_s:.1f} s for ranks {missing} of {self.spec.world_size}"
        return WeightSyncTimeout(what, group_id=self.spec.group_id, phase=phase, rank=self.rank, missing=missing)

    def _error(
        self, what: str, phase: str, missing: Sequence[int] = (), refused: Sequence[int] = ()
    ) -> WeightSyncError:
        group_id = self.spec.group_id
        return WeightSyncError(what, group_id=group_id, phase=phase, rank=self.rank, missing=missing, refused=refused)


class Broadcast:
    """A running broadcast of one bucket. Holds the bucket's memory until it is complete."""

    def __init__(self, group: Group, flat: torch.Tensor, work: Any) -> None:
        self._group = group
        self._flat = flat
        self._work = work

    def wait(self) -> None:
        """Wait until this rank's part is complete. Raises `WeightSyncError`, which names the ranks that are not
        done."""
        bucket_s = self._group.bucket_s
        started = time.monotonic()
        try:
            # NCCL's own wait leaves a communicator that timed out to torch's watchdog, which then stops the process.
            while self._group.spec.backend == "nccl" and not self._work.is_completed():
                if time.monotonic() - started > bucket_s:
                    raise RuntimeError("timed out")
                time.sleep(_NCCL_POLL_S)
            self._work.wait(timedelta(seconds=bucket_s))
        except RuntimeError as error:
            raise self._group.broken(error, time.monotonic() - started) from error
        self._group.arrived(self)

    def forget(self) -> Any:
        """Give the work away, which refers to its group."""
        work, self._work = self._work, None
        return work


def _process_group(spec: GroupSpec, rank: int, store: dist.Store, timeout: timedelta) -> Any:
    """Build the backend without torch's default group, which belongs to Megatron or vLLM."""
    options: Any
    if spec.backend == "nccl":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timeout
        # NCCL connects at the first broadcast, by itself without a deadline; torch reads this one once, in whole
        # seconds.
        options.config.blocking = 0
        os.environ["TORCH_NCCL_NONBLOCKING_TIMEOUT"] = str(max(1, int(spec.timeout_s - _GRACE_S)))
        with _environment(_NCCL_ENVIRONMENT):  # of this group alone: Megatron's keep what the user has set
            return dist.ProcessGroupNCCL(store, rank, spec.world_size, options)
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = timeout
    # gloo would listen at the address of the host's name; this is the one that faces the learner. A broadcast goes
    # along a tree: connected at first use, N ranks have about N connections in place of N * N / 2.
    mine = _address_towards(spec.host, spec.port)
    with _rare_wakings():
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=mine, lazy_init=True)]
    return dist.ProcessGroupGloo(store, rank, spec.world_size, options)


@contextmanager
def _rare_wakings() -> Iterator[None]:
    """Threads that start in the block may be woken up to `_TIMER_SLACK_NS` late when they wait for a time.

    gloo's thread waits for bytes, 10 ms at a time, and so wakes up a hundred times a second for nothing. Bytes still
    wake it at once; the end of the group may take that much longer.
    """
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(_TIMER_SLACK_NS), 0, 0, 0)
    try:
        yield
    finally:
        prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(0), 0, 0, 0)  # this thread's own, as before


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _address_towards(host: str, port: int) -> str:
    """Return this machine's address on the route to `host`."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])
