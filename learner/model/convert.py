"""Names and layouts of parameters: converts between Hugging Face's and Megatron-Core's, in both directions.

Megatron-Core fuses query, key and value (interleaved by query group) and the two halves of the gated MLP, and splits
them over tensor-parallel ranks; Hugging Face does neither. `TABLE` is the whole correspondence for Llama, Qwen2, Qwen3
and Qwen3-MoE models. A *piece* is one Hugging Face tensor's part of one Megatron-Core parameter on one rank.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
from enum import Enum, auto
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from learner.model.architecture import Architecture
from learner.model.weight_files import INDEX_FILE, weight_files

FILE_BYTES = 4 << 30
"""Maximum bytes of weights in one file of a written folder."""


class Layout(Enum):
    """The way a Megatron-Core parameter is composed of Hugging Face tensors."""

    WHOLE = auto()
    """One tensor, the same on every rank."""
    COLUMNS = auto()
    """One tensor, columns split over ranks."""
    VOCAB = auto()
    """One tensor, rows padded to a multiple of the tensor-parallel size, then split over ranks."""
    QKV = auto()
    """Three tensors; each rank has whole query groups, and in each group its queries, its key, its value."""
    GATE_UP = auto()
    """Two tensors; each rank has its rows of the first, then its rows of the second."""


_ATTENTION = "model.layers.{}.self_attn."
_MLP = "model.layers.{}.mlp."
_EXPERT = _MLP + "experts.{}."


def _names(prefix: str, suffix: str, *projections: str) -> tuple[str, ...]:
    return tuple(f"{prefix}{projection}_proj.{suffix}" for projection in projections)


TABLE: dict[str, tuple[Layout, tuple[str, ...]]] = {
    "embedding.word_embeddings.weight": (Layout.VOCAB, ("model.embed_tokens.weight",)),
    "decoder.layers.{}.input_layernorm.weight": (Layout.WHOLE, ("model.layers.{}.input_layernorm.weight",)),
    "decoder.layers.{}.self_attention.linear_qkv.weight": (Layout.QKV, _names(_ATTENTION, "weight", "q", "k", "v")),
    "decoder.layers.{}.self_attention.linear_qkv.bias": (Layout.QKV, _names(_ATTENTION, "bias", "q", "k", "v")),
    "decoder.layers.{}.self_attention.q_layernorm.weight": (Layout.WHOLE, (_ATTENTION + "q_norm.weight",)),
    "decoder.layers.{}.self_attention.k_layernorm.weight": (Layout.WHOLE, (_ATTENTION + "k_norm.weight",)),
    "decoder.layers.{}.self_attention.linear_proj.weight": (Layout.COLUMNS, _names(_ATTENTION, "weight", "o")),
    "decoder.layers.{}.self_attention.linear_proj.bias": (Layout.WHOLE, _names(_ATTENTION, "bias", "o")),
    "decoder.layers.{}.pre_mlp_layernorm.weight": (Layout.WHOLE, ("model.layers.{}.post_attention_layernorm.weight",)),
    "decoder.layers.{}.mlp.linear_fc1.weight": (Layout.GATE_UP, _names(_MLP, "weight", "gate", "up")),
    "decoder.layers.{}.mlp.linear_fc1.bias": (Layout.GATE_UP, _names(_MLP, "bias", "gate", "up")),
    "decoder.layers.{}.mlp.linear_fc2.weight": (Layout.COLUMNS, _names(_MLP, "weight", "down")),
    "decoder.layers.{}.mlp.linear_fc2.bias": (Layout.WHOLE, _names(_MLP, "bias", "down")),
    "decoder.layers.{}.mlp.router.weight": (Layout.WHOLE, (_MLP + "gate.weight",)),
    "decoder.layers.{}.mlp.experts.local_experts.{}.linear_fc1.weight": (
        Layout.GATE_UP,
        _names(_EXPERT, "weight", "gate", "up"),
    ),
    "decoder.layers.{}.mlp.experts.local_experts.{}.linear_fc2.weight": (
        Layout.COLUMNS,
        _names(_EXPERT, "weight", "down"),
    ),
    "decoder.final_layernorm.weight": (Layout.WHOLE, ("model.norm.weight",)),
    "output_layer.weight": (Layout.VOCAB, ("lm_head.weight",)),
}
"""Megatron-Core's name, with {} for the number of a layer and of an expert -> layout and Hugging Face's names."""


def lookup(name: str) -> tuple[Layout, tuple[str, ...]]:
    """Return layout and Hugging Face names of the Megatron-Core parameter `name`. Raises KeyError for an unknown
    one."""
    numbers = re.findall(r"(?<=\.)\d+(?=\.)", name)
    layout, hf_names = TABLE[re.sub(r"(?<=\.)\d+(?=\.)", "{}", name)]
    return layout, tuple(hf_name.format(*numbers) for hf_name in hf_names)


def shard_dim(layout: Layout) -> int | None:
    """Return the dimension along which a piece is split over ranks; None for a whole one."""
    return {Layout.WHOLE: None, Layout.COLUMNS: 1}.get(layout, 0)


def split(layout: Layout, parameter: Tensor, architecture: Architecture) -> list[Tensor]:
    """Split a rank's `parameter` into pieces, one for each of its Hugging Face names."""
    if layout is Layout.QKV:
        queries, dim = architecture.num_heads // architecture.num_query_groups, architecture.head_dim
        groups = parameter.unflatten(0, (-1, queries + 2, dim))
        pieces = (groups[:, :queries], groups[:, queries : queries + 1], groups[:, queries + 1 :])
        return [piece.flatten(0, 2) for piece in pieces]
    if layout is Layout.GATE_UP:
        return list(parameter.chunk(2))
    return [parameter]


