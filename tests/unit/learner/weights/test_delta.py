"""Sparse updates: both ends in any order of joins, deaths, restarts, losses and damage; then over gloo."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from learner.weights.delta import DeltaDecoder, DeltaEncoder, DeltaError, Header, digest
from learner.weights.group import WeightSyncError
from learner.weights.manifest import manifest_of
from learner.weights.transfer import WeightReceiver, WeightSender
from tests.examples import examples

CPU = torch.device("cpu")
LAYOUT = [(torch.bfloat16, 401), (torch.float32, 64), (torch.bfloat16, 1), (torch.int64, 9), (torch.bool, 13)]
ODD_VALUES = (float("nan"), -float("nan"), 0.0, -0.0, float("inf"), 1e-40)
FRACTIONS = st.sampled_from([0.0, 0.003, 0.02, 0.3, 1.0])


def bits(flat: torch.Tensor) -> bytes:
    return flat.contiguous().view(torch.uint8).numpy().tobytes()


def fresh(draw: torch.Generator) -> list[torch.Tensor]:
    return [(4 * torch.randn(numel, generator=draw)).to(dtype) for dtype, numel in LAYOUT]


def change(flat: torch.Tensor, fraction: float, draw: torch.Generator) -> None:
    """Give about a fraction of the elements another value, some of them odd ones."""
    chosen = torch.rand(len(flat), generator=draw) < fraction
    flat[chosen] = (4 * torch.randn(int(chosen.sum()), generator=draw)).to(flat.dtype)
    if flat.is_floating_point() and fraction:
        flat[0] = -flat[0] if flat[0] == 0 else 0.0  # a zero that changes its sign alone
        for value in ODD_VALUES:
            place = torch.randint(len(flat), (), generator=draw)
            flat[place] = value


def flip(flat: torch.Tensor, place: int) -> None:
    raw = flat.view(torch.uint8)
    raw[place % len(raw)] ^= 1 << place % 8


class Receiver:
    """A receiver and the engine behind it, which loads what is yielded."""

    def __init__(self) -> None:
        self.decoder = DeltaDecoder()
        self.weights: dict[int, bytes] = {}


class DeltaMachine(RuleBasedStateMachine):
    """One sender and its receivers, as `transfer.py` drives them, with a carrier that may break off anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.draw = torch.Generator().manual_seed(0)
        self.weights = fresh(self.draw)
        self.encoder = DeltaEncoder()
        self.receivers = [Receiver()]
        self.published: list[Receiver] = []
        """Receivers that the last publication reached, while they run its weights."""
        self.damaged: set[DeltaDecoder] = set()
        """Decoders whose content was damaged since they had a whole update."""

    @rule(index=st.integers(0, len(LAYOUT) - 1), fraction=FRACTIONS)
    def weights_change(self, index: int, fraction: float) -> None:
        change(self.weights[index], fraction, self.draw)
        self.published = []

    @precondition(lambda self: len(self.receivers) < 4)
    @rule()
    def one_joins(self) -> None:
        self.receivers.append(Receiver())

    @precondition(lambda self: len(self.receivers) > 1)
    @rule(which=st.integers(0, 3))
    def one_dies(self, which: int) -> None:
        self.receivers.pop(which % len(self.receivers))

    @rule(which=st.integers(0, 3))
    def one_restarts(self, which: int) -> None:
        self.receivers[which % len(self.receivers)] = Receiver()

    @rule()
    def the_sender_restarts(self) -> None:
        self.encoder = DeltaEncoder()

    @rule()
    def all_get_the_weights(self) -> None:
        self.publish(self.receivers)

    @rule(which=st.integers(0, 3))
    def one_misses_an_update(self, which: int) -> None:
        missing = self.receivers[which % len(self.receivers)]
        others = [receiver for receiver in self.receivers if receiver is not missing]
        if others:
            self.publish(others)

    @rule(stops=st.lists(st.integers(0, len(LAYOUT) + 1), min_size=4, max_size=4))
    def an_update_breaks_off(self, stops: list[int]) -> None:
        """Each receiver gets as far as `stops` says: so many buckets, and at last the end of the update."""
        self.attempt(self.receivers, stops)
        self.published = []

    @rule(which=st.integers(0, 3), index=st.integers(0, len(LAYOUT) - 1), place=st.integers(0, 1 << 16))
    def content_is_damaged(self, which: int, index: int, place: int) -> None:
        decoder = self.receivers[which % len(self.receivers)].decoder
        if decoder._contents and decoder._contents[index] is not None:
            flip(decoder._contents[index], place)
            self.damaged.add(decoder)

    @rule(place=st.integers(0, 1 << 16))
    def a_payload_is_damaged_on_the_way(self, place: int) -> None:
        damaged = self.receivers[place % len(self.receivers)]
        refused = self.attempt(self.receivers, damage=(damaged, place))
        if refused is None:  # nothing was on the way, or the damage is in the gap before the values
            self.published = list(self.receivers)
            self.who_was_reached_has_the_weights_bit_for_bit()
        else:
            assert refused is damaged or refused.decoder in self.damaged
            self.published = []
        self.publish(self.receivers)

    def publish(self, receivers: list[Receiver]) -> None:
        """As the publisher does it: what is refused is sent again, and then whole."""
        total = sum(flat.nbytes for flat in self.weights)
        refused = self.attempt(receivers)
        assert self.bytes <= total
        if refused is not None:
            assert refused.decoder in self.damaged, "what is sound is not refused"
            assert self.attempt(receivers) is None, "a whole update mends everything"
            assert self.bytes == total
        self.published = list(receivers)
        self.damaged -= {receiver.decoder for receiver in receivers}

    def attempt(
        self,
        receivers: list[Receiver],
        stops: list[int] | None = None,
        damage: tuple[Receiver, int] | None = None,
    ) -> Receiver | None:
        """Send once. Returns the receiver that refused the update."""
        self.encoder.begin(LAYOUT, [receiver.decoder.begin(LAYOUT) for receiver in receivers])
        self.bytes = self.payloads = 0
        refused = None
        for index, flat in enumerate(self.weights):
            before = bits(flat)
            header, payload = self.encoder.encode(index, flat)
            assert bits(flat) == before
            assert Header.from_tensor(header.to_tensor(CPU)) == header
            if payload is not None:
                self.payloads += 1
                self.bytes += payload.nbytes
            for number, receiver in enumerate(receivers):
                if refused is not None or stops and index >= stops[number]:
                    continue
                room = receiver.decoder.room(index, header, CPU)
                assert (room is None) == (payload is None)
                if room is not None:
                    room.copy_(payload)
                    if damage and damage[0] is receiver and self.payloads == 1:
                        flip(room, damage[1])
                try:
                    receiver.weights[index] = bits(receiver.decoder.take(index, header, room))
                except DeltaError:
                    refused = receiver
        for number, receiver in enumerate(receivers):
            if refused is None and not (stops and len(LAYOUT) >= stops[number]):
                receiver.decoder.commit()
        if refused is None and not stops:
            self.encoder.commit()
        return refused

    @invariant()
    def who_was_reached_has_the_weights_bit_for_bit(self) -> None:
        for receiver in self.published:
            assert receiver.weights == {index: bits(flat) for index, flat in enumerate(self.weights)}


