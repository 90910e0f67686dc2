"""The learner's process groups: Megatron-Core's, over NCCL on GPUs and gloo on CPUs."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import HashStore, Store  # type: ignore[attr-defined]

from learner.device import keep_memory
from learner.model.megatron import parallel_state
from learner.model.megatron_on_cpu import megatron_calls
from learner.settings import ParallelSettings


def init_parallel(
    parallel: ParallelSettings,
    rank: int,
    world_size: int,
    init_method_or_store: str | Store | None = None,
    timeout: float = 600.0,
) -> None:
    """Join the learner's process group and set up Megatron-Core's groups in it. Collective.

    A process group that exists already (vLLM's, in the same process) is used as it is. A single rank needs no address:
    without `init_method_or_store` it uses a store in memory. `timeout`: seconds. Raises ValueError if the layout does
    not match `world_size`.
    """
    if parallel.world_size != world_size:
        raise ValueError(
            f"tensor {parallel.tensor} x pipeline {parallel.pipeline} x context {parallel.context} x data "
            f"{parallel.data} needs {parallel.world_size} ranks, not {world_size}"
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(rank % torch.cuda.device_count())
        # Otherwise an engine that dies ends the learner: torch's monitor of the first group stops the process when any
        # group asks for a dump.
        os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "0")
    else:
        keep_memory()
    joined = dist.is_initialized()
    if not joined:
        where: dict[str, Any] = {"store": init_method_or_store or HashStore()}
        if isinstance(init_method_or_store, str):
            where = {"init_method": init_method_or_store}
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout), **where)
    if dist.get_world_size() != world_size:
        raise ValueError(f"this process is in a group of {dist.get_world_size()} ranks already, not {world_size}")
    if parallel_state.model_parallel_is_initialized():
        if joined and _layout() == (parallel.tensor, parallel.pipeline, parallel.context):
            return  # new groups would add threads: gloo's outlive their group and wake up a hundred times a second
        parallel_state.destroy_model_parallel()
    with megatron_calls(), _groups_of_one_shared():
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=parallel.tensor,
            pipeline_model_parallel_size=parallel.pipeline,
            context_parallel_size=parallel.context,
            distributed_timeout_minutes=math.ceil(timeout / 60),
            create_gloo_process_groups=False,
        )


@contextlib.contextmanager
def _groups_of_one_shared() -> Iterator[None]:
    """While Megatron-Core makes its groups, let those of the same single rank be one.

    It makes some twenty, most of which have one rank where a kind of parallelism is not used. Such a group sends
    nothing, but each of gloo's has a thread that wakes up a hundred times a second: 1.5% of a core together.
    """
    create_group: Callable[..., Any] = parallel_state.create_group
    of_one: dict[int, Any] = {}

    def create(ranks: Sequence[int], *args: Any, **kwargs: Any) -> Any:
        if len(ranks) != 1:
            return create_group(ranks, *args, **kwargs)
        if ranks[0] not in of_one:
            of_one[ranks[0]] = create_group(ranks, *args, **kwargs)
        return of_one[ranks[0]]

    parallel_state.create_group = create
    try:
        yield
    finally:
        parallel_state.create_group = create_group


def _layout() -> tuple[int, int, int]:
    """Ranks of tensor, pipeline and context parallelism, as they are set up; the rest are data-parallel."""
    return (
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_pipeline_model_parallel_world_size(),
        parallel_state.get_context_parallel_world_size(),
    )


def data_rank() -> int:
    """Return this rank's data-parallel index, that is, which part of a batch it computes. Ranks that compute a part
    together have the same."""
    rank: int = parallel_state.get_data_parallel_rank(with_context_parallel=False)
    return rank
