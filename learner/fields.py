"""Checks of what comes over the wire: headers, single fields, and the error for those that do not follow the schema."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgpack

MAX_HEADER_BYTES = 1 << 16
MAX_ITEMS = 512
"""Items of a list and keys of a map in a header. msgpack makes room for what a list announces, at each of up to 1,024
levels: with 16,384 items, a header of 5 KB took 60 ms to refuse; with 512, 2 ms."""

MAX_TEXT = 512
"""Characters of a string in a header."""


class Refusal(StrEnum):
    """Reason for refusing a message. Counted; never trained on."""

    HEADER = "bad_header"
    SCHEMA = "unknown_schema"
    FRAMES = "wrong_frame_count"
    LENGTH = "wrong_length"
    TOO_LARGE = "too_large"
    NOT_FINITE = "not_finite"
    VERSIONS = "bad_version_spans"
    FIELD = "bad_field"
    TYPE = "unknown_type"
    SENDER = "unknown_sender"
    CELL = "unknown_cell"
    """Well-formed, but not one that this run's batches have."""


class WireError(ValueError):
    """A message does not follow the schema; `refusal` says how."""

    def __init__(self, refusal: Refusal, detail: str) -> None:
        super().__init__(f"{refusal}: {detail}")
        self.refusal = refusal


def unpack_header(frame: bytes | memoryview, max_items: int = MAX_ITEMS) -> dict[str, Any]:
    """Return the msgpack map with string keys in `frame`; anything else is refused as `bad_header`."""
    try:
        header = msgpack.unpackb(
            frame, raw=False, strict_map_key=True, max_ext_len=0, max_array_len=max_items, max_map_len=max_items
        )
    except Exception as error:  # msgpack raises many types, RecursionError and UnicodeDecodeError among them
        raise WireError(Refusal.HEADER, type(error).__name__) from error
    if not isinstance(header, dict) or not {str}.issuperset(map(type, header)):
        raise WireError(Refusal.HEADER, f"a {type(header).__name__}, not a map with string keys")
    return header


def whole(value: object) -> int:
    """Return `value` if it is an integer of 0 to 2**63 - 1; raises `WireError` otherwise, as do the functions below."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise WireError(Refusal.FIELD, f"{value!r:.40} where a whole number was due")
    return value


def flag(value: object) -> bool:
    """Return `value` if it is true or false."""
    if type(value) is not bool:
        raise WireError(Refusal.FIELD, f"{value!r:.40} where true or false was due")
    return value


def number(value: object) -> float:
    """Return `value` as a float if it is a number, finite or not."""
    if type(value) is not float and type(value) is not int:
        raise WireError(Refusal.FIELD, f"{value!r:.40} where a number was due")
    return float(value)


def text(value: object) -> str:
    """Return `value` if it is a string of at most 512 characters."""
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise WireError(Refusal.FIELD, f"{value!r:.40} where a short string was due")
    return value


def number_map(value: object) -> dict[str, float]:
    """Return `value` if it is a map from short strings to numbers, with these as floats."""
    if not isinstance(value, dict):
        raise WireError(Refusal.FIELD, f"{value!r:.40} where a map of numbers was due")
    found: dict[str, float] = {}
    for key, item in value.items():  # of a thousand actors a second: the calls are left out where nothing is wrong
        name = key if type(key) is str and len(key) <= MAX_TEXT else text(key)
        found[name] = item if type(item) is float else number(item)
    return found
