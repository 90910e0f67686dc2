"""Addresses and ports of this machine."""

from __future__ import annotations

import socket

LOOPBACK = "127.0.0.1"
AUTO_HOST = "auto"
"""Value of `stream.host` for the address of the learner's machine in its Ray cluster, or loopback without one."""


def free_port(host: str = LOOPBACK) -> int:
    """A TCP port of this machine's address `host` that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def port_of(endpoint: str) -> int:
    """The port in `tcp://address:port`."""
    return int(endpoint.rpartition(":")[2])


def host_of(endpoint: str) -> str:
    """The address in `tcp://address:port`."""
    return endpoint.removeprefix("tcp://").rpartition(":")[0]