def join(layout: Layout, pieces: list[Tensor], architecture: Architecture) -> Tensor:
    """Join pieces into a rank's parameter: the inverse of `split`."""
    if layout is Layout.QKV:
        queries, dim = architecture.num_heads // architecture.num_query_groups, architecture.head_dim
        groups = [p.unflatten(0, (-1, n, dim)) for p, n in zip(pieces, (queries, 1, 1), strict=True)]
        return torch.cat(groups, dim=1).flatten(0, 2)
    return torch.cat(pieces) if layout is Layout.GATE_UP else pieces[0]


class HfReader(contextlib.ExitStack):
    """Reads pieces of the tensors in a Hugging Face folder, from its `weight_files`, whose errors it raises; ValueError
    for a tensor that is in two of them."""

    def __init__(self, model_dir: Path) -> None:
        super().__init__()
        self._files: dict[str, Any] = {}
        paths: dict[str, Path] = {}
        for path in weight_files(model_dir):
            file = self.enter_context(safe_open(path, framework="pt"))
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                if name in paths:
                    raise ValueError(f"{model_dir}: the tensor {name} is in {paths[name].name} and in {path.name}")
                self._files[name], paths[name] = file, path

    @property
    def names(self) -> list[str]:
        """Names of all tensors in the folder."""
        return list(self._files)

    def read(self, name: str, layout: Layout, rank: int, size: int) -> Tensor:
        """Read the piece of tensor `name` for tensor-parallel rank `rank` of `size`. Raises ValueError if the folder
        lacks the tensor."""
        if name not in self._files:
            raise ValueError(f"the model folder lacks the tensor {name}")
        tensor = self._files[name].get_slice(name)
        dim = shard_dim(layout)
        part = slice(None)
        if dim is not None:
            length = math.ceil(tensor.get_shape()[dim] / size)
            part = slice(rank * length, (rank + 1) * length)
        piece: Tensor = tensor[:, part] if dim == 1 else tensor[part]
        return piece


class HfWriter:
    """Writes a Hugging Face folder tensor by tensor; holds at most one file's worth in memory. Weights that are in the
    folder already are removed first."""

    def __init__(self, model_dir: Path) -> None:
        self._dir = model_dir
        self._dir.mkdir(parents=True, exist_ok=True)
        for stale in (self._dir / INDEX_FILE, *self._dir.glob("model*.safetensors")):
            stale.unlink(missing_ok=True)
        self._held: dict[str, Tensor] = {}
        self._where: dict[str, str] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        """Add the next tensor."""
        self._held[name] = tensor.detach().cpu().contiguous()
        if sum(held.nbytes for held in self._held.values()) > FILE_BYTES:
            self._flush()

    def finish(self, source_dir: Path, dtype: torch.dtype) -> None:
        """Write the rest. Copies tokenizer files and configuration from `source_dir`, and sets the configuration's
        dtype to `dtype`."""
        self._flush()
        index = {"metadata": {}, "weight_map": self._where}
        (self._dir / INDEX_FILE).write_text(json.dumps(index, indent=2))
        for file in source_dir.iterdir():
            if file.suffix in (".json", ".jinja", ".txt", ".model") and not file.name.endswith(".index.json"):
                shutil.copyfile(file, self._dir / file.name)
        config = json.loads((source_dir / "config.json").read_text())
        config.pop("torch_dtype", None)
        config["dtype"] = str(dtype).removeprefix("torch.")
        (self._dir / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    def _flush(self) -> None:
        file = f"model-{len(set(self._where.values())) + 1:05d}.safetensors"
        save_file(self._held, self._dir / file, metadata={"format": "pt"})
        self._where.update(dict.fromkeys(self._held, file))
        self._held = {}
