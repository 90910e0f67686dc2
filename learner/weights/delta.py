"""Sparse updates: of a bucket, only the elements whose bits have changed, where that is smaller than the whole bucket.

Both ends keep the content of the last complete update, the *base*: `DeltaEncoder` at the sender, `DeltaDecoder` at each
receiver. That is one more copy of the weights, on the device of each. A base has an id, drawn at random for each
update. Sparse buckets are sent only if every receiver says that it has the sender's base; if one has another or none
(it has just joined, it missed an update, an update broke off in the middle, the sender has restarted), every bucket
goes whole to all.

A bucket travels as a header and a payload. The header names the update and its base, and has a digest of the bucket's
whole content after the update. A receiver refuses a sparse bucket on another base than its own, and content whose
digest differs (`DeltaError`); either leads to a whole update. So weights are equal bit for bit, or the update fails.

Here is what the two ends compute; `transfer.py` carries it. Plain torch, the same on CPUs and GPUs.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from learner.weights.manifest import TensorSpec

NO_BASE = 0
"""Id of a base that is not there."""
HEADER_WORDS = 5
_WHOLE = -1
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers of an element's size, which are compared in place of it: NaN equals itself, and -0.0 is not 0.0."""

# The digest's words (8 bytes each) that are multiplied at once, its random multipliers, and the odd factor of a chunk.
_CHUNK = 1 << 17
_SEED = 0x5EED
_FACTOR = 0x2545F4914F6CDD1D

Layout = list[tuple[torch.dtype, int]]
"""(dtype, number of elements) of each bucket."""


class DeltaError(RuntimeError):
    """A receiver cannot take a bucket: it is based on content that the receiver does not have, or came out wrong."""


@dataclass(frozen=True)
class Header:
    """What goes ahead of a bucket's payload."""

    update_id: int
    base_id: int
    """Id of the update whose content the payload changes; for a whole bucket, `NO_BASE`."""
    changed: int
    """Number of elements in the payload; -1: the payload is the whole bucket."""
    digest: tuple[int, int]
    """`digest` of the bucket's content after the update."""

    @property
    def is_whole(self) -> bool:
        """Whether the payload is the whole bucket."""
        return self.changed == _WHOLE

    def to_tensor(self, device: torch.device) -> torch.Tensor:
        """Return it as int64 [HEADER_WORDS], to be broadcast."""
        return torch.tensor([self.update_id, self.base_id, self.changed, *self.digest], device=device)

    @classmethod
    def from_tensor(cls, words: torch.Tensor) -> Header:
        """The inverse of `to_tensor`."""
        update_id, base_id, changed, first, second = words.tolist()
        return cls(update_id, base_id, changed, (first, second))


def layout_of(buckets: Iterable[Sequence[TensorSpec]]) -> Layout:
    """Return what the buckets of `plan_buckets` hold."""
    return [(bucket[0].torch_dtype, sum(spec.numel for spec in bucket)) for bucket in buckets]


class _Base:
    """The content of the last update, bucket by bucket."""

    def __init__(self) -> None:
        self.base_id = NO_BASE
        """Id of the update that the content is of; `NO_BASE` where it is of none, or of parts of two."""
        self._layout: Layout = []
        self._contents: list[torch.Tensor | None] = []

    def _fit(self, layout: Layout) -> None:
        """Forget content that is cut in another way."""
        if layout != self._layout:
            self._layout, self._contents, self.base_id = layout, [None] * len(layout), NO_BASE

    def _content(self, index: int) -> torch.Tensor:
        content = self._contents[index]
        assert content is not None, "there is a base, so every bucket has content"
        return content


class DeltaEncoder(_Base):
    """The sender's end. For each update `begin`, `encode` for each bucket in order, then `commit`."""

    def __init__(self) -> None:
        super().__init__()
        self._update_id = NO_BASE
        self._from = NO_BASE

    def begin(self, layout: Layout, bases: Iterable[int]) -> None:
        """Start an update. `bases`: the id of each receiver's base. Until `commit` the sender has no base, so an update
        that breaks off is followed by a whole one."""
        self._fit(layout)
        common = all(base == self.base_id for base in bases)
        self._from = self.base_id if common else NO_BASE
        self._update_id, self.base_id = 1 + secrets.randbelow((1 << 63) - 1), NO_BASE

    def encode(self, index: int, flat: torch.Tensor) -> tuple[Header, torch.Tensor | None]:
        """Return the header and the payload of bucket `index`, whose new content is `flat` (1-D, not changed, not
        kept). The payload is `flat` itself, or uint8, or None where nothing has changed."""
        if self._from != NO_BASE:
            content = self._content(index)
            differs = changed_elements(flat, content)
            changed = int(torch.count_nonzero(differs))
            if _payload_bytes(changed, flat.numel(), flat.dtype) < flat.nbytes:
                positions = differs.nonzero().view(-1)
                values = _bits(flat)[positions]
                _bits(content)[positions] = values
                header = Header(self._update_id, self._from, changed, digest(content))
                return header, _pack(positions, values, flat) if changed else None
        known = self._contents[index]
        content = self._contents[index] = flat.clone() if known is None else known.copy_(flat)
        return Header(self._update_id, NO_BASE, _WHOLE, digest(content)), flat

    def commit(self) -> None:
        """Every receiver has the whole update: it is the base of the next."""
        self.base_id = self._update_id


