"""Cost of sequences, and their even distribution over ranks and micro-batches.

Pure functions of token counts and of a cost model: every rank computes the same assignment by itself. Costs are
integers (floating-point operations), so that no rounding can make ranks differ.

Legend: a *group* is all sequences with one prompt; a *row* is a token that the layers compute; a *share* belongs to a
rank, a *bin* is a micro-batch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

TOLERANCE = 0.005
"""Relative excess of the fullest share over the mean at which balancing stops."""
TRIALS = 64
"""Maximum number of orders in which `share_out` tries to distribute the groups."""
TRIAL_WORK = 1_000_000
"""Maximum of groups x shares x orders: with many groups, the first order is good enough."""


@dataclass(frozen=True, slots=True)
class CostModel:
    """Cost of a forward and backward pass: linear in rows and response tokens, quadratic through attention.

    The default counts rows only; a model's own is `Architecture.cost`.
    """

    per_row: int = 1
    """Cost of one row in the layers."""
    per_pair: int = 0
    """Cost of one (row, attended row) pair."""
    per_target: int = 0
    """Cost of one response token: its logits."""

    def prompt(self, length: int) -> int:
        """Return the cost of a prompt of `length` tokens, without responses."""
        return self.per_row * length + self.per_pair * (length * (length + 1) // 2)

    def response(self, prompt_length: int, length: int) -> int:
        """Return the additional cost of a response of `length` tokens (`length - 1` rows) after its prompt."""
        rows = length - 1
        pairs = rows * prompt_length + rows * (rows + 1) // 2
        return self.per_row * rows + self.per_pair * pairs + self.per_target * length


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """Sequences that share a prompt, or a part of them."""

    prompt: int
    """Identity of the prompt; parts of one group have the same."""
    members: tuple[int, ...]
    """Indices of the sequences in the batch."""
    prompt_rows: int
    response_rows: tuple[int, ...]
    """Rows of each member."""
    prompt_cost: int
    response_costs: tuple[int, ...]
    """Cost of each member, without the prompt."""
    rows: int = field(init=False)
    """Rows of prompt and responses together."""
    cost: int = field(init=False)
    """Cost of prompt and responses together."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", self.prompt_rows + sum(self.response_rows))
        object.__setattr__(self, "cost", self.prompt_cost + sum(self.response_costs))

    def part(self, places: Sequence[int]) -> PromptGroup:
        """Return a group of the members at `places`, which computes the prompt again."""
        return PromptGroup(
            self.prompt,
            tuple(self.members[place] for place in places),
            self.prompt_rows,
            tuple(self.response_rows[place] for place in places),
            self.prompt_cost,
            tuple(self.response_costs[place] for place in places),
        )


