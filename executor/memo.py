"""The judge's memory of values and facts: bounded by characters, the least recently used is dropped first."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

V = TypeVar("V")

MEMO_BYTES = 16 << 20
"""Size of one memory, in characters of keys and values."""


class Recent(Generic[V]):
    """Keeps the most recently used values, by a key of texts, within `max_bytes` of keys and values."""

    def __init__(self, max_bytes: int = MEMO_BYTES) -> None:
        self._max_bytes = max_bytes
        self._values: OrderedDict[tuple[str, ...], tuple[V, int]] = OrderedDict()
        self.bytes = 0
        """Characters held."""

    def find(self, *key: str) -> V | None:
        """The value, or None."""
        if (found := self._values.get(key)) is None:
            return None
        self._values.move_to_end(key)
        return found[0]

    def keep(self, value: V, size: int, *key: str) -> None:
        """Remember a value of `size` characters, if the key has none yet; drop the least recently used."""
        if key not in self._values:
            size += sum(map(len, key))
            self._values[key] = value, size
            self.bytes += size
        while self.bytes > self._max_bytes:
            self.bytes -= self._values.popitem(last=False)[1][1]


class Memo(Recent[str]):
    """Canonical values that programs returned, by program and input.

    Only values: a timeout, too much memory or a crash may be the machine's doing, and is looked at again. A validated
    program is deterministic, so what it returned once it returns again. An answer's program need not be; it keeps the
    verdict that it got first, which running it again would only have drawn anew. So the judge has a memo for each.
    Nothing is validated from memory.
    """

    def get(self, program: str, given: str) -> str | None:
        """The canonical value, or None."""
        return self.find(program, given)

    def put(self, program: str, given: str, value: str) -> None:
        """Remember a canonical value."""
        self.keep(value, len(value), program, given)
