"""The policy that the learner trains: Megatron-Core's GPTModel and optimizer on this rank.

Hugging Face folders in and out (`load_hf`, `save_hf`, `export`), log-probabilities of the responses of a `MicroBatch`,
and an optimizer step. One tensor-parallel group computes a micro-batch together; data-parallel groups compute
different ones, and `step` sums their gradients.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from learner import convert, cpu
from learner.architecture import Architecture
from learner.convert import HfReader, Layout
from learner.logprobs import VocabLogprobs
from learner.packing import MicroBatch
from learner.settings import ModelSettings, OptimizerSettings, ParallelSettings

with warnings.catch_warnings():
    # Megatron-Core warns about every accelerator library that is not installed.
    warnings.simplefilter("ignore")
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32

    from learner.attention import plan_attention
    from learner.gpt import build_gpt, transformer_config

TokenLoss = Callable[[int, MicroBatch, Tensor, Tensor], Tensor]
"""(index of the micro-batch, the part of it that this rank has, log-probabilities [R], entropies [R]) -> a scalar loss."""


class PolicyModel:
    """A policy on this rank, with its optimizer. `init_parallel` comes first.

    Collective over the ranks that compute a micro-batch together: `forward_backward`, `logprobs`, `export`; over all
    ranks: `step`.
    """

    def __init__(
        self,
        model_dir: Path,
        model: ModelSettings,
        optimizer: OptimizerSettings,
        parallel: ParallelSettings,
        seed: int = 0,
    ) -> None:
        """Load the Hugging Face folder `model_dir`; ValueError if the architecture does not suit."""
        self.model_dir = Path(model_dir)
        self.architecture = Architecture.read(self.model_dir)
        self.dtype: torch.dtype = getattr(torch, model.dtype)
        self.device = cpu.device()
        for heads in (self.architecture.num_heads, self.architecture.num_query_groups):
            if heads % parallel.tensor:
                raise ValueError(
                    f"{heads} attention heads cannot be shared over {parallel.tensor} tensor-parallel ranks"
                )
        self._clip_grad = optimizer.clip_grad or math.inf
        with cpu.megatron_calls(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tensor_parallel.model_parallel_cuda_manual_seed(
                seed, inference_rng_tracker=self.device.type == "cpu", force_reset_rng=True
            )
            torch.manual_seed(seed)
            config = transformer_config(self.architecture, self.dtype, parallel)
            self.gpt = build_gpt(self.architecture, config).to(self.device)
            self._read_hf(self.model_dir)
            self._ddp = DistributedDataParallel(
                config,
                DistributedDataParallelConfig(
                    grad_reduce_in_fp32=True, use_distributed_optimizer=parallel.data > 1, bucket_size=None
                ),
                self.gpt,
            )
            chained = get_megatron_optimizer(
                OptimizerConfig(
                    optimizer="adam",
                    lr=optimizer.lr,
                    weight_decay=optimizer.weight_decay,
                    adam_beta1=optimizer.beta1,
                    adam_beta2=optimizer.beta2,
                    adam_eps=optimizer.eps,
                    clip_grad=self._clip_grad,
                    bf16=self.dtype is torch.bfloat16,
                    params_dtype=self.dtype,
                    use_distributed_optimizer=parallel.data > 1,
                ),
                [self._ddp],
                use_gloo_process_groups=False,
            )
        # A dense model has one optimizer; only mixtures of experts have several.
        (self._optimizer,) = chained.chained_optimizers
        self._adam: torch.optim.Optimizer = self._optimizer.optimizer
        for group in self._adam.param_groups:
            # Norms and biases do not decay; Megatron-Core leaves it to a scheduler to say so.
            group["weight_decay"] = optimizer.weight_decay * group["wd_mult"]
            if isinstance(self._adam, torch.optim.AdamW):
                # One pass over the parameters in place of a dozen.
                group.update(fused=True, foreach=False)
        dim = self.architecture.head_dim
        exponents = torch.arange(0, dim, 2, device=self.device).float() / dim
        self._inv_freq = 1.0 / self.architecture.rope_theta**exponents

    def forward_backward(self, micros: Sequence[MicroBatch], loss: TokenLoss) -> None:
        """Add the gradient of the sum of `loss` over `micros` to the accumulated one.

        `loss` is called in order, once a micro-batch, on the ranks that have its logits; the micro-batch that it is
        given holds the response tokens whose logits this rank has, and the tensors are aligned with its `targets`,
        `sequence_index` and `token_index`. Float32; only the log-probabilities carry a gradient.
        """
        for index, micro in enumerate(micros):
            loss(index, micro, *self._token_logprobs(micro)).backward()

    @torch.no_grad()
    def logprobs(self, micros: Sequence[MicroBatch]) -> list[tuple[MicroBatch, Tensor, Tensor]]:
        """Log-probabilities and entropies of the response tokens of `micros` as `forward_backward` hands them to a loss;
        empty on ranks that have no logits."""
        return [(micro, *self._token_logprobs(micro)) for micro in micros]

    def zero_grad(self) -> None:
        """Forget accumulated gradients; before the first micro-batch of a step."""
        self._ddp.zero_grad_buffer()
        self._optimizer.zero_grad()

    def step(self, lr: float) -> tuple[float, bool]:
        """Sum gradients over data-parallel ranks, clip, and update the weights at learning rate `lr`.

        Returns the gradient's norm before clipping, and whether weights changed: a norm that is not finite leaves
        them, and the optimizer, as they were.
        """
        with cpu.megatron_calls():
            finalize_model_grads([self._ddp])
            self._optimizer.prepare_grads()
            grad_norm = float(self._optimizer.get_grad_norm())
            if not math.isfinite(grad_norm):
                return grad_norm, False
            clip_grad_by_total_norm_fp32(self._optimizer.get_parameters(), self._clip_grad, grad_norm)
            for group in self._adam.param_groups:
                group["lr"] = lr
            self._optimizer.step_with_ready_grads()
        return grad_norm, True

    def export(self) -> Iterator[tuple[str, Tensor]]:
        """Full tensors under Hugging Face names, in the model's dtype, on every rank, one gathered at a time.

        A tensor that is not sharded may be the parameter itself: copy it to keep it. Tied embeddings come once.
        """
        for name, parameter in self.gpt.named_parameters():
            layout, hf_names = convert.lookup(name)
            pieces = convert.split(layout, parameter.detach(), self.architecture)
            for hf_name, piece in zip(hf_names, pieces, strict=True):
                tensor = self._gather(piece, convert.shard_dim(layout))
                yield hf_name, tensor[: self.architecture.vocab_size] if layout is Layout.VOCAB else tensor

    def load_hf(self, model_dir: Path) -> None:
        """Take the weights of another folder of the same architecture. Adam's moments stay."""
        self._read_hf(model_dir)
        with cpu.megatron_calls():
            self._optimizer.reload_model_params()

    def save_hf(self, model_dir: Path) -> None:
        """Write a folder that transformers and vLLM load: weights, configuration, tokenizer. Rank 0 writes."""
        writer = convert.HfWriter(model_dir) if dist.get_rank() == 0 else None
        for name, tensor in self.export():
            if writer:
                writer.add(name, tensor)
        if writer:
            writer.finish(self.model_dir, self.dtype)

    def save_checkpoint(self, directory: Path) -> None:
        """Write this rank's file in `directory`: parameters, optimizer state and random number generators."""
        directory.mkdir(parents=True, exist_ok=True)
        masters = [parameter.detach() for group in self._adam.param_groups for parameter in group["params"]]
        state = {
            "parameters": {name: parameter.detach() for name, parameter in self.gpt.named_parameters()},
            "masters": masters if self.dtype is not torch.float32 else [],
            "adam": self._adam.state_dict()["state"],
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if self.device.type == "cuda" else None,
            "megatron_rng": tensor_parallel.get_cuda_rng_tracker().get_states(),
        }
        torch.save(state, directory / _rank_file())

    def load_checkpoint(self, directory: Path) -> None:
        """The inverse of `save_checkpoint`, bit for bit, on the same parallel layout."""
        state = torch.load(directory / _rank_file(), map_location=self.device, weights_only=True)
        with torch.no_grad():
            for name, parameter in self.gpt.named_parameters():
                parameter.copy_(state["parameters"][name])
            masters = [parameter for group in self._adam.param_groups for parameter in group["params"]]
            for master, saved in zip(masters, state["masters"], strict=False):
                master.copy_(saved)
        # Hyperparameters are the recipe's, not the checkpoint's.
        self._adam.load_state_dict({"state": state["adam"], "param_groups": self._adam.state_dict()["param_groups"]})
        torch.set_rng_state(state["rng"].cpu())
        if state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"].cpu())
        tensor_parallel.get_cuda_rng_tracker().set_states(state["megatron_rng"])

    def _token_logprobs(self, micro: MicroBatch) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of each response token, float32 [R] each; only the first carries a gradient."""
        if micro.num_targets == 0:
            return torch.zeros(0, device=self.device, requires_grad=True), torch.zeros(0, device=self.device)
        hidden = self._hidden_states(micro)
        rows = hidden.index_select(0, torch.from_numpy(micro.logit_rows).to(self.device))
        # Its backward sums the gradients of the vocabulary's shards.
        rows = tensor_parallel.copy_to_tensor_model_parallel_region(rows)
        weight = self._output_weight
        first = parallel_state.get_tensor_model_parallel_rank() * len(weight)
        num_valid = min(len(weight), self.architecture.vocab_size - first)
        targets = torch.from_numpy(micro.targets).to(self.device)
        group = parallel_state.get_tensor_model_parallel_group()
        logprobs, entropy = VocabLogprobs.apply(rows, weight, targets, first, num_valid, group)  # type: ignore[no-untyped-call]
        return logprobs, entropy

    @property
    def _output_weight(self) -> Tensor:
        """[V, E]: this rank's rows of the output matrix."""
        tied = self.architecture.tied
        weight: Tensor = self.gpt.embedding.word_embeddings.weight if tied else self.gpt.output_layer.weight
        return weight

    def _hidden_states(self, micro: MicroBatch) -> Tensor:
        """[T, E], after the final norm. GPTModel's own forward knows neither shared prompts nor chosen rows."""
        plan = plan_attention(micro, self._inv_freq, self.dtype, cpu_kernels=self.device.type == "cpu")
        input_ids = torch.from_numpy(micro.input_ids).to(self.device).unsqueeze(0)
        with cpu.megatron_calls():
            embedded = self.gpt.embedding(input_ids=input_ids, position_ids=None)
            hidden: Tensor = self.gpt.decoder(hidden_states=embedded, attention_mask=None, packed_seq_params=plan)
        return hidden.squeeze(1)

    @torch.no_grad()
    def _read_hf(self, model_dir: Path) -> None:
        rank, size = (
            parallel_state.get_tensor_model_parallel_rank(),
            parallel_state.get_tensor_model_parallel_world_size(),
        )
        with HfReader(model_dir) as reader:
            for name, parameter in self.gpt.named_parameters():
                layout, hf_names = convert.lookup(name)
                pieces = [reader.read(hf_name, layout, rank, size) for hf_name in hf_names]
                local = convert.join(layout, pieces, self.architecture)
                parameter[len(local) :].zero_()  # padding of the vocabulary
                parameter[: len(local)].copy_(local)

    def _gather(self, piece: Tensor, dim: int | None) -> Tensor:
        """The whole tensor of which every tensor-parallel rank has a piece along `dim`."""
        group = parallel_state.get_tensor_model_parallel_group()
        if dim is None or group.size() == 1:
            return piece
        pieces = [torch.empty(piece.shape, dtype=piece.dtype, device=piece.device) for _ in range(group.size())]
        dist.all_gather(pieces, piece.contiguous(), group=group)
        return torch.cat(pieces, dim)


def _rank_file() -> str:
    return f"rank_{dist.get_rank():05d}.pt"
