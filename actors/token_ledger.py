"""An actor's end of the ledger of tokens (`learner/token_ledger.py`): what became of each token that it generated.

    open      its request is not answered: the engine generates, or has just finished
    held      of a finished response whose slot has no trajectory yet: it waits to be judged
    sent      in a trajectory
    no slot   nobody granted a slot for it: estimates beyond the slots, proposals that are not trained, held-out tasks,
              the seeding phase
    dropped   `aborted` (the request was cancelled), `failed` (its episode failed), `cancelled` (the learner no longer
              counted on its slot)

Beside these places, it counts the tokens that measurements on held-out tasks took: they train nothing, so they are no
cost of learning.

Not thread-safe: it belongs to the actor's event loop.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Protocol

from learner.token_ledger import DROPPED

HELD_OUT = "heldout-"
"""Prefix of the requests of a measurement on held-out tasks (`actors/heldout/measure.py`)."""
_OF_A_SLOT = re.compile(r"(?:\d+-)?[ps](\d+)")
"""Requests that fill a slot: `p` or `s` and its number, after the actor's incarnation (`actors/sampler.py`)."""


class Counted(Protocol):
    """The count that the engine keeps of one request."""

    num_generation_tokens: int


class TokenLedger:
    """The tokens of one actor, since it started."""

    def __init__(self) -> None:
        self.generated = 0
        """Tokens that came from the engine."""
        self._open: dict[str, Counted] = {}
        self._held: dict[int, int] = {}
        """Slot -> tokens of its response."""
        self._returned: set[int] = set()
        """Slots of open episodes that were given back; what is sampled under their names has no slot."""
        self._sent = self._without_slot = 0
        self._held_out = 0
        """Tokens of ended requests of measurements on held-out tasks, whatever became of them."""
        self._dropped: Counter[str] = Counter()

    # -- what the engine does ------------------------------------------------------------------------------------

    def began(self, request_id: str, counted: Counted) -> None:
        """The engine took a request; `counted` grows with its tokens."""
        self._open[request_id] = counted

    def finished(self, request_id: str, tokens: int) -> None:
        """The engine gave a response of `tokens` tokens. What it generated beyond them was cut off, and is dropped."""
        self._dropped["aborted"] += self._pop(request_id) - tokens
        found = _OF_A_SLOT.fullmatch(request_id)
        slot = int(found[1]) if found else None
        if slot is None or slot in self._returned:
            self._without_slot += tokens
        else:
            self._held[slot] = tokens

    def aborted(self, request_id: str) -> None:
        """A request ended without a response."""
        self._dropped["aborted"] += self._pop(request_id)

    # -- what becomes of a response ------------------------------------------------------------------------------

    def sent(self, slot: int, tokens: int, taken: bool) -> None:
        """The trajectory of `slot` was handed to the stream; `taken`: it was not cancelled by the learner before."""
        self._held.pop(slot, None)
        if taken:
            self._sent += tokens
        else:
            self._dropped["cancelled"] += tokens

    def returned(self, slots: Iterable[int]) -> None:
        """Slots were given back to the learner: no trajectory will fill them."""
        for slot in slots:
            self._returned.add(slot)
            self._without_slot += self._held.pop(slot, 0)

    def ended(self, slots: Iterable[int], failed: bool) -> None:
        """The episode of `slots` is over. Responses that it still held are dropped; `failed`: it raised an error."""
        reason = "failed" if failed else "cancelled"
        for slot in slots:
            self._returned.discard(slot)
            if tokens := self._held.pop(slot, 0):
                self._dropped[reason] += tokens

    def numbers(self) -> dict[str, float]:
        """The numbers of a heartbeat (`learner.stream.reports.ACTORS`)."""
        held = sum(counted.num_generation_tokens for counted in self._open.values()) + sum(self._held.values())
        measuring = sum(counted.num_generation_tokens for name, counted in self._open.items() if _is_held_out(name))
        return {
            "tokens_generated": float(self.generated),
            "tokens_sent": float(self._sent),
            "tokens_without_slot": float(self._without_slot),
            "tokens_heldout": float(self._held_out + measuring),
            "tokens_held": float(held),
            **{f"{DROPPED}{reason}": float(tokens) for reason, tokens in self._dropped.items()},
        }

    def _pop(self, request_id: str) -> int:
        counted = self._open.pop(request_id, None)
        tokens = counted.num_generation_tokens if counted is not None else 0
        if _is_held_out(request_id):
            self._held_out += tokens
        return tokens


def _is_held_out(request_id: str) -> bool:
    return request_id.startswith(HELD_OUT)
