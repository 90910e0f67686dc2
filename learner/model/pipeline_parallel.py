"""Pipeline parallelism: splits the layers into stages, through which micro-batches travel.

The schedule is Megatron-Core's own: one forward, one backward (1F1B) over several stages; one micro-batch after the
other on one stage. The first stage has the embedding; the last has the final norm, the output matrix and so the logits.
A tied embedding is on both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import torch
import torch.distributed as dist
from torch import Tensor

from learner.model.megatron import get_forward_backward_func, parallel_state

Stages = list[list[str]]
"""Contents of each stage, first to last, in Megatron-Core's words."""


def split_layers(num_layers: int, num_stages: int) -> Stages:
    """Split the layers into stages that differ by at most one layer; the first stages have more, as the last one
    computes the logits.

    Raises ValueError if there are more stages than layers.
    """
    if num_layers < num_stages:
        raise ValueError(
            f"{num_layers} layers cannot be cut into {num_stages} pipeline stages: set pipeline to at most {num_layers}"
        )
    share, rest = divmod(num_layers, num_stages)
    stages = [["decoder"] * (share + (stage < rest)) for stage in range(num_stages)]
    stages[0].insert(0, "embedding")
    stages[-1].append("loss")
    return stages


def run(
    gpt: torch.nn.Module,
    num_micro_batches: int,
    forward: Callable[[int], Tensor],
    finish: Callable[[int, Tensor], Any],
    forward_only: bool,
) -> list[Any]:
    """Run micro-batches 0, 1, ... through all stages, backward too unless `forward_only`. Collective over the stages.

    `forward(index)` computes this stage's output [T, 1, E]; its input, if it has one, is in `gpt`. On the last stage
    `finish(index, output)` turns that into a scalar loss or, if `forward_only`, into any result. Returns what `finish`
    returned, in order; an empty list on other stages. Call within `megatron_calls()`.
    """
    if num_micro_batches == 0:
        return []

    def step(indices: Any, _: Any) -> tuple[Tensor, Callable[..., Any]]:
        index = next(indices)

        def end(output: Tensor, non_loss_data: bool = False) -> Any:
            found = finish(index, output)
            # Megatron-Core's triple: the loss, which it leaves as it is; a token count, which it only sums; the result.
            return found if non_loss_data else (found, torch.zeros((), dtype=torch.int), found.detach())

        return forward(index), end

    done: list[Any] = get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=iter(range(num_micro_batches)),
        model=gpt,
        num_microbatches=num_micro_batches,
        # Not used: shapes travel with the tensors.
        seq_length=1,
        micro_batch_size=1,
        forward_only=forward_only,
        collect_non_loss_data=forward_only,
    )
    return done


def gather(value: Any, device: torch.device) -> list[Any]:
    """Return every stage's `value` (plain msgpack data), first stage first. Collective over the stages."""
    group = parallel_state.get_pipeline_model_parallel_group()
    payload = torch.frombuffer(bytearray(msgpack.packb(value)), dtype=torch.uint8).to(device)
    lengths = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(group.size())]
    dist.all_gather(lengths, torch.tensor([len(payload)], device=device), group=group)
    longest = max(int(length) for length in lengths)
    buffers = [torch.zeros(longest, dtype=torch.uint8, device=device) for _ in lengths]
    dist.all_gather(buffers, torch.nn.functional.pad(payload, (0, longest - len(payload))), group=group)
    return [
        msgpack.unpackb(buffer[: int(length)].cpu().numpy().tobytes())
        for buffer, length in zip(buffers, lengths, strict=True)
    ]


def broadcast(tensor: Tensor, stage: int) -> None:
    """Copy the `tensor` of `stage` to every stage, in place. Collective over the stages."""
    group = parallel_state.get_pipeline_model_parallel_group()
    dist.broadcast(tensor, dist.get_global_rank(group, stage), group=group)
