"""Megatron-Core without CUDA.

Megatron-Core asks for CUDA in a few places that have nothing to do with kernels: `torch.cuda.current_device()` as the
device of its buffers, `device="cuda"`, `.cuda()`, and the name of a tensor's type. `megatron_calls()` answers those
with the CPU for as long as it is entered, so that other users of torch in the same process see nothing of it. Where
CUDA is there it does nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode

# From <malloc.h>.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def device() -> torch.device:
    """Where this process trains: its current CUDA device, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


@contextlib.contextmanager
def megatron_calls() -> Iterator[None]:
    """Within this context Megatron-Core runs on whatever device this machine has."""
    if torch.cuda.is_available():
        yield
        return
    cpu = torch.device("cpu")
    with (
        mock.patch.object(torch.cuda, "current_device", return_value=cpu),
        mock.patch.object(torch.cuda, "synchronize"),
        _CudaMeansCpu(),
    ):
        yield


class _CudaMeansCpu(TorchFunctionMode):
    """Turns requests for CUDA into requests for the CPU, and lets CPU tensors name their type as CUDA's."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            # Megatron's optimizer tells parameters apart by names such as 'torch.cuda.BFloat16Tensor'.
            return func(*args).replace("torch.", "torch.cuda.", 1)
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def keep_memory() -> None:
    """Let this process's allocator keep what it frees.

    By default glibc maps every large temporary afresh, and each 4 KiB page of it costs a fault and is zeroed: as much
    time as the computation. Kept, a training step after the second has none. Memory that a step needed stays taken.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
