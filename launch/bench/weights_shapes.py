"""Models of one architecture in other sizes, with random weights: an engine's updates are fitted over them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file

SHAPES = ((2, 16), (48, 1), (6, 4))
"""(layers, attention heads): few large tensors, many small ones, and between."""
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "config.json")


@contextmanager
def model_of_shape(model_dir: Path, layers: int, heads: int) -> Iterator[Path]:
    """Give a folder with a model like that of `model_dir` with `layers` layers and `heads` attention heads, as wide as
    these make it, with random weights in bfloat16; it has the tokenizer of `model_dir`."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(model_dir)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    config.update(
        {
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "head_dim": head_dim,
            "hidden_size": heads * head_dim,
            "intermediate_size": 3 * heads * head_dim,
        }
    )
    if hasattr(config, "layer_types"):
        config.layer_types = None  # a list with an entry a layer
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder)
        model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
        model.save_pretrained(target)
        del model
        written = {path.name for path in target.iterdir()}
        for path in model_dir.iterdir():
            if path.is_file() and path.name not in written and not any(path.match(kind) for kind in _WEIGHTS):
                shutil.copy(path, target)
        yield target


def weights_of(folder: Path) -> list[tuple[str, torch.Tensor]]:
    """Return all tensors of a model folder, under their Hugging Face names."""
    return [item for path in sorted(folder.glob("*.safetensors")) for item in sorted(load_file(path).items())]
