"""The ledger of tokens: where every token is that the engines generated. Pure: no clocks, no I/O, no threads.

  T1  generated = trained + queued + in flight + dropped + without a slot, at every moment

It is kept at two ends. An actor counts what its engine generated and what became of it before it was sent
(`actors/token_ledger.py`); these numbers come with its heartbeats. The learner counts what it received from each actor,
and what became of that. Each end measures all its terms, and adds them up: what is missing is `unaccounted`, in tokens.

What an actor had sent or generated since its last heartbeat is not known yet. A token that was received was generated,
whatever the last heartbeat said; so the terms never disagree for that reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from learner.ledger import DropReason
from learner.places import Holder

DROPPED = "tokens_dropped/"
"""Prefix of what an actor reports of the tokens that it dropped, by reason."""
LATE = "late"
"""Reason: the trajectory's slot had ended when it came in."""


@dataclass(slots=True)
class _Account:
    """The tokens of one life of one actor, counted from `opening` on."""

    received: int = 0
    reported: Mapping[str, float] = field(default_factory=dict)
    """What the actor reported last."""
    opening: Mapping[str, float] = field(default_factory=dict)
    """What it reported first to a learner that was restarted: of what came before, nothing is counted."""
    opening_received: int = 0
    connected: bool = True

    def _since(self, name: str) -> int:
        return int(self.reported.get(name, 0) - self.opening.get(name, 0))

    @property
    def dropped(self) -> dict[str, int]:
        """Tokens that the actor dropped, by reason."""
        return {name.removeprefix(DROPPED): self._since(name) for name in self.reported if name.startswith(DROPPED)}

    @property
    def without_slot(self) -> int:
        """Tokens that the actor sampled and that no slot asked for."""
        return self._since("tokens_without_slot")

    @property
    def generated(self) -> int:
        """Tokens that the engine generated: by its own count, or at least those that came here."""
        counted = self._since("tokens_generated") + int(self.opening.get("tokens_held", 0)) + self.opening_received
        return max(counted, self.received + self.without_slot + sum(self.dropped.values()))

    @property
    def missing(self) -> int:
        """Tokens that the actor's own count finds in no place (T1 at the actor's end); 0 where it keeps no count, as a
        rehearsed engine does not."""
        if "tokens_sent" not in self.reported:
            return 0
        held = self._since("tokens_held")  # those of the opening are generated and held
        ended = self._since("tokens_sent") + self.without_slot + sum(self.dropped.values())
        return self._since("tokens_generated") - held - ended

    @property
    def in_flight(self) -> int:
        """Tokens in no final state: held by the actor, or on their way."""
        ended = self.received + self.without_slot + sum(self.dropped.values())
        return self.generated - ended - self.missing


class TokenLedger:
    """The ledger of a run, at the learner's end. It begins with the learner's process."""

    def __init__(self) -> None:
        self._accounts: dict[Holder, _Account] = {}
        self._trained = 0
        self._dropped: Counter[str] = Counter()
        self._restored = 0
        self._went_on = False

    def restart(self, queued: int) -> None:
        """Go on from a checkpoint whose queue holds `queued` tokens. What actors did before their first report is left
        out: the learner that counted it is gone."""
        self._restored, self._went_on = queued, True

    def report(self, holder: Holder, numbers: Mapping[str, float]) -> None:
        """Take in what an actor counted; `numbers` of other things are left out."""
        account = self._account(holder)
        found = {name: n for name, n in numbers.items() if name.startswith("tokens_")}
        if self._went_on and found and not account.reported:
            account.opening, account.opening_received = found, account.received
        account.reported = {**account.reported, **found}

    def received(self, holder: Holder, tokens: int) -> None:
        """Count the tokens of a trajectory that came in, whatever becomes of it."""
        self._account(holder).received += tokens

    def leave(self, holder: Holder) -> None:
        """Count what the actor still had as lost, unless it comes back."""
        if holder in self._accounts:
            self._accounts[holder].connected = False

    def dropped(self, reason: str, tokens: int) -> None:
        """Count received tokens that will not be trained."""
        self._dropped[reason] += tokens

    def trained(self, tokens: int) -> None:
        """Count the tokens of a batch."""
        self._trained += tokens

    def describe(self, queued: int) -> dict[str, float]:
        """Return the ledger as metrics, `token_ledger/...`. `queued`: tokens that wait to be trained now."""
        accounts = self._accounts.values()
        dropped = self._dropped.copy()
        for account in accounts:
            dropped.update(account.dropped)
            if not account.connected and account.in_flight:
                dropped[DropReason.ACTOR_LOST] += account.in_flight
        in_flight = sum(account.in_flight for account in accounts if account.connected)
        generated = sum(account.generated for account in accounts) + self._restored
        without_slot = sum(account.without_slot for account in accounts)
        terms = {
            "generated": generated,
            "trained": self._trained,
            "queued": queued,
            "in_flight": in_flight,
            "without_slot": without_slot,
            **{f"dropped_{reason}": tokens for reason, tokens in sorted(dropped.items())},
            "unaccounted": generated - self._trained - queued - in_flight - without_slot - dropped.total(),
        }
        return {f"token_ledger/{name}": float(tokens) for name, tokens in terms.items()}

    def _account(self, holder: Holder) -> _Account:
        account = self._accounts.setdefault(holder, _Account())
        account.connected = True
        return account
