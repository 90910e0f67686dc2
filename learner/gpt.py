"""Megatron-Core's GPTModel of an architecture, with this project's layer functions in it."""

from __future__ import annotations

import math
import warnings

import torch

from learner import convert, cpu
from learner.architecture import Architecture
from learner.settings import ParallelSettings

with warnings.catch_warnings():
    # Megatron-Core warns about every accelerator library that is not installed.
    warnings.simplefilter("ignore")
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
    from megatron.core.transformer.transformer_config import TransformerConfig

    from learner.attention import TreeAttention
    from learner.kernels import RmsNorm, SwiGlu


def transformer_config(shape: Architecture, dtype: torch.dtype, parallel: ParallelSettings) -> TransformerConfig:
    """Megatron-Core's configuration of the model and of its parallel layout."""
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
        tensor_model_parallel_size=parallel.tensor,
        bf16=dtype is torch.bfloat16,
        params_dtype=dtype,
        # Weights come from a folder.
        perform_initialization=False,
        use_cpu_initialization=cpu.device().type == "cpu",
        # The caller's loss is normalised over the global batch already: with this set, gradients are summed over
        # data-parallel ranks; without, averaged.
        calculate_per_token_loss=True,
    )


def build_gpt(shape: Architecture, config: TransformerConfig) -> GPTModel:
    """The model of this rank, its weights not set. Within `cpu.megatron_calls()`."""
    layer = get_gpt_layer_local_spec(qk_layernorm=shape.qk_norm, normalization="RMSNorm")
    parts = layer.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = RmsNorm
    parts.mlp.submodules.activation_func = SwiGlu
    attention = parts.self_attention.submodules
    attention.core_attention = TreeAttention
    if shape.qk_norm:
        attention.q_layernorm = attention.k_layernorm = RmsNorm
    tensor = config.tensor_model_parallel_size
    gpt = GPTModel(
        config,
        TransformerBlockSubmodules(layer_specs=[layer] * config.num_layers, layer_norm=RmsNorm),
        vocab_size=math.ceil(shape.vocab_size / tensor) * tensor,
        max_sequence_length=0,
        position_embedding_type="none",
        share_embeddings_and_output_weights=shape.tied,
    )
    for name, parameter in gpt.named_parameters():
        # The gradient's norm counts what is whole on every rank once. Initialisation would say which is which.
        parameter.tensor_model_parallel = convert.shard_dim(convert.lookup(name)[0]) is not None
    return gpt
