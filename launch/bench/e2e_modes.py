"""The modes of a run that is measured whole: which bound of the ages holds when, and which steps count.

One run goes through every mode again and again, the second time backwards: its engines start once, since a start takes
longer than a mode, and a machine that slows down does so for all modes alike. The bound changes while the run goes on
(`Gate.limit_staleness`). The steps after a change are left out: they train on what was granted under the bound before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launch.cluster.supervisor import Supervisor

FIRST_STEPS = 2
"""Steps at the start of a run that count for no mode: memory is allocated and kernels are chosen."""


@dataclass(frozen=True)
class Block:
    """Consecutive steps that were measured under one bound."""

    run: int
    """The repetition, from 0."""
    staleness: int
    first: int
    last: int


def order_of(staleness: Sequence[int], runs: int) -> list[tuple[int, int]]:
    """(run, bound) in the order of measuring: A B C, C B A, A B C, ..."""
    return [(run, bound) for run in range(runs) for bound in (staleness if run % 2 == 0 else staleness[::-1])]


def steps_left_out(before: int, after: int) -> int:
    """Steps after a change of the bound that are not of the new mode yet.

    Lowered, what was granted before is trained first: one batch more than the bound before. Raised, the further batches
    are granted at once; they need as many steps as there are batches open until each has had the whole pipeline.
    """
    return 0 if before == after else max(before, after) + 1


def steps_counted(staleness: int, least: int) -> int:
    """Steps of a block: at least `least`, and a multiple of the batches that are open at once. Where generation is the
    slower stage, engines work on all of these together, and they are complete, and are trained, in a bunch."""
    batches = staleness + 1
    return -(-least // batches) * batches


class Modes:
    """Leads a run through the modes; `watch` is called by the run's driver."""

    def __init__(self, staleness: Sequence[int], runs: int, steps: int, say: Callable[[str], None]) -> None:
        """`steps`: at least measured in each block (`steps_counted`). `say` is told what begins."""
        self._steps = steps
        self._say = say
        self._order = order_of(staleness, runs)
        self._bound = self._order[0][1]
        self._block: Block | None = None
        self._next: tuple[int, int, int] | None = None
        """(run, bound, steps left out) of the block that begins once a step has that bound."""
        self.blocks: list[Block] = []
        """Those that are complete."""
        self.done = False

    def watch(self, supervisor: Supervisor) -> None:
        """Change the mode where a block is complete; after the last one, end the run."""
        last = supervisor.status().last
        step = int(last.get("step", 0))
        if self.done or (self._next is None and self._block is not None and step < self._block.last):
            return
        if self._next is None:
            if self._block is not None:
                self.blocks.append(self._block)
            if not self._order:
                self.done = True
                supervisor.stop("the benchmark is over")
                return
            run, bound = self._order.pop(0)
            if bound != self._bound:
                supervisor.limit_staleness(bound)
            self._next = run, bound, steps_left_out(self._bound, bound) if self._block else FIRST_STEPS + bound
            self._bound = bound
        run, bound, left_out = self._next
        if last and last["max_staleness"] != bound:
            return  # the learner has not heard of it yet, or not taken a step since
        self._next = None
        first = step + left_out + 1
        self._block = Block(run, bound, first, first - 1 + steps_counted(bound, self._steps))
        self._say(f"run {run + 1}, max_staleness {bound}: steps {self._block.first} to {self._block.last}")
