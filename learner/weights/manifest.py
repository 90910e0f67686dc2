"""The manifest of a weight broadcast: named tensors in order, and how they are cut into buckets of one dtype.

Both ends cut the same manifest, so nothing but the manifest has to be agreed on. Plain torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype (as in `torch.<dtype>`) and shape of one tensor of the broadcast."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch's object."""
        dtype = getattr(torch, self.dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"{self.name}: {self.dtype!r} is no torch dtype")
        return dtype

    @property
    def numel(self) -> int:
        """Number of elements."""
        return torch.Size(self.shape).numel()

    @property
    def num_bytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.torch_dtype.itemsize

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor) -> TensorSpec:
        """The spec that describes `tensor`."""
        return cls(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


Manifest = list[TensorSpec]
"""The tensors of a broadcast, in order."""
Bucket = list[TensorSpec]
"""Neighbours of one dtype that travel together."""


def manifest_of(named_tensors: Iterable[tuple[str, torch.Tensor]]) -> Manifest:
    """Return the manifest of the given tensors."""
    return [TensorSpec.of(name, tensor) for name, tensor in named_tensors]


def manifest_to_json(manifest: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    """Return plain dicts and lists, for the stream."""
    return [{"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)} for spec in manifest]


def manifest_from_json(items: Iterable[Mapping[str, Any]]) -> Manifest:
    """The inverse of `manifest_to_json`."""
    return [TensorSpec(item["name"], item["dtype"], tuple(item["shape"])) for item in items]


def plan_buckets(manifest: Sequence[TensorSpec], bucket_bytes: int) -> list[Bucket]:
    """Cut the manifest, in order, into buckets of one dtype and at most `bucket_bytes` bytes.

    A tensor of half of that or more is alone and travels as it lies. Smaller ones are copied together: a message costs
    both ends threads that wake each other, which takes longer than copying a few megabytes.
    """
    buckets: list[Bucket] = []
    room = 0
    for spec in manifest:
        alone = 2 * spec.num_bytes >= bucket_bytes
        if not alone and spec.num_bytes <= room and buckets[-1][0].dtype == spec.dtype:
            buckets[-1].append(spec)
            room -= spec.num_bytes
        else:
            buckets.append([spec])
            room = 0 if alone else bucket_bytes - spec.num_bytes
    return buckets


def checksum(named_tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, str]:
    """Return a digest of dtype, shape and values by name. Negative zero counts as zero; all other bits count."""
    digests = {}
    for name, tensor in named_tensors:
        spec = TensorSpec.of(name, tensor)
        digest = hashlib.blake2b(f"{spec.dtype}{list(spec.shape)}".encode(), digest_size=16)
        flat = (tensor.detach() + 0).cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
        digests[name] = digest.hexdigest()
    return digests


def checked(
    named_tensors: Iterable[tuple[str, torch.Tensor]], manifest: Sequence[TensorSpec]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors, each compared with its place in the manifest, from which alone receivers cut their buckets.

    Raises ValueError at the first that differs in name, dtype or shape, is too many, or is missing.
    """
    count = 0
    for name, tensor in named_tensors:
        actual = TensorSpec.of(name, tensor)
        if count >= len(manifest) or actual != manifest[count]:
            expected = manifest[count] if count < len(manifest) else "nothing"
            raise ValueError(f"the manifest says {expected} at {count}, the export yields {actual}")
        count += 1
        yield name, tensor.detach()
    if count != len(manifest):
        raise ValueError(f"the manifest lists {len(manifest)} tensors, the export ended after {count}")


def flatten(bucket: Bucket, tensors: Iterator[tuple[str, torch.Tensor]], device: torch.device) -> torch.Tensor:
    """Return one flat tensor of the bucket's elements. A lone contiguous tensor is not copied."""
    if len(bucket) == 1:
        return next(tensors)[1].to(device).contiguous().view(-1)
    flat = torch.empty(sum(spec.numel for spec in bucket), dtype=bucket[0].torch_dtype, device=device)
    for part in flat.split([spec.numel for spec in bucket]):
        part.copy_(next(tensors)[1].reshape(-1))
    return flat
