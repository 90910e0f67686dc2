"""vLLM's loader of model folders, restricted to the weight files that the learner reads.

vLLM's own loader takes every safetensors file of a folder without an index.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from learner.model.weight_files import INDEX_FILE, weight_files

LOAD_FORMAT = "azr"


class FolderLoader(DefaultModelLoader):  # type: ignore[misc]
    """vLLM's loader, restricted to `learner.model.weight_files`."""

    def _prepare_weights(self, model_name_or_path: str, *args: Any) -> tuple[str, list[str], bool, str]:
        files = [str(path) for path in weight_files(Path(model_name_or_path))]
        return model_name_or_path, files, True, INDEX_FILE
