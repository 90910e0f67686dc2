"""Megatron-Core without CUDA.

Megatron-Core asks for CUDA in a few places that have nothing to do with kernels: `torch.cuda.current_device()` as the
device of its buffers, `device="cuda"`, `.cuda()`, and the name of a tensor's type. `megatron_calls()` answers those
with the CPU for as long as it is entered, so that other users of torch in the same process see nothing of it. Where
CUDA is there it does nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode


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
