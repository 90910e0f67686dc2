"""A growing set of ids in ascending order, with access by rank, from which the task buffer draws.

Ids lie in blocks of 8-byte integers, and a Fenwick tree over the blocks' lengths finds the block of a rank. Ten million
ids take 80 MB. Of n ids, `append`, `remove` and access by rank take O(log n) steps, and move one block in memory at
most.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import pairwise

BLOCK = 512
"""Maximum number of ids in a block, and so of ids that a removal moves."""


class OrderedIds:
    """A set of ids in ascending order, with access by rank."""

    def __init__(self, ids: Iterable[int] = ()) -> None:
        """`ids` in ascending order, without repetition; raises ValueError otherwise."""
        every = array("q", ids)
        for one, other in pairwise(every):
            if one >= other:
                raise ValueError(f"ids {one} and {other} are not in ascending order")
        self._size = len(every)
        self._newest = every[-1] if every else None
        self._blocks = [every[start : start + BLOCK] for start in range(0, len(every), BLOCK)]
        self._first = [block[0] for block in self._blocks]  # the first id that each block ever had
        # Fenwick's tree, 1-based: tree[i] counts the ids of the (i & -i) blocks that end with block i.
        self._tree = [0, *(len(block) for block in self._blocks)]
        for index in range(1, len(self._tree)):
            parent = index + (index & -index)
            if parent < len(self._tree):
                self._tree[parent] += self._tree[index]

    def append(self, one: int) -> None:
        """Add an id above all that were ever in; raises ValueError otherwise."""
        if self._newest is not None and one <= self._newest:
            raise ValueError(f"id {one} is not above {self._newest}")
        if not self._blocks or len(self._blocks[-1]) >= BLOCK:
            self._blocks.append(array("q"))
            self._first.append(one)
            index = len(self._blocks)
            count, child, end = 0, index - 1, index - (index & -index)
            while child > end:
                count += self._tree[child]
                child -= child & -child
            self._tree.append(count)
        self._blocks[-1].append(one)
        self._change(len(self._blocks), 1)
        self._size += 1
        self._newest = one

    def remove(self, one: int) -> None:
        """Take an id out; raises KeyError where it is not in."""
        index = bisect_right(self._first, one) - 1
        block = self._blocks[index] if index >= 0 else array("q")
        place = bisect_left(block, one)
        if place == len(block) or block[place] != one:
            raise KeyError(one)
        del block[place]
        self._change(index + 1, -1)
        self._size -= 1

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, rank: int) -> int:
        """The id above exactly `rank` others; raises IndexError."""
        if not 0 <= rank < self._size:
            raise IndexError(rank)
        index, step = 0, 1 << (len(self._blocks).bit_length() - 1)
        while step:
            after = index + step
            if after < len(self._tree) and self._tree[after] <= rank:
                index = after
                rank -= self._tree[after]
            step >>= 1
        return self._blocks[index][rank]

    def _change(self, index: int, by: int) -> None:
        tree = self._tree
        while index < len(tree):
            tree[index] += by
            index += index & -index