def share_out(groups: Sequence[PromptGroup], num_shares: int) -> list[list[PromptGroup]]:
    """Distribute groups over `num_shares` ranks so that the most expensive share costs as little as possible.

    1. Each group, the most expensive first, goes to the share with the least cost (LPT). 2. Groups move or change
    places between shares. 3. If that is not enough, a group is split over two shares, and its prompt is computed on
    both. With few groups a share this often ends in a local optimum; it is then repeated in other orders and the best
    result is kept.

    The result is within `TOLERANCE` of the mean, or no two shares differ by more than the cost of the most expensive
    sequence with its prompt. Deterministic.
    """
    order = _descending(groups)
    limit = (1 + TOLERANCE) * sum(group.cost for group in groups)
    noise = random.Random(0)
    best: list[list[PromptGroup]] = []
    lowest = -1
    for _ in range(max(1, min(TRIALS, TRIAL_WORK // (len(groups) * num_shares + 1)))):
        shares, fullest = _attempt(order, num_shares)
        if lowest < 0 or fullest < lowest:
            best, lowest = shares, fullest
        if lowest * num_shares <= limit:
            break
        order = sorted(groups, key=lambda group: -group.cost * (1 + 0.3 * noise.random()))
    return best


def _attempt(order: Sequence[PromptGroup], num_shares: int) -> tuple[list[list[PromptGroup]], int]:
    """Shares of groups that were given out in `order`, and the cost of the most expensive."""
    shares: list[list[PromptGroup]] = [[] for _ in range(num_shares)]
    loads = [0] * num_shares
    for group in order:
        least = loads.index(min(loads))
        shares[least].append(group)
        loads[least] += group.cost
    while (fullest := max(loads)) * num_shares > (1 + TOLERANCE) * sum(loads):
        full = loads.index(fullest)
        if not (_exchange(shares, loads, full, None) or _split(shares, loads, full)):
            break
    return shares, fullest


def fewest_bins(groups: Sequence[PromptGroup], capacity: int) -> int:
    """Return the smallest number of bins of `capacity` rows that `fill` can use; a group larger than that has a bin of
    its own."""
    least = max(1, -(-sum(group.rows for group in groups) // capacity))
    most = len(_first_fit(groups, capacity))
    return next((number for number in range(least, most) if _level(groups, number, capacity) is not None), max(most, 1))


def fill(groups: Sequence[PromptGroup], num_bins: int, capacity: int) -> list[list[PromptGroup]]:
    """Distribute groups over `num_bins` bins of at most `capacity` rows, with even cost. `num_bins` is at least
    `fewest_bins(...)`."""
    bins = _level(groups, num_bins, capacity)
    if bins is None:
        bins = _first_fit(groups, capacity)
        bins += [[] for _ in range(num_bins - len(bins))]
    loads = [sum(group.cost for group in groups) for groups in bins]
    while max(loads) * num_bins > (1 + TOLERANCE) * sum(loads):
        if not _exchange(bins, loads, loads.index(max(loads)), capacity):
            break
    return bins


def _descending(groups: Sequence[PromptGroup]) -> list[PromptGroup]:
    return sorted(groups, key=lambda group: (-group.cost, group.members))


def _level(groups: Sequence[PromptGroup], num_bins: int, capacity: int) -> list[list[PromptGroup]] | None:
    """LPT under a capacity: each group to the cheapest bin that has room; None where one has none."""
    bins: list[list[PromptGroup]] = [[] for _ in range(num_bins)]
    loads, rows = [0] * num_bins, [0] * num_bins
    for group in _descending(groups):
        fits = [index for index in range(num_bins) if not bins[index] or rows[index] + group.rows <= capacity]
        if not fits:
            return None
        least = min(fits, key=lambda index: (loads[index], index))
        bins[least].append(group)
        loads[least] += group.cost
        rows[least] += group.rows
    return bins


def _first_fit(groups: Sequence[PromptGroup], capacity: int) -> list[list[PromptGroup]]:
    """First-fit decreasing by rows: within 22% of the fewest bins."""
    bins: list[list[PromptGroup]] = []
    free: list[int] = []
    for group in sorted(groups, key=lambda group: (-group.rows, group.members)):
        index = next((index for index, room in enumerate(free) if group.rows <= room), len(bins))
        if index == len(bins):
            bins.append([])
            free.append(capacity)
        bins[index].append(group)
        free[index] -= group.rows
    return bins


def _exchange(shares: list[list[PromptGroup]], loads: list[int], full: int, capacity: int | None) -> bool:
    """Move a group out of share `full`, or change it for a cheaper one, where that lowers the fuller of the two most.

    In place; whether it did. `capacity` bounds the rows of a share; one with a single group may exceed it.
    """
    rows = [sum(group.rows for group in share) for share in shares] if capacity is not None else []
    best, chosen = loads[full], None
    for other, load in enumerate(loads):
        gap = loads[full] - load
        if gap <= 0:
            continue
        # The partner None stands for no group: a move.
        partners: list[tuple[PromptGroup | None, int, int]] = [(None, 0, 0)]
        partners += [(group, group.cost, group.rows) for group in shares[other]]
        for mine in shares[full]:
            mine_cost, mine_rows = mine.cost, mine.rows
            for theirs, cost, count in partners:
                delta = mine_cost - cost
                if not 0 < delta < gap or max(loads[full] - delta, load + delta) >= best:
                    continue
                if capacity is not None and (
                    max(rows[full] - mine_rows + count, rows[other] + mine_rows - count) > capacity
                ):
                    continue
                best, chosen = max(loads[full] - delta, load + delta), (other, mine, theirs)
    if chosen is None:
        return False
    other, mine, theirs = chosen
    shares[full].remove(mine)
    loads[full] -= mine.cost
    if theirs is not None:
        shares[other].remove(theirs)
        loads[other] -= theirs.cost
        loads[full] += _put(shares[full], theirs)
    loads[other] += _put(shares[other], mine)
    return True


def _split(shares: list[list[PromptGroup]], loads: list[int], full: int) -> bool:
    """Split a group of share `full` with the emptiest share, where that lowers the fuller of the two most.

    In place; whether it did.
    """
    other = loads.index(min(loads))
    best, chosen = loads[full], None
    for group in shares[full]:
        moved = _half(group, loads[full] - loads[other] - group.prompt_cost)
        cost = sum(group.response_costs[place] for place in moved)
        after = max(loads[full] - cost, loads[other] + group.prompt_cost + cost)
        if moved and after < best:
            best, chosen = after, (group, moved)
    if chosen is None:
        return False
    group, moved = chosen
    kept = [place for place in range(len(group.members)) if place not in moved]
    part = group.part(moved)
    shares[full].remove(group)
    shares[full].append(group.part(kept))
    loads[full] -= sum(part.response_costs)
    loads[other] += _put(shares[other], part)
    return True


def _put(share: list[PromptGroup], group: PromptGroup) -> int:
    """Add `group` to `share`, to the part of its prompt that may be there already; returns what that costs."""
    for place, sibling in enumerate(share):
        if sibling.prompt == group.prompt:
            share[place] = PromptGroup(
                group.prompt,
                sibling.members + group.members,
                group.prompt_rows,
                sibling.response_rows + group.response_rows,
                group.prompt_cost,
                sibling.response_costs + group.response_costs,
            )
            return group.cost - group.prompt_cost
    share.append(group)
    return group.cost


def _half(group: PromptGroup, gap: int) -> list[int]:
    """Places of responses that cost about half of `gap` together, fewer than all; at least one if that fits in
    `gap`."""
    last = len(group.members) - 1
    if last < 1:
        return []
    order = sorted(range(last + 1), key=lambda place: (-group.response_costs[place], place))
    chosen: list[int] = []
    cost = 0
    for place in order:
        if len(chosen) < last and 2 * (cost + group.response_costs[place]) <= gap:
            chosen.append(place)
            cost += group.response_costs[place]
    if not chosen and group.response_costs[order[-1]] < gap:
        chosen = [order[-1]]
    return sorted(chosen)
