"""The policy that the learner trains: Megatron-Core's GPTModel and optimizer on this rank.

Hugging Face folders in and out (`load_hf`, `save_hf`, `export`), log-probabilities of the responses of a `MicroBatch`,
and an optimizer step. One tensor-parallel group computes a micro-batch together; data-parallel groups compute
different ones, and `step` sums their gradients.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import HashStore, Store  # type: ignore[attr-defined]

from learner import convert, cpu
from learner.convert import Architecture, HfReader, Layout
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
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
    from megatron.core.transformer.transformer_config import TransformerConfig

    from learner.attention import TreeAttention, plan_attention
    from learner.kernels import RmsNorm, SwiGlu


def init_parallel(
    parallel: ParallelSettings,
    rank: int,
    world_size: int,
    init_method_or_store: str | Store | None = None,
    timeout: float = 600.0,
) -> None:
    """Join the learner's process group and set up Megatron-Core's groups in it; collective.

    A process group that is there already (vLLM's, in the same process) is used as it is, if its size is `world_size`.
    Alone, a rank needs no address: without `init_method_or_store` it uses a store in memory. `timeout` in seconds.
    """
    if parallel.world_size != world_size:
        raise ValueError(
            f"tensor {parallel.tensor} x data {parallel.data} needs {parallel.world_size} ranks, not {world_size}"
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(rank % torch.cuda.device_count())
    else:
        cpu.keep_memory()
    if not dist.is_initialized():
        where: dict[str, Any] = {"store": init_method_or_store or HashStore()}
        if isinstance(init_method_or_store, str):
            where = {"init_method": init_method_or_store}
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout), **where)
    if dist.get_world_size() != world_size:
        raise ValueError(f"this process is in a group of {dist.get_world_size()} ranks already, not {world_size}")
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    with cpu.megatron_calls():
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=parallel.tensor,
            distributed_timeout_minutes=math.ceil(timeout / 60),
            create_gloo_process_groups=False,
        )


class PolicyModel:
    """A policy on this rank, with its optimizer. `init_parallel` comes first.

    Collective over the tensor-parallel group: `token_logprobs`, `backward`, `export`; over all ranks: `step`.
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
            config = self._megatron_config(parallel.tensor)
            self.gpt = self._build(config, parallel.tensor).to(self.device)
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

    def token_logprobs(self, micro: MicroBatch) -> tuple[Tensor, Tensor]:
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

    def zero_grad(self) -> None:
        """Forget accumulated gradients; before the first micro-batch of a step."""
        self._ddp.zero_grad_buffer()
        self._optimizer.zero_grad()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss` to the accumulated one."""
        loss.backward()

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

    def _megatron_config(self, tensor_parallel_size: int) -> TransformerConfig:
        shape = self.architecture
        return TransformerConfig(
            num_layers=shape.num_layers,
            hidden_size=shape.hidden_size,
            ffn_hidden_size=shape.ffn_hidden_size,
            num_attention_heads=shape.num_heads,
            num_query_groups=shape.num_query_groups,
            kv_channels=shape.head_dim,
            layernorm_epsilon=shape.norm_eps,
            normalization="RMSNorm",
            add_bias_linear=False,
            add_qkv_bias=shape.qkv_bias,
            qk_layernorm=shape.qk_norm,
            gated_linear_unit=True,
            activation_func=torch.nn.functional.silu,
            # Megatron-Core's name for an activation module of the layer specification's own: `SwiGlu`.
            use_te_activation_func=True,
            attention_dropout=0.0,
            hidden_dropout=0.0,
            tensor_model_parallel_size=tensor_parallel_size,
            bf16=self.dtype is torch.bfloat16,
            params_dtype=self.dtype,
            # Weights come from a folder.
            perform_initialization=False,
            use_cpu_initialization=self.device.type == "cpu",
            # The caller's loss is normalised over the global batch already: with this set, gradients are summed over
            # data-parallel ranks; without, averaged.
            calculate_per_token_loss=True,
        )

    def _build(self, config: TransformerConfig, tensor_parallel_size: int) -> GPTModel:
        layer = get_gpt_layer_local_spec(qk_layernorm=self.architecture.qk_norm, normalization="RMSNorm")
        parts = layer.submodules
        parts.input_layernorm = parts.pre_mlp_layernorm = RmsNorm
        parts.mlp.submodules.activation_func = SwiGlu
        attention = parts.self_attention.submodules
        attention.core_attention = TreeAttention
        if self.architecture.qk_norm:
            attention.q_layernorm = attention.k_layernorm = RmsNorm
        gpt = GPTModel(
            config,
            TransformerBlockSubmodules(layer_specs=[layer] * config.num_layers, layer_norm=RmsNorm),
            vocab_size=math.ceil(self.architecture.vocab_size / tensor_parallel_size) * tensor_parallel_size,
            max_sequence_length=0,
            position_embedding_type="none",
            share_embeddings_and_output_weights=self.architecture.tied,
        )
        for name, parameter in gpt.named_parameters():
            # The gradient's norm counts what is whole on every rank once. Initialisation would say which is which.
            parameter.tensor_model_parallel = convert.shard_dim(convert.lookup(name)[0]) is not None
        return gpt

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
