"""Configurations that can never work with their model are refused before anything starts, by the setting's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launch import model_check
from launch.config import Config, load
from launch.model_check import cache_bytes_per_token, check_model, num_parameters
from launch.recipe import ConfigError
from learner.model.architecture import Architecture

SMOLLM2: dict[str, Any] = {
    "model_type": "llama", "num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192, "tie_word_embeddings": True, "rope_theta": 100000.0,
}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
    return tmp_path


def recipe(*overrides: str) -> Config:
    return load("smollm2-cpu", list(overrides))


def test_the_shipped_recipe_can_work(model: Path) -> None:
    check_model(recipe(), model, on_gpus=False)
    assert num_parameters(Architecture.read(model)) == pytest.approx(134_515_008, rel=0.001)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["engine.kv_cache_gib=0.0005"], "engine.kv_cache_gib = 0.0005 is too small .*max_model_len = 640 tokens"),
        (["engine.kv_cache_gib=100000"], "this machine has .* engine.kv_cache_gib = 100000"),
        (["engine.max_model_len=10000"], "engine.max_model_len = 10000 is more than the 8192 positions"),
        (["engine.tensor_parallel=2"], "engine.tensor_parallel = 2 does not divide the model's 9 attention heads"),
        (["engine.tensor_parallel=9"], "engine.tensor_parallel = 9 does not divide the model's 1536 feed-forward"),
        (["learner.parallel.tensor=9"], "learner.parallel.tensor = 9 does not divide the model's 3 key/value heads"),
        (["learner.parallel.context=2"], "tensor x context = 2 does not divide"),
    ],
)  # fmt: skip
def test_what_can_never_work_is_refused(model: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_model(recipe(*overrides), model, on_gpus=False)


def test_workers_share_the_key_value_heads_or_repeat_them(model: Path) -> None:
    (model / "config.json").write_text(json.dumps(SMOLLM2 | {"num_attention_heads": 12, "num_key_value_heads": 2}))
    architecture = Architecture.read(model)
    one = cache_bytes_per_token(recipe(), architecture)
    for workers, cache in ((2, one), (4, 2 * one), (12, 6 * one)):
        config = recipe(f"engine.tensor_parallel={workers}")
        check_model(config, model, on_gpus=False)
        assert cache_bytes_per_token(config, architecture) == cache
    with pytest.raises(ConfigError, match="= 3 neither divides the model's 2 key/value heads nor is a multiple"):
        check_model(recipe("engine.tensor_parallel=3"), model, on_gpus=False)


def test_workers_share_the_columns_of_the_layers_that_a_model_has(model: Path) -> None:
    """Where all layers have experts, the plain intermediate size is that of none."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 100, "intermediate_size": 1001}
    mixed = SMOLLM2 | experts | {"model_type": "qwen3_moe", "num_attention_heads": 8, "num_key_value_heads": 8}
    (model / "config.json").write_text(json.dumps(mixed))
    check_model(recipe("engine.tensor_parallel=4"), model, on_gpus=True)
    with pytest.raises(ConfigError, match="= 8 does not divide the model's 100 feed-forward columns"):
        check_model(recipe("engine.tensor_parallel=8"), model, on_gpus=True)
    (model / "config.json").write_text(json.dumps(mixed | {"mlp_only_layers": [0]}))
    with pytest.raises(ConfigError, match="= 4 does not divide the model's 1001 feed-forward columns"):
        check_model(recipe("engine.tensor_parallel=4"), model, on_gpus=True)


def test_sparse_updates_need_memory_for_copies(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = num_parameters(Architecture.read(model))
    settings = ("actors.num_actors=1", "model.dtype=float32", "engine.dtype=float32", "engine.kv_cache_gib=1")
    monkeypatch.setattr(model_check, "total_memory", lambda: (16 + 4) * count + 2**30)
    check_model(recipe(*settings), model, on_gpus=False)
    monkeypatch.setattr(model_check, "total_memory", lambda: (16 + 4 + 4 + 4) * count + 2**30)
    check_model(recipe(*settings, "learner.weights_delta=auto"), model, on_gpus=False)
    monkeypatch.setattr(model_check, "total_memory", lambda: (16 + 4 + 4 + 4) * count + 2**30 - 1)
    with pytest.raises(ConfigError, match="the run needs more: .* learner.weights_delta"):
        check_model(recipe(*settings, "learner.weights_delta=auto"), model, on_gpus=False)


def test_the_cache_must_hold_one_sequence_to_the_byte(model: Path) -> None:
    needed = 640 * cache_bytes_per_token(recipe(), Architecture.read(model))  # 20 blocks of 32 tokens
    for spare, fits in ((0, True), (-1, False)):
        config = recipe(f"engine.kv_cache_gib={(needed + spare) / 2**30!r}")
        if fits:
            check_model(config, model, on_gpus=False)
        else:
            with pytest.raises(ConfigError, match="kv_cache_gib"):
                check_model(config, model, on_gpus=False)
        check_model(config, model, on_gpus=True)  # there the cache has another setting


def test_all_faults_are_named_at_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    monkeypatch.setattr(model_check, "total_memory", lambda: 1 << 20)
    with pytest.raises(ConfigError) as found:
        check_model(recipe("engine.max_model_len=10000"), model, on_gpus=False)
    assert [words in str(found.value) for words in ("lacks one.safetensors", "max_model_len", "of memory")] == [
        True
    ] * 3


@pytest.mark.parametrize("text", ["{", "{}", '{"model_type": "gpt2"}'])
def test_a_model_that_cannot_be_read_is_named(model: Path, text: str) -> None:
    (model / "config.json").write_text(text)
    with pytest.raises(ConfigError, match="model.path = smollm2-135m-instruct"):
        check_model(recipe(), model)
