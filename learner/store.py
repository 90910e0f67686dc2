"""The key-value store in which the processes of a group find each other: torch's, served at one address alone."""

from __future__ import annotations

import socket
from datetime import timedelta

import torch.distributed as dist


def serve_store(host: str) -> dist.TCPStore:
    """Serve a store on a free port of `host`, an address of this machine; by default torch listens on all of them.

    The port is taken from then on, so no other process can get it before the group's members come.
    """
    family = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.bind((host, 0))
    listener.listen()
    port = listener.getsockname()[1]
    return dist.TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


def join_store(host: str, port: int, timeout_s: float) -> dist.TCPStore:
    """Connect to the store that another process serves. Raises `DistError` if none answers within `timeout_s`."""
    return dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=timeout_s), wait_for_workers=False)
