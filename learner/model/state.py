"""State of the policy on this rank as a Megatron-Core distributed checkpoint (`torch_dist`), for any parallel layout.

Three float32 tensors for each parameter, under Megatron's name of it: the master weight (`<name>`) and Adam's moments
(`optimizer.state.exp_avg.<name>`, `optimizer.state.exp_avg_sq.<name>`). Bfloat16 weights are not saved: they are the
rounded masters. Each rank writes, and later reads, what it owns, as rectangles of the whole tensor. With a distributed
optimizer a rank owns a run of a parameter's elements, which is at most three rectangles of a matrix. So any layout
(tensor, pipeline, context, data, optimizer distributed or not, dtype) reads what any other wrote, without gathering
anything.

Megatron's own optimizer formats do not allow this: a distributed and a plain optimizer name masters and moments
differently, so that neither reads the other's; `fully_reshardable` gathers the whole state on every data-parallel rank;
`fully_sharded_model_space` needs flattened ranges, which Megatron-Core no longer writes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import Tensor

from learner.model.megatron import (
    AsyncRequest,
    CheckpointingConfig,
    DistributedOptimizer,
    MCoreSavePlanner,
    ShardedTensor,
    ShardedTensorFactory,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    dist_checkpointing,
    is_main_replica,
    mcore_to_pyt_state_dict,
    parallel_state,
    save_config,
    tensor_parallel,
)
from learner.model.megatron_on_cpu import megatron_calls

BACKEND = ("torch_dist", 1)
"""Megatron-Core's name and version of the format."""
_KEYS = {"param": "", "exp_avg": "optimizer.state.exp_avg.", "exp_avg_sq": "optimizer.state.exp_avg_sq."}


@dataclass(frozen=True)
class StateCopy:
    """This rank's state at one moment, in its own buffers: training may go on while it is written."""

    tensors: Sequence[ShardedTensor]
    random: dict[str, Tensor]
    common: dict[str, Any]
    """State that is the same on every rank."""

    def write(self, directory: Path, group: dist.ProcessGroup | None = None) -> None:
        """Write this rank's part into `directory`, which exists and is empty.

        Collective over `group` (all ranks; None: this rank is the only one) and over no other, so that it may run in a
        thread beside training. Raises on every rank if one fails.
        """
        state = {"tensors": {str(index): tensor for index, tensor in enumerate(self.tensors)}, **self.common}
        request = dist_checkpointing.save(
            state,
            str(directory),
            sharded_strategy=_OwnGroupStrategy(group),
            validate_access_integrity=False,  # it would use the default group; DCP looks for holes and overlaps itself
            async_sharded_save=True,
        )
        request.async_fn()
        # Megatron's own last step waits on the default group, which belongs to training.
        if dist.get_rank() == 0:
            save_config(CheckpointingConfig(*BACKEND), str(directory))
        save_file(self.random, directory / _random_file())


