"""Which versions the present policy descends from, across restarts of the learner. Policy only: no I/O, no clocks.

A learner that starts again from a checkpoint makes versions under numbers that an earlier life of it has used, with
other weights. So a version is named by its number and the life that made it:

  V1  On the wire, and for an engine, a version is one number, its *label*: life_id * 2**32 + version. No label
      repeats while an actor lives, as no slot does (R1 in `learner/staleness.py`). In the first life a label is the
      version.
  V2  A version of an earlier life that is above the one from which a later life went on was undone. For ages and for
      the bound on staleness its tokens count as of that version, the newest that both have in common: no age is
      negative, and `age <= max_staleness` holds as without a restart.
  V3  Log-probabilities of the two ends are compared only where number and life are both the present ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

VERSIONS_PER_LIFE = 1 << 32
"""More versions than a run can make."""


def label_of(version: int, life_id: int) -> int:
    """The label of a version (V1)."""
    return life_id * VERSIONS_PER_LIFE + version


def split_label(label: int) -> tuple[int, int]:
    """(version, life id); the inverse of `label_of`."""
    life_id, version = divmod(label, VERSIONS_PER_LIFE)
    return version, life_id


class Lineage:
    """The versions from which the lives of a learner went on."""

    def __init__(self, starts: Mapping[int, int] | None = None) -> None:
        """`starts`: life id -> the version from which that life went on. The first life needs no entry."""
        self._starts = dict(starts or {})

    def begin(self, life_id: int, version: int) -> None:
        """Life `life_id` goes on from `version`."""
        self._starts[life_id] = version

    def ancestor(self, version: int, life_id: int) -> int:
        """The newest version that the present policy descends from and that `version` of life `life_id` is, or descends
        from (V2)."""
        return min([version, *(start for life, start in self._starts.items() if life > life_id)])

    def state(self) -> list[list[int]]:
        """Plain data for `of_state`."""
        return [[life, version] for life, version in self._starts.items()]

    @classmethod
    def of_state(cls, state: Iterable[Iterable[int]]) -> Lineage:
        """The inverse of `state`."""
        return cls(dict(map(tuple, state)))  # type: ignore[arg-type]
