"""The ledger of tokens, with both of its ends: whatever happens, in whatever order, every token is in one place."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from actors.token_ledger import TokenLedger as ActorLedger
from learner.ledger import DropReason
from learner.places import Holder
from learner.token_ledger import LATE, TokenLedger

HOLDER = Holder("a", 0)
REQUESTS = ("0-p1", "0-s2", "0-s3", "0-e1.2", "heldout-4-x", "seed5")
SLOTS = (1, 2, 3)
Step = tuple[str, int, int]


@dataclass
class Counted:
    """The engine's count of one request."""

    num_generation_tokens: int = 0


class World:
    """An actor that generates and sends, a wire that keeps order, and a learner; with a count of its own."""

    def __init__(self) -> None:
        self.actor, self.learner = ActorLedger(), TokenLedger()
        self.measured = 0
        self.requests: dict[str, Counted] = {}
        self.responses: dict[int, int] = {}
        self.wire: list[int | dict[str, float]] = []
        self.queue: list[int] = []
        self.restarted = False

    def step(self, what: str, which: int, tokens: int) -> None:
        request, slot = REQUESTS[which], SLOTS[which % len(SLOTS)]
        match what:
            case "generate":
                if request not in self.requests:
                    self.requests[request] = Counted()
                    self.actor.began(request, self.requests[request])
                self.requests[request].num_generation_tokens += tokens
                self.actor.generated += tokens
                self.measured += tokens if request.startswith("heldout") else 0
            case "finish" if request in self.requests and not self.answered(which):
                given = max(0, self.requests.pop(request).num_generation_tokens - tokens % 2)  # a cut-off token
                self.actor.finished(request, given)
                if which < len(SLOTS):
                    self.responses[SLOTS[which]] = given
            case "abort" if request in self.requests:
                del self.requests[request]
                self.actor.aborted(request)
            case "send" if slot in self.responses:
                sent = self.responses.pop(slot)
                self.actor.sent(slot, sent, taken=bool(tokens % 3))
                if tokens % 3:
                    self.wire.append(sent)
            case "return":
                self.actor.returned([slot])
                self.responses.pop(slot, None)
            case "end":
                self.actor.ended(SLOTS, failed=bool(tokens % 2))
                self.responses.clear()
            case "beat":
                self.wire.append(self.actor.numbers())
            case "arrive" if self.wire:
                self.arrive(self.wire.pop(0), tokens)
            case "restart":
                self.learner, self.restarted = TokenLedger(), True
                self.queue = self.queue[: tokens % 3]  # that of the checkpoint
                self.learner.restart(sum(self.queue))
            case "train" if self.queue:
                self.learner.trained(self.queue.pop())

    def answered(self, which: int) -> bool:
        """Whether the slot of that request has its response: a slot gets one."""
        return which < len(SLOTS) and SLOTS[which] in self.responses

    def arrive(self, message: int | dict[str, float], how: int) -> None:
        if isinstance(message, dict):
            self.learner.report(HOLDER, message)
            return
        self.learner.received(HOLDER, message)
        if how % 4 == 0:
            self.learner.dropped(LATE if how % 8 else DropReason.STALE, message)
        else:
            self.queue.append(message)

    def close(self) -> dict[str, float]:
        found = self.learner.describe(sum(self.queue))
        numbers = {name.removeprefix("token_ledger/"): tokens for name, tokens in found.items()}
        terms = {name: tokens for name, tokens in numbers.items() if name != "generated"}
        assert numbers["generated"] == sum(terms.values())
        assert all(tokens >= 0 for tokens in numbers.values()), numbers
        return numbers


def steps() -> st.SearchStrategy[list[Step]]:
    names = [
        "generate",
        "generate",
        "finish",
        "abort",
        "send",
        "return",
        "end",
        "beat",
        "arrive",
        "arrive",
        "train",
        "restart",
    ]
    return st.lists(st.tuples(st.sampled_from(names), st.integers(0, 5), st.integers(0, 9)), max_size=60)


@settings(max_examples=200)
@given(steps())
def test_every_token_is_in_one_place_at_every_moment(script: list[Step]) -> None:
    world = World()
    for step in script:
        world.step(*step)
        assert world.close()["unaccounted"] == 0
        assert world.actor.numbers()["tokens_heldout"] == world.measured
    world.step("beat", 0, 0)
    while world.wire:
        world.step("arrive", 0, 1)
    held = world.actor.numbers()["tokens_held"]
    assert world.close()["in_flight"] == held, "nothing is on its way any more"
    if not world.restarted:
        assert world.close()["generated"] == world.actor.generated
    world.learner.leave(HOLDER)
    numbers = world.close()
    assert (numbers["unaccounted"], numbers["in_flight"]) == (0, 0)
    assert numbers.get("dropped_actor_lost", 0) == held


def test_a_token_that_an_actor_lost_sight_of_is_unaccounted() -> None:
    world = World()
    for step in [("generate", 0, 5), ("finish", 0, 0), ("beat", 0, 0), ("arrive", 0, 0)]:
        world.step(*step)
    assert world.close()["in_flight"] == 5
    world.actor._held.clear()
    world.step("beat", 0, 0)
    world.step("arrive", 0, 0)
    assert world.close()["unaccounted"] == 5


def test_a_trajectory_that_the_learner_lost_is_unaccounted() -> None:
    world = World()
    for step in [("generate", 1, 7), ("finish", 1, 0), ("send", 1, 1), ("beat", 0, 0), ("arrive", 0, 1)]:
        world.step(*step)
    world.queue.clear()
    world.step("arrive", 0, 0)
    assert world.close()["unaccounted"] == 7
