"""The wire format: what comes back is what went in, and nothing broken comes back at all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.fields import MAX_HEADER_BYTES, Refusal, WireError
from learner.settings import BatchSettings
from learner.trajectory import (
    MAX_TOKENS,
    Cell,
    Role,
    Status,
    Trajectory,
    VersionSpan,
    check,
    decode,
    dumps,
    encode,
    loads,
)
from tests.examples import examples

CELLS = BatchSettings().cells

Frames = list[bytes]


def make(**changes: Any) -> Trajectory:
    fields: dict[str, Any] = {
        "run_id": "run",
        "actor_id": "rollout0",
        "incarnation": 2,
        "slot": 5,
        "episode_id": "3.5",
        "cell": Cell("abduction", Role.SOLVE),
        "prompt_ids": np.array([1, 2, 3], np.int32),
        "response_ids": np.array([4, 5], np.int32),
        "logprobs": np.array([-0.5, -1.5], np.float32),
        "versions": (VersionSpan(7, 0, 1), VersionSpan(9, 1, 2)),
        "reward": -0.5,
        "reward_parts": {"correct": 0.0},
        "status": Status.TRUNCATED,
        "outcome": "wrong",
        "timings": {"generate_s": 0.25},
    }
    return Trajectory(**(fields | changes))


def on_wire(trajectory: Trajectory) -> Frames:
    return [bytes(frame) for frame in encode(trajectory)]


def same(one: Trajectory, other: Trajectory) -> bool:
    def equal(name: str) -> bool:
        a, b = getattr(one, name), getattr(other, name)
        return a.tobytes() == b.tobytes() and a.dtype == b.dtype if isinstance(a, np.ndarray) else a == b

    return all(equal(name) for name in Trajectory.__slots__)


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    length = draw(st.integers(1, 6))
    cuts = sorted({0, length, *draw(st.lists(st.integers(1, length), max_size=3))})
    versions, lives = st.integers(0, 2**32 - 1), st.integers(0, 2**16)
    spans = [VersionSpan(draw(versions), a, b, draw(lives)) for a, b in zip(cuts, cuts[1:], strict=False)]
    ids = st.integers(0, 2**31 - 1)
    numbers = st.dictionaries(st.text(max_size=6), st.floats(allow_nan=False, allow_infinity=False), max_size=3)
    return make(
        actor_id=draw(st.text(max_size=20)),
        slot=draw(st.integers(0, 2**63 - 1)),
        cell=draw(st.sampled_from(CELLS)),
        prompt_ids=np.array(draw(st.lists(ids, min_size=1, max_size=5)), np.int32),
        response_ids=np.array(draw(st.lists(ids, min_size=length, max_size=length)), np.int32),
        logprobs=np.array(draw(st.lists(st.floats(-1e6, 0, width=32), min_size=length, max_size=length)), np.float32),
        versions=tuple(spans),
        reward=draw(st.floats(-1, 1)),
        reward_parts=draw(numbers),
        status=draw(st.sampled_from(list(Status))),
        timings=draw(numbers),
    )


@examples(60)
@given(trajectories())
def test_the_round_trip_is_exact(trajectory: Trajectory) -> None:
    assert same(decode(on_wire(trajectory)), trajectory)
    assert same(decode(encode(trajectory)), trajectory), "frames that were not copied"
    (again,) = loads(dumps([trajectory]))
    assert same(again, trajectory)


def test_arrays_of_other_layouts_go_out_as_little_endian_32_bit() -> None:
    odd = make(
        prompt_ids=np.arange(6)[::2],
        response_ids=np.array([4, 5], ">i8"),
        logprobs=np.array([-0.5, -1.5], np.float64),
    )
    got = decode(on_wire(odd))
    assert got.prompt_ids.tolist() == [0, 2, 4]
    assert got.response_ids.tolist() == [4, 5]
    assert got.logprobs.tolist() == [-0.5, -1.5]
    assert (got.prompt_ids.dtype, got.response_ids.dtype, got.logprobs.dtype) == ("<i4", "<i4", "<f4")


def test_properties() -> None:
    trajectory = make(versions=(VersionSpan(9, 0, 1), VersionSpan(7, 1, 2)))
    assert (trajectory.oldest_version, trajectory.newest_version, trajectory.num_tokens) == (7, 9, 5)


def test_cells_have_names_that_can_be_read_back() -> None:
    assert len({cell.name for cell in CELLS}) == 6
    assert [Cell.parse(cell.name) for cell in CELLS] == list(CELLS)
    for wrong in ("", "deduction", "solve/deduction", "deduction/solve/"):
        with pytest.raises(ValueError, match="is not a valid"):
            Cell.parse(wrong)


def with_header(**changes: Any) -> Frames:
    header, *arrays = on_wire(make())
    return [msgpack.packb(msgpack.unpackb(header) | changes), *arrays]


def without(name: str) -> Frames:
    header, *arrays = on_wire(make())
    return [msgpack.packb({k: v for k, v in msgpack.unpackb(header).items() if k != name}), *arrays]


def spans(*versions: tuple[int, int, int]) -> Frames:
    return with_header(versions=[list(span) for span in versions])


def with_array(index: int, dtype: str, *values: float) -> Frames:
    frames = on_wire(make())
    frames[index] = np.array(values, dtype).tobytes()
    return frames


nan, inf = float("nan"), float("inf")

BROKEN: list[tuple[str, Callable[[], Frames], Refusal]] = [
    ("no frames", lambda: [], Refusal.FRAMES),
    ("a frame too few", lambda: on_wire(make())[:3], Refusal.FRAMES),
    ("a frame too many", lambda: [*on_wire(make()), b""], Refusal.FRAMES),
    ("no msgpack", lambda: [b"\xc1", *on_wire(make())[1:]], Refusal.HEADER),
    ("an empty header", lambda: [b"", *on_wire(make())[1:]], Refusal.HEADER),
    ("a list", lambda: [msgpack.packb([1]), *on_wire(make())[1:]], Refusal.HEADER),
    ("keys of bytes", lambda: [msgpack.packb({b"schema": 1}), *on_wire(make())[1:]], Refusal.HEADER),
    ("something after the header", lambda: [on_wire(make())[0] + b"\x00", *on_wire(make())[1:]], Refusal.HEADER),
    ("deep nesting", lambda: [b"\x91" * 5000 + b"\x90", *on_wire(make())[1:]], Refusal.HEADER),
    ("another schema", lambda: with_header(schema=3), Refusal.SCHEMA),
    ("the schema of an older checkpoint", lambda: with_header(schema=1, seq=4), Refusal.SCHEMA),
    ("no schema", lambda: without("schema"), Refusal.SCHEMA),
    ("a large header", lambda: with_header(more="x" * MAX_HEADER_BYTES), Refusal.TOO_LARGE),
    ("a large array", lambda: [*on_wire(make())[:3], bytes(4 * MAX_TOKENS + 4)], Refusal.TOO_LARGE),
    ("too many tokens", lambda: on_wire(make(prompt_ids=np.zeros(MAX_TOKENS, np.int32))), Refusal.TOO_LARGE),
    ("a prompt shorter than announced", lambda: with_array(1, "<i4", 1, 2), Refusal.LENGTH),
    ("a prompt longer than announced", lambda: with_array(1, "<i4", 1, 2, 3, 4), Refusal.LENGTH),
    ("a response longer than announced", lambda: with_array(2, "<i4", 1, 2, 3), Refusal.LENGTH),
    ("a logprob too few", lambda: with_array(3, "<f4", -1), Refusal.LENGTH),
    ("half an item", lambda: [*on_wire(make())[:3], b"\x00" * 7], Refusal.LENGTH),
    ("no prompt", lambda: [with_header(lengths=[0, 2])[0], b"", *on_wire(make())[2:]], Refusal.LENGTH),
    ("a NaN logprob", lambda: with_array(3, "<f4", -1, nan), Refusal.NOT_FINITE),
    ("an infinite logprob", lambda: with_array(3, "<f4", -inf, -1), Refusal.NOT_FINITE),
    ("a NaN reward", lambda: with_header(reward=nan), Refusal.NOT_FINITE),
    ("an infinite part", lambda: with_header(reward_parts={"valid": inf}), Refusal.NOT_FINITE),
    ("a NaN timing", lambda: with_header(timings={"queue_s": nan}), Refusal.NOT_FINITE),
    ("no spans", spans, Refusal.VERSIONS),
    ("spans that end early", lambda: spans((0, 0, 1)), Refusal.VERSIONS),
    ("spans that end late", lambda: spans((0, 0, 3)), Refusal.VERSIONS),
    ("a gap", lambda: spans((0, 0, 0), (0, 1, 2)), Refusal.VERSIONS),
    ("an overlap", lambda: spans((0, 0, 2), (1, 1, 2)), Refusal.VERSIONS),
    ("a start after 0", lambda: spans((0, 1, 2)), Refusal.VERSIONS),
    ("a negative version", lambda: spans((-1, 0, 2)), Refusal.FIELD),
    ("a span of two numbers", lambda: with_header(versions=[[0, 2]]), Refusal.FIELD),
    ("a negative prompt token", lambda: with_array(1, "<i4", 1, 2, -3), Refusal.FIELD),
    ("a negative response token", lambda: with_array(2, "<i4", -1, 2), Refusal.FIELD),
    ("a logprob above zero", lambda: with_array(3, "<f4", -1, 0.5), Refusal.FIELD),
    ("a negative incarnation", lambda: with_header(incarnation=-1), Refusal.FIELD),
    ("a bool for a slot", lambda: with_header(slot=True), Refusal.FIELD),
    ("a float for a slot", lambda: with_header(slot=1.0), Refusal.FIELD),
    ("an integer beyond 63 bits", lambda: with_header(slot=2**63), Refusal.FIELD),
    ("three lengths", lambda: with_header(lengths=[3, 2, 2]), Refusal.FIELD),
    ("an unknown cell", lambda: with_header(cell="deduction/judge"), Refusal.FIELD),
    ("an unknown status", lambda: with_header(status="aborted"), Refusal.FIELD),
    ("a long name", lambda: with_header(actor_id="x" * 513), Refusal.FIELD),
    ("parts that are a list", lambda: with_header(reward_parts=[1.0]), Refusal.FIELD),
    ("a reward that is a string", lambda: with_header(reward="1.0"), Refusal.FIELD),
    ("a reward that is a bool", lambda: with_header(reward=True), Refusal.FIELD),
    ("a part that is a string", lambda: with_header(reward_parts={"valid": "1"}), Refusal.FIELD),
    ("a timing that is a bool", lambda: with_header(timings={"queue_s": False}), Refusal.FIELD),
    ("nested lists that announce much", lambda: [b"\xdd\x00\x01\x00\x00" * 1000, *on_wire(make())[1:]], Refusal.HEADER),
    ("a list longer than any", lambda: with_header(versions=[0] * 513), Refusal.HEADER),
    ("a part that is no number", lambda: with_header(reward_parts={"valid": None}), Refusal.FIELD),
    ("a field that is missing", lambda: without("episode_id"), Refusal.FIELD),
]


@pytest.mark.parametrize(("build", "refusal"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_what_is_broken_is_refused_by_name(build: Callable[[], Frames], refusal: Refusal) -> None:
    with pytest.raises(WireError) as caught:
        decode(build())
    assert caught.value.refusal is refusal
    assert str(caught.value).startswith(f"{refusal.value}: ")


def test_every_refusal_is_reached() -> None:
    messages_only = {
        Refusal.TYPE,
        Refusal.SENDER,
        Refusal.CELL,
    }  # of the stream's messages: see `test_wire.py`, `test_stream.py`
    assert {case[2] for case in BROKEN} == set(Refusal) - messages_only


def test_what_encode_writes_from_a_sound_trajectory_is_sound() -> None:
    check(make())
    check(decode(on_wire(make())))


@pytest.mark.parametrize("span", [VersionSpan(-1, 0, 2), VersionSpan(2**32, 0, 2), VersionSpan(0, 0, 2, -1)])
def test_what_is_no_version_is_refused_before_it_is_sent(span: VersionSpan) -> None:
    with pytest.raises(WireError) as caught:
        check(make(versions=(span,)))
    assert caught.value.refusal is Refusal.VERSIONS


@examples(200)
@given(st.lists(st.binary(max_size=40), min_size=4, max_size=4))
def test_random_frames_are_refused(frames: Frames) -> None:
    with pytest.raises(WireError):
        decode(frames)


@examples(300)
@given(st.integers(0, 3), st.data())
def test_damage_to_a_sound_message_raises_nothing_but_wire_errors(index: int, data: st.DataObject) -> None:
    frames = on_wire(make())
    damaged = bytearray(frames[index])
    place = data.draw(st.integers(0, len(damaged) - 1))
    match data.draw(st.sampled_from(["flip", "cut", "insert"])):
        case "flip":
            damaged[place] ^= data.draw(st.integers(1, 255))
        case "cut":
            del damaged[place:]
        case "insert":
            damaged[place:place] = data.draw(st.binary(min_size=1, max_size=4))
    frames[index] = bytes(damaged)
    with contextlib.suppress(WireError):
        check(decode(frames))


HEADER_FIELDS = sorted(msgpack.unpackb(encode(make())[0]))
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(st.sampled_from(HEADER_FIELDS), anything)
def test_a_header_with_one_strange_field_never_raises_anything_else(name: str, value: Any) -> None:
    header, *arrays = encode(make())
    with contextlib.suppress(WireError):
        decode([msgpack.packb(msgpack.unpackb(header) | {name: value}), *(bytes(a) for a in arrays)])


def test_many_keep_their_order() -> None:
    assert [t.slot for t in loads(dumps([make(slot=slot) for slot in (3, 1, 2)]))] == [3, 1, 2]
    assert loads(dumps([])) == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x91",
        msgpack.packb({"a": 1}),
        msgpack.packb([1]),
        msgpack.packb([["x"]]),
        msgpack.packb([[b""] * 4]),
    ],
    ids=["nothing", "no msgpack", "cut off", "a map", "numbers", "text", "empty frames"],
)
def test_what_is_no_list_of_trajectories_is_refused(data: bytes) -> None:
    with pytest.raises(WireError) as caught:
        loads(data)
    assert caught.value.refusal is Refusal.HEADER


def test_a_flipped_byte_in_a_checkpoints_queue_raises_nothing_but_wire_errors() -> None:
    sound = dumps([make(), make(slot=6)])
    for place in range(len(sound)):
        for bit in (0x01, 0x80):
            damaged = bytearray(sound)
            damaged[place] ^= bit
            with contextlib.suppress(WireError):
                loads(bytes(damaged))


def test_a_cell_may_be_of_any_kind_with_a_plain_name() -> None:
    assert Cell.parse("differ-2/solve") == Cell("differ-2", Role.SOLVE)
    got = decode(on_wire(make(cell=Cell("differ-2", Role.PROPOSE))))
    assert got.cell == Cell("differ-2", Role.PROPOSE)
    for wrong in ("Differ/solve", "2/solve", "a b/solve", "ä/solve", f"{'a' * 41}/solve", "differ/judge", "a/b/solve"):
        with pytest.raises(ValueError, match="is not a valid"):
            Cell.parse(wrong)
        with pytest.raises(WireError) as refused:
            decode(with_header(cell=wrong))
        assert refused.value.refusal is Refusal.FIELD
