"""The format of the data in a sandbox's three pipes.

    REQUESTS  supervisor to fork server: the limits of one request (`NUMBERS`); then to the child: a frame with the rest
    REPLIES   fork server to supervisor: a frame at its start; then one a request, how the child ended (`ENDING`)
    VALUES    child to supervisor: statements

A frame is a length (four bytes, big-endian) and that number of bytes. The frame to the child is a nonce and JSON. A
statement is the nonce, a length, one byte for the kind of statement, and its text. The fork server reads the numbers
and nothing else: it never holds a program, an input or a value.
"""

from __future__ import annotations

import os
import struct

REQUESTS, REPLIES, VALUES = 3, 4, 5
"""Descriptors of the pipes in the fork server."""

LENGTH = struct.Struct(">I")
NUMBERS = struct.Struct(">dI")
"""Limits of a child: CPU time in seconds, memory in MiB."""
ENDING = struct.Struct(">?i")
"""End of a child: whether it was stopped at its deadline, and its exit code, or minus the signal that killed it."""

NONCE_BYTES = 16
STATEMENT = struct.Struct(f">{NONCE_BYTES}sI")

# Kinds of statements; the text is the encoded value, an exception's type, or what was refused.
VALUE, ERROR, MEMORY, TOO_LARGE, UNSERIALISABLE, UNSAFE = b"V", b"E", b"M", b"L", b"U", b"G"


def pack(data: bytes) -> bytes:
    """Make a frame of `data`."""
    return LENGTH.pack(len(data)) + data


def read_frame(fd: int) -> bytes | None:
    """Read one frame from a blocking descriptor; None at the end of the stream."""
    header = read_exactly(fd, LENGTH.size)
    return None if header is None else read_exactly(fd, LENGTH.unpack(header)[0])


def read_exactly(fd: int, size: int) -> bytes | None:
    """Read `size` bytes from a blocking descriptor; None at the end of the stream."""
    data = bytearray()
    while len(data) < size:
        part = os.read(fd, min(size - len(data), 1 << 20))
        if not part:
            return None
        data += part
    return bytes(data)


def write_all(fd: int, data: bytes) -> None:
    """Write every byte of `data` to a blocking descriptor."""
    while data:
        data = data[os.write(fd, data) :]
