"""Compiled programs, kept by a fork server where its children can't find them."""

from __future__ import annotations

import marshal
import mmap
from types import CodeType

CACHE_BYTES = 1 << 20


class ProgramCache:
    """A cache of compiled programs in memory that a fork leaves out.

    An answer to an induction task is run by the server that has run the task's own program; it must not find that
    program in its memory. Only the code looked up last is an ordinary object, and that is the one that is run next.
    When the memory is full, the cache begins anew.
    """

    def __init__(self, size: int = CACHE_BYTES) -> None:
        self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._memory.madvise(mmap.MADV_DONTFORK)
        self._index: dict[int, tuple[int, int, int]] = {}
        self._used = 0
        self._last: tuple[str, CodeType] | None = None

    def get(self, program: str) -> CodeType | None:
        """The program's code, if it is here."""
        if self._last and self._last[0] == program:
            return self._last[1]
        self._last = None
        if (place := self._index.get(hash(program))) is None:
            return None
        start, middle, end = place
        if self._memory[start:middle] != program.encode("utf-8", "surrogatepass"):
            return None  # two texts with one hash
        # Its own marshalled code, from memory that nobody else can write.
        code: CodeType = marshal.loads(self._memory[middle:end])
        self._last = (program, code)
        return code

    def put(self, program: str, code: CodeType) -> None:
        """Keep `code`."""
        self._last = (program, code)
        text, compiled = program.encode("utf-8", "surrogatepass"), marshal.dumps(code)
        size = len(text) + len(compiled)
        if size > len(self._memory):
            return
        if self._used + size > len(self._memory):
            self._index.clear()
            self._used = 0
        start, middle = self._used, self._used + len(text)
        self._used += size
        self._memory[start:middle] = text
        self._memory[middle : self._used] = compiled
        self._index[hash(program)] = (start, middle, self._used)