DeltaMachine.TestCase.settings = examples(60, steps=30)
TestDelta = DeltaMachine.TestCase


@given(st.integers(1, 300), st.sampled_from([torch.bfloat16, torch.float32, torch.uint8]), st.integers(0, 1 << 20))
@examples(100)
def test_a_digest_sees_every_flipped_bit_and_every_exchange(numel: int, dtype: torch.dtype, place: int) -> None:
    flat = (8 * torch.randn(numel, generator=torch.Generator().manual_seed(place))).to(dtype)
    before = digest(flat)
    assert digest(flat.clone()) == before
    flip(flat, place)
    assert digest(flat) != before
    flip(flat, place)
    there, other = place % numel, (place // 300) % numel
    if bits(flat[there : there + 1]) != bits(flat[other : other + 1]):
        flat[[there, other]] = flat[[other, there]]
        assert digest(flat) != before


def test_a_digest_sees_exchanged_chunks() -> None:
    flat = torch.arange(3 << 17)  # three chunks of the digest
    assert digest(flat) != digest(flat.roll(1 << 17))


def test_a_bucket_goes_sparse_exactly_where_that_is_smaller() -> None:
    encoder, decoder = DeltaEncoder(), DeltaDecoder()
    layout = [(torch.bfloat16, 3000)]
    weights = torch.zeros(3000, dtype=torch.bfloat16)
    sizes = []
    for changed in (0, 0, 1, 900, 998, 1002, 3000):
        weights[:changed] += 1
        encoder.begin(layout, [decoder.begin(layout)])
        header, payload = encoder.encode(0, weights)
        room = decoder.room(0, header, CPU)
        if room is not None:
            room.copy_(payload)
        assert torch.equal(decoder.take(0, header, room), weights)
        encoder.commit()
        decoder.commit()
        sizes.append((header.is_whole, 0 if payload is None else payload.nbytes))
    # A position has 4 bytes and a value 2; values begin at a multiple of 8 bytes.
    assert sizes == [(True, 6000), (False, 0), (False, 10), (False, 5400), (False, 5988), (True, 6000), (True, 6000)]


def test_a_change_of_other_content_is_refused_before_it_is_applied() -> None:
    """The digest is right, so the base alone says that an update was missed."""
    encoder, decoder, layout = DeltaEncoder(), DeltaDecoder(), [(torch.float32, 10)]
    for version in range(3):
        encoder.begin(layout, [encoder.base_id])  # the sender believes that the receiver has its base
        header, payload = encoder.encode(0, torch.zeros(10))
        encoder.commit()
        if version != 1:
            decoder.begin(layout)
            room = decoder.room(0, header, CPU)
            if version == 2:
                with pytest.raises(DeltaError, match=f"changes the content of update {header.base_id}"):
                    decoder.take(0, header, room)
            else:
                assert room is not None and payload is not None
                decoder.take(0, header, room.copy_(payload))
                decoder.commit()


def test_after_an_update_that_broke_off_every_bucket_is_whole() -> None:
    """Even for a receiver that nothing of it has reached, and that has the base of before."""
    encoder, layout, weights = DeltaEncoder(), [(torch.float32, 10)], torch.zeros(10)
    encoder.begin(layout, [])
    encoder.encode(0, weights)
    encoder.commit()
    base_id = encoder.base_id
    weights[0] = 1
    encoder.begin(layout, [base_id])
    assert not encoder.encode(0, weights)[0].is_whole
    encoder.begin(layout, [base_id])
    assert encoder.encode(0, weights)[0].is_whole


def test_bits_are_compared_and_not_values() -> None:
    encoder, layout = DeltaEncoder(), [(torch.bfloat16, 100)]
    weights = torch.zeros(100, dtype=torch.bfloat16)
    weights[:10] = float("nan")
    found = []
    for place, flipped in ((50, 0), (50, -1 << 15), (0, 1)):  # nothing, the sign of a zero, a bit of a NaN
        weights.view(torch.int16)[place] ^= flipped
        encoder.begin(layout, [encoder.base_id])
        found.append(encoder.encode(0, weights)[0].changed)
        encoder.commit()
    assert found == [-1, 1, 1]


def test_content_that_was_handed_out_stays_as_it_was() -> None:
    encoder, decoder = DeltaEncoder(), DeltaDecoder()
    layout, weights, seen = [(torch.float32, 100)], torch.zeros(100), []
    for version in range(3):
        weights[0] = version
        encoder.begin(layout, [decoder.begin(layout)])
        header, payload = encoder.encode(0, weights)
        room = decoder.room(0, header, CPU)
        if room is not None:
            room.copy_(payload)
        seen.append(decoder.take(0, header, room))
        encoder.commit()
        decoder.commit()
    assert [float(flat[0]) for flat in seen] == [0.0, 1.0, 2.0]


# -- over a real group ---------------------------------------------------------------------------------------------


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=4) as pool:
        yield pool


