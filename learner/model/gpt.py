"""Builds Megatron-Core's GPTModel for an architecture, with this project's layer functions."""

from __future__ import annotations

import math
from typing import Any

import torch

from learner.device import device
from learner.model import convert
from learner.model.architecture import Architecture
from learner.model.attention import TreeAttention
from learner.model.gpt_config import GptConfig
from learner.model.kernels import RmsNorm, SwiGlu
from learner.model.megatron import (
    GPTModel,
    ModuleSpec,
    TransformerBlockSubmodules,
    get_gpt_layer_local_spec,
    get_num_layers_to_build,
    get_transformer_layer_offset,
    parallel_state,
)
from learner.model.moe import Mixture
from learner.model.pipeline_parallel import split_layers
from learner.model.recompute import ColumnParallel, RecomputedLayer, RowParallel
from learner.settings import KernelSettings, ParallelSettings


def gpt_config(
    shape: Architecture, dtype: torch.dtype, parallel: ParallelSettings, kernels: KernelSettings
) -> GptConfig:
    """Return Megatron-Core's configuration of the model `shape` and of its parallel layout."""
    experts = shape.experts
    return GptConfig(
        compile_kernels=compiles(kernels),
        recompute=kernels.recompute,
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
        tensor_model_parallel_size=parallel.tensor,
        context_parallel_size=parallel.context,
        pipeline_model_parallel_size=parallel.pipeline,
        pipeline_model_parallel_layout=split_layers(shape.num_layers, parallel.pipeline)
        if parallel.pipeline > 1
        else None,
        pipeline_dtype=dtype,
        # Shapes travel between stages ahead of tensors; Megatron-Core wants this dispatcher with it, experts or not.
        variable_seq_lengths=True,
        moe_token_dispatcher_type="alltoall",
        # A wait for the device after each message, for old versions of torch.
        batch_p2p_sync=False,
        bf16=dtype is torch.bfloat16,
        params_dtype=dtype,
        num_moe_experts=experts.number if experts else None,
        moe_ffn_hidden_size=experts.hidden_size if experts else None,
        moe_router_topk=experts.per_token if experts else 2,
        # Megatron-Core's name for weights that are not divided by their sum; see `Router`.
        moe_router_pre_softmax=experts is not None and not experts.normalized,
        # Weights come from a folder.
        perform_initialization=False,
        use_cpu_initialization=device().type == "cpu",
        # The caller's loss is normalised over the global batch already: with this set, gradients are summed over
        # data-parallel ranks; without, averaged.
        calculate_per_token_loss=True,
    )


def compiles(kernels: KernelSettings) -> bool:
    """Whether this process compiles its layer functions: on a GPU, unless the settings say otherwise."""
    return kernels.compile and device().type == "cuda"


def build_gpt(shape: Architecture, config: GptConfig) -> GPTModel:
    """Build this rank's part of the model, with weights not set. Call within `megatron_calls()`."""
    first, count = get_transformer_layer_offset(config), get_num_layers_to_build(config)
    sparse = shape.experts.layers if shape.experts else (False,) * shape.num_layers
    layers = [_layer(shape, mixture, config.recompute) for mixture in sparse[first : first + count]]
    tensor = config.tensor_model_parallel_size
    gpt = GPTModel(
        config,
        TransformerBlockSubmodules(layer_specs=layers, layer_norm=RmsNorm),
        vocab_size=math.ceil(shape.vocab_size / tensor) * tensor,
        max_sequence_length=0,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        position_embedding_type="none",
        share_embeddings_and_output_weights=shape.tied,
    )
    for name, parameter in gpt.named_parameters():
        # The gradient's norm counts what is whole on every rank once. Initialisation would say which is which.
        parameter.tensor_model_parallel = convert.shard_dim(convert.lookup(name)[0]) is not None
    return gpt


def _layer(shape: Architecture, mixture: bool, recompute: str) -> ModuleSpec:
    """The modules of a transformer layer, with a mixture of experts or a plain MLP."""
    layer = get_gpt_layer_local_spec(qk_layernorm=shape.qk_norm, normalization="RMSNorm")
    if recompute == "full":
        layer.module = RecomputedLayer
    parts = layer.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = RmsNorm
    if mixture:
        parts.mlp = Mixture
    else:
        mlp = parts.mlp.submodules
        mlp.activation_func = SwiGlu
        mlp.linear_fc1 = BiasedColumnParallel if shape.mlp_bias else ColumnParallel
        mlp.linear_fc2 = BiasedRowParallel if shape.mlp_bias else RowParallel
    attention = parts.self_attention.submodules
    attention.core_attention = TreeAttention
    attention.linear_qkv = ColumnParallel
    if shape.attention_out_bias:
        attention.linear_proj = BiasedRowParallel
    if shape.qk_norm:
        attention.q_layernorm = attention.k_layernorm = RmsNorm
    return layer


# Megatron-Core has one switch for the biases of the attention's output and of the MLP; models have them apart.


class BiasedColumnParallel(ColumnParallel):
    """A column-parallel linear layer with a bias, whatever the configuration says."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"bias": True})


class BiasedRowParallel(RowParallel):
    """A row-parallel linear layer with a bias, whatever the configuration says."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"bias": True})
