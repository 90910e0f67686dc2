"""`azr sft` on a tiny model in this process: the folder it leaves, resuming, stopping, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import threading
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.cli import main
from launch.config import SftConfig, build, documented, load, to_toml
from launch.recipe import RECIPES, ConfigError
from launch.run.folder import RunFolder
from launch.run.interrupts import SAVED
from launch.sft.console import step_line
from launch.sft.run import SftRank, _read
from learner.sft.trainer import SftTrainer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a tokenizer of one token a byte."""
    import transformers as tf
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    torch.manual_seed(1)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={"<end>": 0} | {c: i for i, c in enumerate(alphabet, 1)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    config = tf.LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=257,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    path = tmp_path_factory.mktemp("model")
    tf.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tf.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>").save_pretrained(path)
    return path


@pytest.fixture
def recipe(tmp_path: Path, model: Path) -> Path:
    lines = [{"prompt": f"{i % 4} times {i} is", "response": f" {(i % 4) * i}."} for i in range(20)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    file = tmp_path / "tiny.toml"
    file.write_text(f"""
        [run]
        name = "tiny"
        dir = "{tmp_path}"
        [model]
        path = "{model}"
        dtype = "float32"
        [sft]
        data = "{tmp_path / "data.jsonl"}"
        batch_size = 4
        epochs = 2
        max_tokens = 64
        validation_share = 0.2
        validate_every = 3
        [learner]
        threads = 1
        checkpoint_every = 2
        [learner.optimizer]
        lr = 1e-2
    """)
    return file


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(next(folder.glob("*.safetensors")))


def test_a_run_and_what_it_leaves(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sft", str(recipe)]) == 0
    folder = recipe.parent / "tiny"
    printed = capsys.readouterr().out
    assert "16 examples to learn, 4 to measure" in printed
    assert printed.splitlines()[-1] == f"azr train RECIPE model.path={folder}/hf"
    rows = rows_of(folder)
    assert [row["step"] for row in rows] == list(range(9))
    assert [row["step"] for row in rows if "validation_loss" in row] == [0, 3, 6, 8]
    assert rows[-1]["validation_loss"] < rows[0]["validation_loss"] - 0.5
    assert build(tomllib.loads((folder / "config.toml").read_text()), None, SftConfig) == load(recipe, [], SftConfig)
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == ["step_00000006", "step_00000008"]
    assert (folder / "hf").resolve() == (folder / "checkpoints" / "step_00000008" / "hf").resolve()
    assert any((folder / "tensorboard").iterdir())

    assert main(["sft", str(recipe)]) == 2
    assert f"azr sft --resume {folder}" in capsys.readouterr().err


@pytest.mark.parametrize("limits", [(), ("--grace-s", "60")])
def test_a_stopped_run_goes_on_to_the_same_weights(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], limits: tuple[str, ...]
) -> None:
    assert main(["sft", str(recipe), "run.name=whole"]) == 0
    train, stop, heard = SftTrainer.train, SftRank.stop, threading.Event()

    def interrupt_at_3(trainer: SftTrainer) -> dict[str, float]:
        if trainer.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            while not heard.wait(0.05):  # signals are handled on a thread of their own
                pass
        return train(trainer)

    def stop_and_tell(rank: SftRank, why: str, save_in_s: float | None) -> None:
        stop(rank, why, save_in_s)
        heard.set()

    monkeypatch.setattr(SftTrainer, "train", interrupt_at_3)
    monkeypatch.setattr(SftRank, "stop", stop_and_tell)
    assert main(["sft", str(recipe), "run.name=parts", *limits]) == SAVED
    monkeypatch.undo()
    parts = recipe.parent / "parts"
    assert (parts / "checkpoints" / "step_00000003" / "hf").exists() == (not limits), "an export takes time"
    told = capsys.readouterr().out
    assert "stopped: interrupted" in told and f"azr sft --resume {parts}" in told
    assert [row["step"] for row in rows_of(parts)] == [0, 1, 2, 3]

    assert main(["sft", "--resume", str(parts), "sft.batch_size=8"]) == 2
    assert "another sft.batch_size" in capsys.readouterr().err
    assert main(["sft", "--resume", str(parts)]) == 0
    whole = recipe.parent / "whole"
    losses = [[row.get("loss") for row in rows_of(folder)] for folder in (whole, parts)]
    assert losses[0] == losses[1]
    one, other = tensors_of(whole / "hf"), tensors_of(parts / "hf")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_time_that_is_up_stops_a_run(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load(recipe, ["run.max_minutes=1e-9", "run.name=short"], SftConfig)
    rank = SftRank(config, RunFolder(config.folder))
    rank.run(resume=False)
    assert rank.status().stop == "run.max_minutes = 1e-09 is over"
    assert not (config.folder / "hf").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sft.data=nowhere.jsonl"], "sft.data = nowhere.jsonl is no file"),
        (["sft.max_tokens=5000"], "learner.micro_batch_tokens = 4096"),
        (["sft.epoch=2"], "Did you mean sft.epochs? `azr config docs --sft`"),
        (["learner.batch.kinds=[]"], "unknown setting learner.batch"),
        (["sft.max_tokens=3"], "longer than sft.max_tokens = 3"),
    ],
)
def test_mistakes_name_the_mend(
    recipe: Path, overrides: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sft", str(recipe), *overrides]) == 2
    assert words in capsys.readouterr().err
    assert not (recipe.parent / "tiny").exists(), "refused before anything was made"


def test_recipes_of_the_other_command_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sft", "smollm2-cpu"]) == 2
    assert "`azr train`" in capsys.readouterr().err
    assert main(["train", "sft-smollm2-cpu"]) == 2
    assert "`azr sft`" in capsys.readouterr().err
    assert main(["config", "show", "sft-smollm2-cpu"]) == 0
    assert "[sft]" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"sft\.data must be set"):
        build({"sft": {}}, None, SftConfig)


def test_every_setting_is_documented() -> None:
    assert all(text for _, text in documented(SftConfig))


@pytest.mark.parametrize("file", sorted(RECIPES.glob("sft-*.toml")), ids=lambda path: path.stem)
def test_recipes_that_ship_load(file: Path) -> None:
    config = load(file, [], SftConfig)
    assert build(tomllib.loads(to_toml(config)), None, SftConfig) == config
    assert config.run.name == file.stem


def test_data_that_ships_is_found_from_anywhere(model: Path) -> None:
    config = load("sft-smollm2-cpu", [f"model.path={model}", "sft.max_tokens=4096"], SftConfig)
    data, told = _read(config)
    assert len(data.train) + len(data.validation) == 204
    assert "skipped" not in told


def test_a_step_is_a_line() -> None:
    numbers = {
        "step": 3,
        "loss": 1.5,
        "perplexity": 4.48,
        "lr": 1e-4,
        "grad_norm": 2.0,
        "tokens_per_s": 90.0,
        "epoch": 0.5,
    }
    assert step_line(numbers, 9) == (
        "step 3/9 | loss 1.5000 (perplexity 4.48) | lr 1.00e-04 | gradient norm 2.00 | tokens/s 90 | epoch 0.50"
    )
    assert "| validation 2.0000 |" in step_line(numbers | {"validation_loss": 2.0}, 9)
