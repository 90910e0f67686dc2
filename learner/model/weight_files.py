"""The files of a Hugging Face folder that hold the weights."""

from __future__ import annotations

import json
from pathlib import Path

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def weight_files(model_dir: Path) -> list[Path]:
    """Return the safetensors files that transformers reads: the shards that the index names, or else the single file.

    Other safetensors files in the folder are never read. Raises FileNotFoundError without weights or with a shard
    missing, ValueError for an index that cannot be read, or that names other files while there is a single file, too:
    transformers would read that, vLLM the others.
    """
    single, index = model_dir / SINGLE_FILE, model_dir / INDEX_FILE
    if not index.is_file():
        if single.is_file():
            return [single]
        others = ", ".join(sorted(path.name for path in model_dir.glob("*.safetensors")))
        found = f"; it has {others}, which no index names" if others else ""
        raise FileNotFoundError(f"{model_dir} has neither {INDEX_FILE} nor {SINGLE_FILE}{found}")
    names = _shards(index)
    if single.is_file() and names != [SINGLE_FILE]:
        raise ValueError(
            f"{model_dir} has {SINGLE_FILE} and an index, {INDEX_FILE}, that names other files "
            f"({', '.join(names)}): remove the one that is not meant"
        )
    missing = [name for name in names if not (model_dir / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{model_dir} lacks {', '.join(missing)}, which {INDEX_FILE} names")
    return [model_dir / name for name in names]


def _shards(index: Path) -> list[str]:
    """Return the names of the files in an index, sorted."""
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
        outside = [name for name in names if Path(name).name != name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of safetensors files: {type(error).__name__}: {error}") from error
    if outside or not names:
        raise ValueError(f"{index} names {outside[0] if outside else 'no files'}: it has to name files beside it")
    return sorted(names)
