"""The frames on the pipes between the supervisor and a sandbox: a length (four bytes, big-endian) and as many bytes."""

from __future__ import annotations

import struct

LENGTH = struct.Struct(">I")


def pack(data: bytes) -> bytes:
    """`data` as a frame."""
    return LENGTH.pack(len(data)) + data