class Fleet:
    """A sender and receivers over gloo, in threads."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self.threads = threads
        draw = torch.Generator().manual_seed(0)
        # A large tensor that travels alone and as it lies, here a transposed view; the others share two buckets.
        self.named = [("alone", torch.randn(64, 40, generator=draw).bfloat16().t())]
        self.named += [(f"t{i}", torch.randn(30, generator=draw).bfloat16()) for i in range(30)]
        self.manifest = manifest_of(self.named)
        self.total = sum(spec.num_bytes for spec in self.manifest)
        self.sender = self.new_sender()

    def new_sender(self) -> WeightSender:
        return WeightSender(timeout_s=20, bucket_bytes=1024, delta="auto")

    def join(self, *receivers: WeightReceiver) -> None:
        spec = self.sender.open(1 + len(receivers))
        joining = [self.threads.submit(one.connect, spec, rank) for rank, one in enumerate(receivers, 1)]
        self.sender.connect()
        for one in joining:
            one.result()

    def publish(self, *receivers: WeightReceiver) -> int:
        """Send to the members; each must have every bit. Returns the bytes that were broadcast."""
        coming = [self.threads.submit(lambda one=one: list(one.receive(self.manifest))) for one in receivers]
        self.sender.send(iter(self.named), self.manifest)
        for one in coming:
            got = one.result()
            assert [name for name, _ in got] == [name for name, _ in self.named]
            assert all(bits(a) == bits(b) for (_, a), (_, b) in zip(got, self.named, strict=True))
        assert self.sender.sent.weights_bytes == self.total
        return self.sender.sent.bytes

    def step(self, count: int = 5) -> None:
        """Change a few weights."""
        for name, tensor in self.named[:count]:
            tensor[0] = -tensor[0] if name != "t0" else float("nan")


def test_members_get_what_has_changed_and_newcomers_everything(threads: ThreadPoolExecutor) -> None:
    fleet, first, second = Fleet(threads), WeightReceiver(), WeightReceiver()
    fleet.join(first)
    assert fleet.publish(first) > fleet.total
    fleet.step()
    assert fleet.publish(first) < fleet.total / 4
    assert fleet.sender.sent.sparse_bytes == fleet.total
    unchanged = fleet.publish(first)
    assert unchanged <= 48 * 5, "headers alone"
    fleet.step()
    fleet.join(first, second)
    assert fleet.publish(first, second) > fleet.total, "a newcomer has no base"
    fleet.step()
    assert fleet.publish(first, second) < fleet.total / 4
    fleet.step()
    fleet.join(second)  # the other one has died between two updates
    assert fleet.publish(second) < fleet.total / 4
    fleet.step()
    fleet.join(second, first)  # and is back, with a base that is two updates old
    assert fleet.publish(second, first) > fleet.total
    fleet.sender.close()
    fleet.sender = fleet.new_sender()
    fleet.join(second)
    assert fleet.publish(second) > fleet.total, "a new sender has no base"
    fleet.sender.close()
    second.close()
    first.close()


def test_damaged_content_is_refused_and_the_next_update_is_whole(threads: ThreadPoolExecutor) -> None:
    fleet, sound, damaged = Fleet(threads), WeightReceiver(), WeightReceiver()
    fleet.join(sound, damaged)
    fleet.publish(sound, damaged)
    content = damaged._decoder._contents[-1]
    assert content is not None
    flip(content, 5)
    coming = [threads.submit(lambda one=one: list(one.receive(fleet.manifest))) for one in (sound, damaged)]
    with pytest.raises(WeightSyncError, match=r"ranks \[2\] refuse the update: the digest of bucket") as caught:
        fleet.sender.send(iter(fleet.named), fleet.manifest)
    assert caught.value.missing == [], "everybody lives"
    with pytest.raises(WeightSyncError, match="phase delta, rank 2: the digest of bucket"):
        coming[1].result()
    coming[0].exception()
    fleet.join(sound, damaged)
    assert fleet.publish(sound, damaged) > fleet.total
    fleet.step()
    assert fleet.publish(sound, damaged) < fleet.total / 4
    fleet.sender.close()
    for receiver in (sound, damaged):
        receiver.close()


def test_a_receiver_that_dies_in_the_middle_costs_the_others_one_whole_update(threads: ThreadPoolExecutor) -> None:
    fleet, sound, dying = Fleet(threads), WeightReceiver(), WeightReceiver()
    fleet.named += [(f"big{i}", torch.randn(1 << 20)) for i in range(16)]  # more than sockets hold
    fleet.manifest = manifest_of(fleet.named)
    fleet.total = sum(spec.num_bytes for spec in fleet.manifest)
    fleet.join(sound, dying)

    def die() -> None:
        next(dying.receive(fleet.manifest))
        dying.close()

    fleet.publish(sound, dying)
    for _, tensor in fleet.named[-16:]:
        tensor += 1
    threads.submit(die)
    coming = threads.submit(lambda: list(sound.receive(fleet.manifest)))
    with pytest.raises(WeightSyncError):
        fleet.sender.send(iter(fleet.named), fleet.manifest)
    with pytest.raises(WeightSyncError):
        coming.result()
    fleet.join(sound)
    assert fleet.publish(sound) > fleet.total
    fleet.sender.close()
    sound.close()
