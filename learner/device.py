"""The device that this process computes on, and the settings of its allocator. Needs torch alone."""

from __future__ import annotations

import ctypes

import torch

# From <malloc.h>.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def device() -> torch.device:
    """The device that this process trains on: its current CUDA device, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def keep_memory() -> None:
    """Let this process's allocator keep what it frees.

    By default glibc maps every large temporary afresh, and each 4 KiB page of it costs a fault and is zeroed: as much
    time as the computation. Kept, a training step after the second has none. Memory that a step needed stays taken.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
