"""A network of a benchmark's own: a loopback that nothing else uses, and that can be made as slow as a real link.

It is a network namespace of the calling thread and of the threads and processes that it starts from then on. The rate
is limited by a token bucket of the kernel (tc-tbf). Linux only; needs the right to make namespaces (root).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from executor.user_error import UserError

_CLONE_NEWNET = 0x40000000
_BURST = "256kb"
"""More than the largest packet of a loopback, 64 KiB."""
_LATENCY = "100ms"
"""Longest that a packet may wait; what would wait longer is dropped."""


class NoOwnNetwork(UserError):
    """This process may not make a network of its own; the text says what it lacks."""

    exit_code = 1


class Network:
    """The network that `own_network` makes."""

    def limit(self, bits_per_s: float | None) -> None:
        """Limit the loopback to a rate; None: as fast as it goes. Raises NoOwnNetwork."""
        if bits_per_s is None:
            _run("tc", "qdisc", "del", "dev", "lo", "root")
            return
        rate = f"{bits_per_s:.0f}bit"
        _run("tc", "qdisc", "replace", "dev", "lo", "root", "tbf", "rate", rate, "burst", _BURST, "latency", _LATENCY)


@contextmanager
def own_network() -> Iterator[Network]:
    """Give this thread a network of its own, and the former one back at the end. Raises NoOwnNetwork."""
    libc = ctypes.CDLL(None, use_errno=True)
    former = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(_CLONE_NEWNET):
            raise NoOwnNetwork(f"no network namespace can be made ({os.strerror(ctypes.get_errno())}); root may")
        try:
            _run("ip", "link", "set", "lo", "up")
            yield Network()
        finally:
            libc.setns(former, _CLONE_NEWNET)
    finally:
        os.close(former)


def _run(program: str, *arguments: str) -> None:
    if shutil.which(program) is None:
        raise NoOwnNetwork(f"{program} is not installed; it is in the package iproute2 of most distributions")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoOwnNetwork(f"{program} {' '.join(arguments)}: {done.stderr.strip()}")
