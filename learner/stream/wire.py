"""The messages of the stream, both ways: their fields, and the check that everything passes before anyone uses it.

A message is a msgpack map with the key `type`, in one frame; a trajectory has the four frames of
`learner.trajectory.encode` after it. What has a field too many or too few, or a field of another type or beyond its
bounds, raises `WireError`.

`seq` numbers what an actor sends and keeps until it is acknowledged. `number` numbers, within a `session`, what the
learner sends and keeps until the actor says that it has `taken` it. A session begins whenever the learner takes an
actor in. `version` is a label, of version and the learner's life (`learner/lineage.py`).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgpack

from learner.fields import MAX_HEADER_BYTES, Refusal, WireError, flag, number_map, text, unpack_header, whole
from learner.staleness import Grant
from learner.trajectory import KIND_NAME, MAX_TOKENS

HEARTBEAT_S = 1.0
"""Seconds between two beats of either end."""
RESEND_AFTER_S = 5.0
"""Seconds without acknowledgement after which a message is sent again: a connection that broke has lost what it
carried."""
TCP_SILENT_MS = 15_000
"""Milliseconds without any traffic after which a connection is closed and made anew."""
MAX_PENDING = 1 << 14
"""Control messages that an actor may leave untaken before it is lost; far more than its credits allow."""
MAX_AHEAD = 1 << 16
"""Largest distance of the numbers of an actor's messages from the lowest that is missing."""
MAX_SLOTS = 1 << 14
"""Maximum number of slots that one actor may hold."""
MAX_HELLO_BYTES = 8 * MAX_SLOTS + 1024
"""Maximum size of a greeting: it names every slot that the actor holds, as integers of 8 bytes."""
MAX_FRAME_BYTES = 4 * MAX_TOKENS
"""Maximum size of a frame to the learner. ZeroMQ closes the connection of a peer that sends a larger one."""
MAX_FRAMES = 5
MAX_CONTROL_BYTES = 1 << 26
"""Maximum size of a message to an actor: the weights' manifest of a large model."""
MAX_CONTROL_ITEMS = 1 << 20

Fields = Mapping[str, Callable[[object], object]]


def _wholes(value: object) -> list[int]:
    if not isinstance(value, list):
        raise WireError(Refusal.FIELD, f"{value!r:.40} where a list of whole numbers was due")
    return [whole(number) for number in value]


def _packed_slots(value: object) -> list[int]:
    if not isinstance(value, bytes) or len(value) % 8 or len(value) > 8 * MAX_SLOTS:
        raise WireError(Refusal.FIELD, f"{value!r:.40} where at most {MAX_SLOTS} packed slots were due")
    return list(struct.unpack(f"<{len(value) // 8}Q", value))


def pack_slots(slots: Sequence[int]) -> bytes:
    """Slots as a greeting carries them: little-endian, 8 bytes each."""
    return struct.pack(f"<{len(slots)}Q", *slots)


def _capacity(value: object) -> int:
    capacity = whole(value)
    if not 1 <= capacity <= MAX_SLOTS:
        raise WireError(Refusal.FIELD, f"a capacity of {capacity}, not 1 to {MAX_SLOTS}")
    return capacity


def _name(value: object) -> str:
    name = text(value)
    if not 1 <= len(name.encode(errors="replace")) <= 200:
        raise WireError(Refusal.FIELD, "a name of no or of more than 200 bytes")
    return name


def _finite(value: object) -> dict[str, float]:
    found = number_map(value)
    if not all(map(math.isfinite, found.values())):
        raise WireError(Refusal.NOT_FINITE, "a number is NaN or infinite")
    return found


def _kind(value: object) -> str:
    kind = text(value)
    if not KIND_NAME.fullmatch(kind):
        raise WireError(Refusal.FIELD, f"{value!r:.40} where the name of a kind of task was due")
    return kind


