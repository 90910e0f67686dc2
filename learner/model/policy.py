"""The policy that the learner trains: Megatron-Core's GPTModel and optimizer on this rank.

Reads and writes Hugging Face folders (`load_hf`, `save_hf`, `export`), computes log-probabilities of the responses of a
`MicroBatch`, and takes optimizer steps. Tensor-, pipeline- and context-parallel ranks compute a micro-batch together,
each with a part of the matrices, of the layers (`pipeline_parallel.py`), of the rows (`context_parallel.py`).
Data-parallel ranks compute different micro-batches, and `step` sums their gradients.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from learner.batching.balance import CostModel
from learner.batching.packing import MicroBatch
from learner.device import device
from learner.model import convert
from learner.model import pipeline_parallel as pipeline
from learner.model.architecture import Architecture
from learner.model.attention import TreePlan, plan_attention
from learner.model.context_parallel import local_part
from learner.model.convert import HfReader, Layout
from learner.model.gpt import build_gpt, gpt_config
from learner.model.logprobs import VocabLogprobs
from learner.model.megatron import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    OptimizerConfig,
    clip_grad_by_total_norm_fp32,
    finalize_model_grads,
    get_megatron_optimizer,
    parallel_state,
    tensor_parallel,
)
from learner.model.megatron_on_cpu import megatron_calls
from learner.model.policy_copy import PolicyCopy
from learner.model.state import ModelState
from learner.settings import KernelSettings, ModelSettings, OptimizerSettings, ParallelSettings

LossFn = Callable[[int, MicroBatch, Tensor, Tensor], Tensor]
"""(index of the micro-batch, this rank's part of it, log-probabilities [R], entropies [R]) -> a scalar loss."""
TokenLogprobs = tuple[MicroBatch, Tensor, Tensor]
"""(this rank's part of a micro-batch, log-probabilities [R], entropies [R]), float32."""


class PolicyModel:
    """A policy on this rank, with its optimizer. Call `init_parallel` (`process_groups.py`) first.

    Collective over the ranks that compute a micro-batch together: `forward_backward`, `logprobs`, `export`. Collective
    over all ranks: the constructor and `step`.
    """

    def __init__(
        self,
        model_dir: Path,
        model: ModelSettings,
        optimizer: OptimizerSettings,
        parallel: ParallelSettings,
        seed: int = 0,
        temperature: float = 1.0,
        kernels: KernelSettings | None = None,
    ) -> None:
        """Load the Hugging Face folder `model_dir`. Raises ValueError for an unsupported architecture or one that
        `parallel` cannot divide.

        `seed`: seed of this rank's random number generators. `temperature`: at which the policy is sampled; its
        log-probabilities and entropies are of softmax(logits / temperature).
        """
        self.model_dir = Path(model_dir)
        self.architecture = Architecture.read(self.model_dir)
        self.dtype: torch.dtype = getattr(torch, model.dtype)
        self.device = device()
        self.temperature = temperature
        _check_heads(self.architecture, parallel)
        if model.deterministic:
            torch.use_deterministic_algorithms(True)
        self._clip_grad = optimizer.clip_grad or math.inf
        # With context parallelism the optimizer's state is shared out over these ranks too.
        distributed_optimizer = parallel.distributed_optimizer and parallel.data * parallel.context > 1
        with megatron_calls(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tensor_parallel.model_parallel_cuda_manual_seed(
                seed, inference_rng_tracker=self.device.type == "cpu", force_reset_rng=True
            )
            torch.manual_seed(seed)
            config = gpt_config(self.architecture, self.dtype, parallel, kernels or KernelSettings())
            self._compiles = config.compile_kernels
            self.gpt = build_gpt(self.architecture, config).to(self.device)
            self._read_hf(self.model_dir)
            self._ddp = DistributedDataParallel(
                config,
                DistributedDataParallelConfig(
                    grad_reduce_in_fp32=True, use_distributed_optimizer=distributed_optimizer, bucket_size=None
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
                    use_distributed_optimizer=distributed_optimizer,
                ),
                [self._ddp],
                use_gloo_process_groups=False,
            )
        # Only experts on ranks of their own (expert parallelism) would have another.
        (self._optimizer,) = chained.chained_optimizers
        self._adam: torch.optim.Optimizer = self._optimizer.optimizer
        for group in self._adam.param_groups:
            # Norms and biases do not decay; Megatron-Core leaves it to a scheduler to say so.
            group["weight_decay"] = optimizer.weight_decay * group["wd_mult"]
            if isinstance(self._adam, torch.optim.AdamW):
                # One pass over the parameters in place of a dozen.
                group.update(fused=True, foreach=False)
        self.state = ModelState(self.gpt, self._ddp, self._optimizer)
        self.inverse_frequencies = self.architecture.inverse_frequencies(self.device)
        """Inverse frequencies of the rotary embedding."""
        self._exports = self._list_exports()

    @property
    def cost(self) -> CostModel:
        """Cost of a row, an attended pair and a response token (`Architecture.cost`)."""
        return self.architecture.cost

    def plan(self, micro: MicroBatch, context: dist.ProcessGroup | None = None) -> TreePlan:
        """Return the attention plan of the whole of `micro`, whose rows the ranks of `context` share, for this
        device."""
        return plan_attention(
            micro,
            self.inverse_frequencies,
            self.dtype,
            cpu_kernels=self.device.type == "cpu",
            context=context,
            compile_kernels=self._compiles,
        )

    def forward_backward(self, micros: Sequence[MicroBatch], loss: LossFn) -> None:
        """Add the gradient of the sum of `loss` over `micros` to the accumulated gradient.

        `loss` is called in order, once for each micro-batch that has tokens, on the ranks that have its logits. Its
        micro-batch holds the response tokens whose logits this rank has (with context parallelism a part of them,
        possibly none); its tensors are float32 and aligned with `targets`, `sequence_index` and `token_index`. Only the
        log-probabilities carry a gradient, and the loss must depend on them (ValueError otherwise).
        """
        self._run(micros, loss)

    def logprobs(self, micros: Sequence[MicroBatch]) -> list[TokenLogprobs]:
        """Compute log-probabilities and entropies of the response tokens of `micros`, without gradients, in the form
        that `forward_backward` gives to a loss. Returns an empty list on ranks that have no logits."""
        with torch.no_grad():
            return self._run(micros, None)

    def zero_grad(self) -> None:
        """Clear the accumulated gradients. Call before the first micro-batch of a step."""
        self._ddp.zero_grad_buffer()
        self._optimizer.zero_grad()

    def step(self, lr: float) -> tuple[float, bool]:
        """Sum gradients over data- and context-parallel ranks, clip them, and update the weights at learning rate `lr`.

        Returns the gradient's norm before clipping, and whether the weights changed: a norm that is not finite leaves
        weights and optimizer as they were.
        """
        with megatron_calls():
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
        """Yield all tensors, whole, under their Hugging Face names, in the model's dtype; on every rank and in the same
        order.

        A tensor may be the parameter itself: copy it to keep it. Tied embeddings come once. A pipeline stage gathers
        its tensors over its tensor-parallel ranks and sends them to the other stages.
        """
        mine = self._export_stage()
        for stage, listed in enumerate(self._exports):
            for name, shape in listed:
                if stage == parallel_state.get_pipeline_model_parallel_rank():
                    tensor = next(mine)
                else:
                    tensor = torch.empty(shape, dtype=self.dtype, device=self.device)
                if len(self._exports) > 1:
                    pipeline.broadcast(tensor, stage)
                yield name, tensor

    def load_hf(self, model_dir: Path) -> None:
        """Load the weights of another folder of the same architecture. Adam's moments stay."""
        self._read_hf(model_dir)
        with megatron_calls():
            self._optimizer.reload_model_params()

    def save_hf(self, model_dir: Path) -> None:
        """Write a folder that transformers and vLLM load: weights, configuration, tokenizer. Rank 0 writes;
        collective."""
        writer = convert.HfWriter(model_dir) if dist.get_rank() == 0 else None
        for name, tensor in self.export():
            if writer:
                writer.add(name, tensor)
        if writer:
            writer.finish(self.model_dir, self.dtype)

    def copy(self, exports: bool = True) -> PolicyCopy:
        """Copy what a checkpoint holds of this rank: its state and, with `exports`, all weights on rank 0.
        Collective."""
        state, is_main = self.state.copy(), dist.get_rank() == 0
        if not exports:
            return PolicyCopy(state, None, self.model_dir, self.dtype)
        # Rank 0 alone keeps the exported weights; they are gathered over all ranks.
        exported = [(name, tensor.to("cpu", copy=True)) for name, tensor in self.export() if is_main]
        return PolicyCopy(state, exported if is_main else None, self.model_dir, self.dtype)

    def save_checkpoint(self, directory: Path) -> None:
        """Write parameters, optimizer and random number generators into `directory`. Collective over all ranks."""
        self.state.save(directory)

    def load_checkpoint(self, directory: Path) -> None:
        """Load what `save_checkpoint` wrote, bit for bit, on any parallel layout. Collective over all ranks."""
        self.state.load(directory)

    def _run(self, micros: Sequence[MicroBatch], loss: LossFn | None) -> list[TokenLogprobs]:
        """Forward and backward passes over `micros`, or without a loss forward only, returning what was found."""
        # Ranks that compute a micro-batch together agree on which are empty, and gradients are summed only in `step`.
        filled = [(index, micro) for index, micro in enumerate(micros) if micro.num_tokens]
        context = parallel_state.get_context_parallel_group()
        parts = [local_part(micro, context.rank(), context.size()) for _, micro in filled]

        def forward(place: int) -> Tensor:
            _, micro = filled[place]
            plan = self.plan(micro, context if context.size() > 1 else None)
            embedded = None
            if self.gpt.pre_process:
                input_ids = torch.from_numpy(parts[place].input_ids).to(self.device).unsqueeze(0)
                embedded = self.gpt.embedding(input_ids=input_ids, position_ids=None)
            # GPTModel's own forward knows neither shared prompts nor chosen rows.
            hidden: Tensor = self.gpt.decoder(hidden_states=embedded, attention_mask=None, packed_seq_params=plan)
            return hidden

        def finish(place: int, hidden: Tensor) -> Tensor | TokenLogprobs:
            part = parts[place]
            logprobs, entropy = self._token_logprobs(part, hidden.squeeze(1))
            if loss is None:
                return part, logprobs, entropy
            value = loss(filled[place][0], part, logprobs, entropy)
            if not value.requires_grad:
                # The schedule would leave out this backward pass, and other ranks wait for it.
                raise ValueError("a loss must depend on the log-probabilities that it is given, even if there are none")
            return value

        with megatron_calls():
            return pipeline.run(self.gpt, len(filled), forward, finish, forward_only=loss is None)

    def _token_logprobs(self, micro: MicroBatch, hidden_TE: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies of the response tokens, float32 [R] each, from the last stage's output [T,
        E]. Only the first carry a gradient."""
        if micro.num_targets == 0:
            return hidden_TE[:0].sum(1).float(), torch.zeros(0, device=self.device)
        rows_RE = hidden_TE.index_select(0, torch.from_numpy(micro.logit_rows).to(self.device))
        # Its backward sums the gradients of the vocabulary's shards.
        rows_RE = tensor_parallel.copy_to_tensor_model_parallel_region(rows_RE)
        weight_VE = self._output_weight
        first = parallel_state.get_tensor_model_parallel_rank() * len(weight_VE)
        num_valid = min(len(weight_VE), self.architecture.vocab_size - first)
        targets_R = torch.from_numpy(micro.targets).to(self.device)
        group = parallel_state.get_tensor_model_parallel_group()
        logprobs_R, entropy_R = VocabLogprobs.apply(  # type: ignore[no-untyped-call]
            rows_RE, weight_VE, targets_R, first, num_valid, group, self.temperature, self._compiles
        )
        return logprobs_R, entropy_R

    @property
    def _output_weight(self) -> Tensor:
        """[V, E]: this rank's rows of the output matrix; the embedding's parameter where both are tied and on this
        rank."""
        weight: Tensor | None = self.gpt.output_layer.weight
        return self.gpt.embedding.word_embeddings.weight if weight is None else weight

    def _parameters(self) -> Iterator[tuple[str, Tensor]]:
        """This rank's parameters under the names that they have in a model without pipeline stages; a tied embedding's
        second copy, on the last stage, under the embedding's."""
        offset = self.gpt.decoder.layers[0].layer_number - 1
        for name, parameter in self.gpt.named_parameters():
            if name == "output_layer.weight" and self.architecture.tied:
                name = "embedding.word_embeddings.weight"
            yield re.sub(r"(?<=\.layers\.)\d+", lambda layer: str(int(layer.group()) + offset), name), parameter

    def _pieces(self) -> Iterator[tuple[str, Layout, Tensor]]:
        """(Hugging Face name, layout, piece) of what this stage exports."""
        for name, parameter in self._parameters():
            if name == "embedding.word_embeddings.weight" and not self.gpt.pre_process:
                continue  # the first stage exports it
            layout, hf_names = convert.lookup(name)
            for hf_name, piece in zip(
                hf_names, convert.split(layout, parameter.detach(), self.architecture), strict=True
            ):
                yield hf_name, layout, piece

    def _list_exports(self) -> list[list[tuple[str, list[int]]]]:
        """Names and shapes of the whole tensors of every stage; collective over stages."""
        listed = []
        for name, layout, piece in self._pieces():
            shape, dim = list(piece.shape), convert.shard_dim(layout)
            if layout is Layout.VOCAB:
                shape[0] = self.architecture.vocab_size
            elif dim is not None:
                shape[dim] *= parallel_state.get_tensor_model_parallel_world_size()
            listed.append((name, shape))
        return pipeline.gather(listed, self.device)

    def _export_stage(self) -> Iterator[Tensor]:
        """Whole tensors of this stage; collective over its tensor-parallel ranks."""
        for _, layout, piece in self._pieces():
            tensor = self._gather(piece, convert.shard_dim(layout))
            yield (tensor[: self.architecture.vocab_size] if layout is Layout.VOCAB else tensor).contiguous()

    @torch.no_grad()
    def _read_hf(self, model_dir: Path) -> None:
        rank, size = (
            parallel_state.get_tensor_model_parallel_rank(),
            parallel_state.get_tensor_model_parallel_world_size(),
        )
        with HfReader(model_dir) as reader:
            for name, parameter in self._parameters():
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


def _check_heads(shape: Architecture, parallel: ParallelSettings) -> None:
    """ValueError, with the mend, for attention heads that the tensor- and context-parallel ranks cannot share."""
    for heads in (shape.num_heads, shape.num_query_groups):
        if heads % parallel.tensor:
            raise ValueError(
                f"{heads} attention heads cannot be shared over {parallel.tensor} tensor-parallel ranks: "
                f"set tensor to a divisor of {math.gcd(shape.num_heads, shape.num_query_groups)}"
            )
    local = shape.num_heads // parallel.tensor
    if local % parallel.context:
        raise ValueError(
            f"{local} attention heads (of {shape.num_heads}, on each tensor-parallel rank) cannot be shared over "
            f"{parallel.context} context-parallel ranks: set context to a divisor of {local}"
        )
