"""The weights of a Hugging Face folder are those that transformers reads from it, whatever else lies there."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from learner.model import convert
from learner.model.convert import HfReader, HfWriter, Layout
from learner.model.weight_files import INDEX_FILE, SINGLE_FILE

CONFIG = tf.LlamaConfig(
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    vocab_size=11,
    tie_word_embeddings=False,
)
WEIGHTS: dict[str, Tensor] = {
    name: torch.randn(tensor.shape, generator=torch.Generator().manual_seed(index))
    for index, (name, tensor) in enumerate(tf.LlamaForCausalLM(CONFIG).state_dict().items())
}
NAMES = sorted(WEIGHTS)
STRAYS = ("a-old.safetensors", "model-00007-of-00009.safetensors", "optimizer.safetensors", "zzz.safetensors")


def write(folder: Path, file: str, weights: dict[str, Tensor]) -> None:
    save_file(weights, folder / file, metadata={"format": "pt"})


def write_shards(folder: Path, owner: list[int]) -> dict[str, str]:
    """Write tensor i into shard `owner[i]`, and the index. Returns the weight map."""
    where = {name: f"model-{shard + 1:05d}-of-00003.safetensors" for name, shard in zip(NAMES, owner, strict=True)}
    for file in set(where.values()):
        write(folder, file, {name: WEIGHTS[name] for name in NAMES if where[name] == file})
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return where


def read(folder: Path) -> dict[str, Tensor]:
    with HfReader(folder) as reader:
        return {name: reader.read(name, Layout.WHOLE, 0, 1) for name in reader.names}


def transformers_reads(folder: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = tf.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    return state


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


owners = st.lists(st.integers(0, 2), min_size=len(NAMES), max_size=len(NAMES))


@given(owner=st.none() | owners, strays=st.sets(st.sampled_from(STRAYS)))
def test_what_is_read_is_what_transformers_reads(owner: list[int] | None, strays: set[str]) -> None:
    """From one file or from shards with an index; other files have tensors of the same names."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        CONFIG.save_pretrained(folder)
        for stray in strays:
            write(folder, stray, {name: torch.zeros_like(weight) for name, weight in WEIGHTS.items()})
        if owner is None:
            write(folder, SINGLE_FILE, WEIGHTS)
        else:
            write_shards(folder, owner)
        found = read(folder)
        assert_equal(found, WEIGHTS)
        assert_equal(found, transformers_reads(folder))


@given(owner=owners, data=st.data())
def test_what_is_ambiguous_or_incomplete_is_refused_by_its_files(owner: list[int], data: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = sorted(set(write_shards(folder, owner).values()))
        fault = data.draw(st.sampled_from(("a shard is missing", "no index", "two sources", "twice")))
        named = [shards[0]]
        match fault:
            case "a shard is missing":
                (folder / shards[0]).unlink()
            case "no index":
                (folder / INDEX_FILE).unlink()
            case "two sources":
                write(folder, SINGLE_FILE, WEIGHTS)
                named.append(SINGLE_FILE)
            case "twice" if len(shards) > 1:
                write(folder, shards[0], WEIGHTS)
                named.append(shards[1])
            case _:
                return
        with pytest.raises((FileNotFoundError, ValueError)) as caught:
            read(folder)
        assert all(file in str(caught.value) for file in named), str(caught.value)


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../model.safetensors"}}', "[1]"]
)
def test_an_index_that_cannot_be_meant_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX_FILE).write_text(text)
    with pytest.raises(ValueError, match=INDEX_FILE):
        read(tmp_path)


def test_an_index_of_the_single_file_is_not_ambiguous(tmp_path: Path) -> None:
    write(tmp_path, SINGLE_FILE, WEIGHTS)
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": dict.fromkeys(NAMES, SINGLE_FILE)}))
    assert_equal(read(tmp_path), WEIGHTS)


def test_writing_leaves_nothing_of_the_weights_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    CONFIG.save_pretrained(source)
    target.mkdir()
    write_shards(target, [index % 3 for index in range(len(NAMES))])
    write(target, SINGLE_FILE, WEIGHTS)
    for file_bytes in (100, 1 << 20):  # in many files, then in one
        monkeypatch.setattr(convert, "FILE_BYTES", file_bytes)
        writer = HfWriter(target)
        for name, weight in WEIGHTS.items():
            writer.add(name, weight + 1)
        writer.finish(source, torch.float32)
        assert_equal(read(target), {name: weight + 1 for name, weight in WEIGHTS.items()})
        assert_equal(read(target), transformers_reads(target))
    assert [path.name for path in target.glob("*.safetensors")] == ["model-00001.safetensors"]
