"""Random models that engines and the learner can load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from launch.models import prepare

TOKENIZER = "smollm2-135m-instruct"


def write_random_model(folder: Path, config: Any) -> Path:
    """Write a random model of transformers' `config`, always the same, with the tokenizer of SmolLM2."""
    import transformers as tf

    torch.manual_seed(1)
    tf.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tf.AutoTokenizer.from_pretrained(prepare(TOKENIZER)).save_pretrained(folder)
    return folder