class DeltaDecoder(_Base):
    """A receiver's end. For each update `begin`, then for each bucket in order `room` and `take`, then `commit`. It
    outlives the groups that the receiver joins."""

    def __init__(self) -> None:
        super().__init__()
        self._update_id: int | None = None
        self._from = NO_BASE

    def begin(self, layout: Layout) -> int:
        """Start an update; returns the id of the base, for the sender."""
        self._fit(layout)
        self._update_id, self._from = None, self.base_id
        return self.base_id

    def room(self, index: int, header: Header, device: torch.device) -> torch.Tensor | None:
        """Return memory for the payload of bucket `index`; None where none follows. Raises DeltaError for a header
        after which nothing can be received."""
        dtype, numel = self._layout[index]
        if header.is_whole:
            return torch.empty(numel, dtype=dtype, device=device)
        if not 0 <= header.changed <= numel:
            raise DeltaError(f"bucket {index} has {numel} elements, of which {header.changed} are to change")
        if not header.changed:
            return None
        return torch.empty(_payload_bytes(header.changed, numel, dtype), dtype=torch.uint8, device=device)

    def take(self, index: int, header: Header, payload: torch.Tensor | None) -> torch.Tensor:
        """Return the bucket's new content, which must not be changed. Raises DeltaError for a bucket of another update,
        or on another base, and for content whose digest is not the header's.

        Content that was returned before stays as it is: a consumer may hold views of it.
        """
        # From the first bucket on the content is of two updates, until the last one is in place.
        self.base_id = NO_BASE
        if self._update_id not in (None, header.update_id):
            raise DeltaError(f"bucket {index} is of update {header.update_id}, the one before of {self._update_id}")
        self._update_id = header.update_id
        if header.is_whole:
            assert payload is not None
            content = payload
        elif header.base_id == NO_BASE or header.base_id != self._from:
            raise DeltaError(f"bucket {index} changes the content of update {header.base_id}, here is {self._from}")
        elif payload is None:
            content = self._content(index)
        else:
            content = self._content(index).clone()
            positions, values = _unpack(payload, header.changed, *self._layout[index])
            if int(positions.min()) < 0 or int(positions.max()) >= content.numel():
                raise DeltaError(f"bucket {index} changes elements that it does not have")
            _bits(content)[positions] = values
        self._contents[index] = content
        if digest(content) != header.digest:
            raise DeltaError(f"the digest of bucket {index} is not the sender's")
        return content

    def commit(self) -> None:
        """Every bucket is in place."""
        if self._update_id is not None:
            self.base_id = self._update_id


def changed_elements(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """Return a mask, of the shape of both, of the elements whose bits differ."""
    return _bits(new) != _bits(old)


def digest(flat: torch.Tensor) -> tuple[int, int]:
    """Return a digest of the bits of a 1-D tensor that begins at a multiple of 8 bytes.

    Two sums modulo 2^64 over the 8-byte words: of each word, and of its upper half, times a random multiplier of its
    place. The upper half is there because a product keeps little of it. A difference that does not depend on the
    multipliers goes unnoticed with a probability below 2^-32 (D. Lemire and O. Kaser, "Strongly universal string
    hashing is fast", 2014, section 3): meant for faults, not against an attacker.
    """
    raw = flat.view(torch.uint8)
    even = raw.numel() // 8 * 8
    words = raw[:even].view(torch.int64)
    if rest := raw.numel() - even:
        last = torch.zeros(8, dtype=torch.uint8, device=flat.device)
        last[:rest] = raw[even:]
        words_and_rest = [words, last.view(torch.int64)]
    else:
        words_and_rest = [words]
    multipliers = _multipliers(flat.device)
    sums = torch.zeros(2, dtype=torch.int64, device=flat.device)
    for part in words_and_rest:
        for chunk in part.split(_CHUNK):
            factors = multipliers[: chunk.numel()]
            sums = sums * _FACTOR + torch.stack([(chunk * factors).sum(), ((chunk >> 32) * factors).sum()])
    first, second = sums.tolist()
    return first, second


@lru_cache(maxsize=8)
def _multipliers(device: torch.device) -> torch.Tensor:
    """[_CHUNK] odd int64, the same in every process."""
    draw = torch.Generator().manual_seed(_SEED)
    limits = torch.iinfo(torch.int64)
    return (torch.randint(limits.min, limits.max, (_CHUNK,), generator=draw) | 1).to(device)


def _bits(flat: torch.Tensor) -> torch.Tensor:
    return flat.view(_BITS[flat.element_size()])


def _index_dtype(numel: int) -> torch.dtype:
    return torch.int32 if numel <= torch.iinfo(torch.int32).max else torch.int64


def _index_bytes(changed: int, numel: int) -> int:
    """Bytes of the positions, rounded up so that the values behind them are aligned."""
    return -(-changed * _index_dtype(numel).itemsize // 8) * 8


def _payload_bytes(changed: int, numel: int, dtype: torch.dtype) -> int:
    """Bytes of a sparse payload for a bucket of `numel` elements: positions, then values."""
    return _index_bytes(changed, numel) + changed * dtype.itemsize


def _pack(positions: torch.Tensor, values: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
    changed, numel, dtype = values.numel(), flat.numel(), flat.dtype
    payload = torch.empty(_payload_bytes(changed, numel, dtype), dtype=torch.uint8, device=flat.device)
    into_positions, into_values = _unpack(payload, changed, dtype, numel)
    into_positions.copy_(positions)
    into_values.copy_(values)
    return payload


def _unpack(payload: torch.Tensor, changed: int, dtype: torch.dtype, numel: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions and values (as integers), as views of the payload."""
    index_dtype = _index_dtype(numel)
    positions = payload[: changed * index_dtype.itemsize].view(index_dtype)
    values = payload[_index_bytes(changed, numel) :].view(_BITS[dtype.itemsize])
    return positions, values