class ModelState:
    """Saves and loads parameters, optimizer and random number generators of one rank's policy."""

    def __init__(self, gpt: Any, ddp: Any, optimizer: Any) -> None:
        """Take a GPTModel, its DistributedDataParallel, and the one MegatronOptimizer of both."""
        self._gpt = gpt
        self._ddp = ddp
        self._optimizer = optimizer

    def copy(self) -> StateCopy:
        """Copy the present state to buffers on the host: 12 bytes per parameter that this rank owns."""
        with megatron_calls(), torch.no_grad():
            tensors = [tensor for tensor in self._tensors() if is_main_replica(tensor.replica_id)]
            for tensor in tensors:
                tensor.data = tensor.data.to("cpu", copy=True)
            return StateCopy(tensors, _random_states(), {"adam_step": self._adam_step(), "layout": _layout()})

    def save(self, directory: Path) -> None:
        """Write the state into the folder `directory` and wait until it is written. Collective over all ranks."""
        directory.mkdir(parents=True, exist_ok=True)
        self.copy().write(directory, None if dist.get_world_size() == 1 else dist.group.WORLD)

    def load(self, directory: Path) -> None:
        """Load what `save` wrote: the same bits, under any parallel layout. Collective over all ranks.

        Random number generators continue where they were if the layout is the same; under another one they keep their
        seeds. Hyperparameters are the recipe's, not the checkpoint's.
        """
        with megatron_calls(), torch.no_grad():
            live = {str(index): tensor for index, tensor in enumerate(self._tensors())}
            # Reads into the tensors themselves: they are views of the optimizer's.
            loaded = dist_checkpointing.load({"tensors": live}, str(directory), validate_access_integrity=False)
            self._set_adam_step(loaded["adam_step"])
            if hasattr(self._optimizer, "_copy_main_params_to_model_params"):
                self._optimizer._copy_main_params_to_model_params()
            if isinstance(self._optimizer, DistributedOptimizer):
                self._ddp.start_param_sync(force_sync=True)
        if loaded["layout"] == _layout():
            _set_random_states(load_file(directory / _random_file()))

    def _tensors(self) -> list[ShardedTensor]:
        """The tensors that this rank owns, as views of the optimizer's."""
        self._fill_adam_state()
        distributed = isinstance(self._optimizer, DistributedOptimizer)
        owned = self._optimizer.model_param_group_index_map if distributed else None
        found: list[ShardedTensor] = []
        seen = set()
        state = self._gpt.sharded_state_dict(metadata={"non_homogeneous_layers": True})
        for entry in state.values():
            if not isinstance(entry, (ShardedTensor, ShardedTensorFactory)):
                continue
            parameter = entry.data
            seen.add(id(parameter))
            if owned is not None and parameter not in owned:
                continue
            parts = entry.build() if isinstance(entry, ShardedTensorFactory) else [entry]
            start = 0
            replica = entry.replica_id
            if distributed:
                tensors = self._optimizer._get_main_param_and_optimizer_states(parameter)
                start = self._optimizer._get_model_param_range_map(parameter)["param"].start
                replica = (*replica[:2], 0)  # no other data-parallel rank has it
            else:
                main = getattr(parameter, "main_param", parameter)
                tensors = {"param": main} | self._optimizer.optimizer.state[main]
            for kind, prefix in _KEYS.items():
                found += _cut(prefix, parts, tensors[kind].detach().view(-1), start, replica)
        if missed := [name for name, parameter in self._gpt.named_parameters() if id(parameter) not in seen]:
            raise ValueError(f"no checkpoint would have {missed}: their modules' sharded_state_dict leaves them out")
        return found

    def _fill_adam_state(self) -> None:
        """Moments that Adam makes at its first step, as it makes them."""
        adam = self._optimizer.optimizer
        for group in adam.param_groups:
            for parameter in group["params"]:
                if not adam.state.get(parameter):
                    adam.state[parameter] = {"exp_avg": torch.zeros_like(parameter)}
                    adam.state[parameter]["exp_avg_sq"] = torch.zeros_like(parameter)
                    if _counts_by_parameter(adam):
                        adam.state[parameter]["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)

    def _adam_step(self) -> int:
        adam = self._optimizer.optimizer
        if _counts_by_parameter(adam):
            return max((int(state["step"]) for state in adam.state.values()), default=0)
        return max(int(group.get("step", 0)) for group in adam.param_groups)

    def _set_adam_step(self, step: int) -> None:
        adam = self._optimizer.optimizer
        if _counts_by_parameter(adam):
            for state in adam.state.values():
                state["step"].fill_(step)
        else:
            for group in adam.param_groups:
                group["step"] = step


class _OwnGroupStrategy(TorchDistSaveShardedStrategy):  # type: ignore[misc]
    """Megatron's format written in this thread, with collectives on a group of its own.

    Megatron's asynchronous writer forks, which in a process with gloo's, Ray's and vLLM's threads can lock up the
    child.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        super().__init__(*BACKEND)
        self._group = group

    def async_save(self, sharded_state_dict: Any, checkpoint_dir: Any) -> AsyncRequest:
        """See Megatron-Core; the request's `async_fn` does the work."""
        by_key, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, keep_only_main_replica=True)
        state = mcore_to_pyt_state_dict(by_key)

        def write() -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that one rank alone writes alone
                dcp.save(
                    state,
                    storage_writer=dcp.FileSystemWriter(checkpoint_dir, sync_files=True),
                    planner=MCoreSavePlanner(flatten_state_dict=False),
                    process_group=self._group,
                    no_dist=self._group is None,
                )

        return AsyncRequest(write, (), [])


def rectangles(shape: Sequence[int], start: int, stop: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield (offsets, sizes) of the rectangles that elements `start` to `stop` of a vector or matrix form, in row-major
    order."""
    if len(shape) == 1:
        yield (start,), (stop - start,)
        return
    _, width = shape
    while start < stop:
        row, column = divmod(start, width)
        if column or stop - start < width:
            length = min(stop, (row + 1) * width) - start
            yield (row, column), (1, length)
        else:
            length = (stop - start) // width * width
            yield (row, 0), (length // width, width)
        start += length


def _cut(
    prefix: str, parts: Sequence[ShardedTensor], flat: Tensor, start: int, replica: tuple[int, ...]
) -> Iterator[ShardedTensor]:
    """`flat`: elements of a parameter from `start` on. `parts`: blocks of its rows, in order, with their global
    offsets."""
    stop, first = start + len(flat), 0
    for part in parts:
        last = first + part.data.numel()
        low, high = max(start, first), min(stop, last)
        if low < high:
            taken = low
            for offsets, sizes in rectangles(part.local_shape, low - first, high - first):
                length = torch.Size(sizes).numel()
                data = flat[taken - start : taken - start + length].view(sizes)
                taken += length
                yield ShardedTensor(
                    key=prefix + part.key,
                    data=data,
                    dtype=data.dtype,
                    local_shape=sizes,
                    global_shape=part.global_shape,
                    global_offset=tuple(a + b for a, b in zip(part.global_offset, offsets, strict=True)),
                    axis_fragmentations=None,
                    replica_id=replica,
                    # The vocabulary is padded with zeros to a multiple of the tensor-parallel size, in all three
                    # tensors.
                    allow_shape_mismatch=part.allow_shape_mismatch,
                )
        first = last


def _counts_by_parameter(adam: torch.optim.Optimizer) -> bool:
    """Adam of torch counts its steps for each parameter; Transformer Engine's for each group."""
    return isinstance(adam, (torch.optim.Adam, torch.optim.AdamW))


def _layout() -> dict[str, int]:
    return {
        "tensor": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline": parallel_state.get_pipeline_model_parallel_world_size(),
        "context": parallel_state.get_context_parallel_world_size(),
        "data": parallel_state.get_data_parallel_world_size(),
        "cuda": int(torch.cuda.is_available()),
    }


def _random_states() -> dict[str, Tensor]:
    states = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    for name, state in tensor_parallel.get_cuda_rng_tracker().get_states().items():
        states[f"megatron.{name}"] = state.cpu().clone()
    return states


def _set_random_states(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["torch"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
    prefix = "megatron."
    tensor_parallel.get_cuda_rng_tracker().set_states(
        {name.removeprefix(prefix): state for name, state in states.items() if name.startswith(prefix)}
    )


def _random_file() -> str:
    return f"random_{dist.get_rank():05d}.safetensors"
