"""`azr sft` from the command line with the real small model: two steps, and a folder that loads where self-play loads
it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.models import prepare
from tests.integration.azr_process import azr, check_logs
from tests.integration.random_model import TOKENIZER, write_random_model

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


def test_two_steps_on_the_real_model(tmp_path: Path) -> None:
    settings = [f"run.dir={tmp_path}", "sft.batch_size=4", "sft.epochs=0.04", "sft.validation_share=0.02"]
    ended = azr("sft", "sft-smollm2-cpu", *settings)
    assert ended.returncode == 0, ended.stderr
    folder = tmp_path / "sft-smollm2-cpu"
    assert ended.stdout.splitlines()[-1] == f"azr train smollm2-cpu model.path={folder}/hf"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert rows[-1]["validation_loss"] < rows[0]["validation_loss"]
    assert prepare(str(folder / "hf")) == folder / "hf"
    check_logs(folder / "logs", {"sft.0"})


def test_two_ranks_on_ray(tmp_path: Path) -> None:
    """Ray places the ranks; that two ranks compute what one does is a unit test's business."""
    import transformers as tf

    config = tf.AutoConfig.from_pretrained(prepare(TOKENIZER))
    config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.head_dim = 36, 48, 1, 4
    config.tie_word_embeddings = True
    write_random_model(tmp_path / "model", config)
    settings = [
        f"run.dir={tmp_path}",
        f"model.path={tmp_path / 'model'}",
        "learner.parallel.data=2",
        "sft.batch_size=32",
        "sft.epochs=0.5",
    ]
    ended = azr("sft", "sft-smollm2-cpu", *settings)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    folder = tmp_path / "sft-smollm2-cpu"
    assert ended.stdout.splitlines()[-1] == f"azr train RECIPE model.path={folder}/hf"
    check_logs(folder / "logs", {"sft.0", "learner0.0", "learner1.0"})
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 4