def _map(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise WireError(Refusal.FIELD, f"{value!r:.40} where a map was due")
    return value


def _maps(value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise WireError(Refusal.FIELD, f"{value!r:.40} where a list of maps was due")
    return [_map(item) for item in value]


_STANDING: Fields = {"floor": whole, "session": whole, "taken": whole}
"""The lowest `seq` that may still be sent, and the last control message that arrived."""
FROM_ACTOR: Mapping[str, Fields] = {
    "hello": {"actor_id": _name, "incarnation": whole, "capacity": _capacity, "slots": _packed_slots, **_STANDING},
    "beat": {"capacity": _capacity, "stats": _finite, **_STANDING},
    "trajectory": {"seq": whole},
    "returned": {"seq": whole, "slots": _wholes},
    "failed": {"seq": whole, "slots": _wholes, "why": text},
    "loaded": {"seq": whole, "version": whole, "timings": _finite},
    "load_failed": {"seq": whole, "group": whole, "interrupted": flag, "why": text},
}
_NUMBERED: Fields = {"session": whole, "number": whole}
FROM_LEARNER: Mapping[str, Fields] = {
    "welcome": {"run_id": text, "version": whole, "session": whole},
    "who": {},
    "ack": {"seqs": _wholes},
    "refused": {"seq": whole, "why": text},
    "beat": {},
    "grant": {"episode": whole, "kind": _kind, "batch": whole, "propose": _wholes, "solve": _wholes, **_NUMBERED},
    "cancel": {"slots": _wholes, **_NUMBERED},
    "manifest": {"manifest": _maps, **_NUMBERED},
    "join": {"spec": _map, "rank": whole, **_NUMBERED},
    "weights": {"version": whole, **_NUMBERED},
    "measure": {"version": whole, **_NUMBERED},
    "pause": _NUMBERED,
    "resume": _NUMBERED,
    "shutdown": _NUMBERED,
}


def from_actor(frames: Sequence[bytes | memoryview]) -> dict[str, Any]:
    """Return the checked message in `frames`, for the learner; `decode` reads a trajectory's further frames. Raises
    `WireError`."""
    if not 1 <= len(frames) <= MAX_FRAMES:
        raise WireError(Refusal.FRAMES, f"{len(frames)} frames")
    if len(frames[0]) > MAX_HELLO_BYTES:
        raise WireError(Refusal.TOO_LARGE, f"a message of {len(frames[0])} bytes")
    message = unpack_header(frames[0])
    fields = _fields(message, FROM_ACTOR)
    if len(frames[0]) > MAX_HEADER_BYTES and message["type"] != "hello":
        raise WireError(Refusal.TOO_LARGE, f"a {message['type']} of {len(frames[0])} bytes")
    due = MAX_FRAMES if message["type"] == "trajectory" else 1
    if len(frames) != due:
        raise WireError(Refusal.FRAMES, f"{len(frames)} frames in a {message['type']}, not {due}")
    return _checked(message, fields)


def from_learner(frames: Sequence[bytes]) -> dict[str, Any]:
    """Return the checked message in `frames`, for an actor. Raises `WireError`."""
    if len(frames) != 1:
        raise WireError(Refusal.FRAMES, f"{len(frames)} frames, not 1")
    message = unpack_header(frames[0], MAX_CONTROL_ITEMS)
    return _checked(message, _fields(message, FROM_LEARNER))


def pack(message: Mapping[str, Any]) -> bytes:
    """Return the message as one frame."""
    packed: bytes = msgpack.packb(message)
    return packed


def grant_to_message(grant: Grant) -> dict[str, Any]:
    """Return a grant as plain data for msgpack."""
    return {
        "episode": grant.episode,
        "kind": str(grant.kind),
        "batch": grant.batch,
        "propose": list(grant.propose),
        "solve": list(grant.solve),
    }


def grant_from_message(message: Mapping[str, Any]) -> Grant:
    """The inverse of `grant_to_message`."""
    return Grant(
        episode=message["episode"],
        kind=message["kind"],
        batch=message["batch"],
        propose=tuple(message["propose"]),
        solve=tuple(message["solve"]),
    )


def _fields(message: Mapping[str, Any], known: Mapping[str, Fields]) -> Fields:
    name = message.get("type")
    if not isinstance(name, str) or name not in known:
        raise WireError(Refusal.TYPE, f"{name!r:.40}")
    return known[name]


def _checked(message: Mapping[str, Any], fields: Fields) -> dict[str, Any]:
    if len(message) != len(fields) + 1 or not all(name in message for name in fields):
        found = sorted(map(str, message))
        raise WireError(Refusal.FIELD, f"{message['type']} with the fields {found!s:.200}, not {sorted(fields)}")
    return {"type": message["type"], **{name: check(message[name]) for name, check in fields.items()}}


class Seen:
    """The set of message numbers that came in: all below `floor`, and some above. Memory grows with gaps, not with
    time."""

    def __init__(self, floor: int = 1) -> None:
        self.floor = floor
        self._above: set[int] = set()

    def __contains__(self, number: int) -> bool:
        return number < self.floor or number in self._above

    def __len__(self) -> int:
        """Count of the numbers that are kept one by one."""
        return len(self._above)

    def add(self, number: int) -> None:
        """Add `number`."""
        if number >= self.floor:
            self._above.add(number)
            self.raise_floor(self.floor)

    def raise_floor(self, floor: int) -> None:
        """Treat every number below `floor` as come in."""
        if floor > self.floor:
            self.floor = floor
            self._above = {number for number in self._above if number >= floor}
        while self.floor in self._above:
            self._above.remove(self.floor)
            self.floor += 1
