"""The learner's benchmark on a tiny model: its keys, what it counts, and its formula against torch's own count."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launch.bench import learner, learner_gpu, learner_shapes, learner_side
from launch.cli import main
from learner.batching.packing import pack_ranks
from learner.model.architecture import Architecture
from learner.model.rope import Rope

SHAPE_64 = {
    "num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 96, "num_heads": 4, "num_query_groups": 2, "head_dim": 16,
    "vocab_size": 1000, "norm_eps": 1e-6, "rope": Rope(), "qkv_bias": False, "attention_out_bias": False,
    "mlp_bias": False, "qk_norm": False, "tied": True, "experts": None,
}  # fmt: skip
SHAPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 131, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    import transformers as tf

    torch.manual_seed(0)
    target = tmp_path_factory.mktemp("tiny")
    tf.LlamaForCausalLM(tf.LlamaConfig(**SHAPE, tie_word_embeddings=True)).to(torch.bfloat16).save_pretrained(target)
    (target / "tokenizer.json").write_text("{}")  # a model's folder has one; nothing here reads it
    return target


def write_batch(path: Path) -> Path:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 131, size).tolist() for size in (20, 30)]
    lines = [[prompt, rng.integers(0, 131, size).tolist()] for prompt in prompts for size in (5, 9, 1)]
    text = "\n".join(map(json.dumps, [{"format": "azr-batch-1"}, *lines]))
    path.write_bytes(gzip.compress(text.encode()))
    return path


@pytest.mark.slow
def test_every_ratio_is_measured_and_both_sides_have_one_loss(folder: Path, tmp_path: Path) -> None:
    options = learner.Options(
        runs=1,
        threads=1,
        model=str(folder),
        token_budget=64,
        batch=write_batch(tmp_path / "batch.jsonl.gz"),
        layer_rows=64,
    )
    found = learner.run(options).to_json()
    assert set(found["ratios"]) == {
        "tokens_over_transformers", "rows_over_transformers", "memory_over_transformers", "layers_share_of_peak",
        "layers_share_of_own_shapes", "padding_share", "shared_prompt_compute",
    }  # fmt: skip
    assert set(found["goals"]) == set(learner.GOALS)
    assert all(ratio["median"] >= 0 for ratio in found["ratios"].values())
    assert 0 < found["ratios"]["layers_share_of_peak"]["median"] <= 1
    # 50 prompt tokens once, and of 30 response tokens all but the last of each of six.
    assert found["ratios"]["shared_prompt_compute"]["median"] == pytest.approx((50 + 24) / (50 + 30), rel=1e-4)
    assert [row["unit"] for row in found["rows"]] == ["tokens", "tokens"]
    losses = [float(word.rstrip(",")) for word in found["notes"]["loss"].split() if word[0].isdigit()]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


def test_the_layers_operations_are_those_that_torch_counts(folder: Path) -> None:
    import torch
    import transformers as tf
    from torch.utils.flop_counter import FlopCounterMode

    model = tf.LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    rows = 24
    embedded = torch.randn(1, rows, SHAPE["hidden_size"], requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state.sum().backward()
    ours = learner_side.layer_flops(Architecture.read(folder), rows, rows * rows)  # eager attention computes every pair
    rotary = counter.get_total_flops() - ours  # angles of the rotary embedding, by a product of one inner element
    assert 0 <= rotary <= 2 * rows * SHAPE["hidden_size"]


def test_pairs_are_those_of_the_rows_alone() -> None:
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, 9, size) for size in (7, 4)]
    batch = [(prompt, rng.integers(0, 9, size)) for prompt in prompts for size in (5, 2, 1)]
    (micros,) = pack_ranks(batch, 1000, 1)
    # A row sees all positions up to its own.
    expected = sum(int(position) + 1 for micro in micros for position in micro.position_ids)
    assert sum(map(learner_side.num_pairs, micros)) == expected


def test_the_peers_micro_batches_hold_everything_once_within_the_budget() -> None:
    batch = learner_side.load_batch()
    found = learner_side.padded_batches(batch, 4096)
    assert sorted(index for indices in found for index in indices) == list(range(len(batch)))
    lengths = [len(prompt) + len(response) for prompt, response in batch]
    widths = [max(lengths[index] for index in indices) * len(indices) for indices in found]
    assert max(widths) <= 4096
    assert sum(lengths) / sum(widths) > 0.8, "sorted by length, little is padding"


def test_the_shipped_batch_packs_as_the_goals_say(folder: Path) -> None:
    batch = learner_side.load_batch()
    assert len(batch) > 100
    cost = Architecture.read(folder).cost
    for num_ranks in learner.RANKS:
        assert learner.padding_share(pack_ranks(batch, 4096, num_ranks, cost), cost) <= 0.02


def test_what_is_no_batch_or_no_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"format": "other"}\n'))
    with pytest.raises(ValueError, match="no recorded batch"):
        learner_side.load_batch(path)
    for arguments, said in ((["--model", "nothing"], "neither"), (["--json", str(tmp_path / "a" / "b")], "no folder")):
        assert main(["bench", "learner", *arguments]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("mix", sorted(learner_shapes.MIXES))
def test_a_step_on_a_gpu_is_two_micro_batches_that_are_nearly_full(mix: str) -> None:
    rows, shape = learner_gpu.ROWS[True], Architecture(**SHAPE_64)
    batch = learner_gpu._batch(learner_gpu.Part("1.5b", int(learner_gpu.BATCH * rows), rows, mix), shape)
    assert 0.4 * 8192 < max(len(prompt) + len(response) for prompt, response in batch) <= 8192 or mix != "long"
    (micros,) = pack_ranks(batch, rows, 1, shape.cost)
    computed = [micro.num_tokens for micro in micros]
    assert len(computed) == 2 and min(computed) > 0.75 * rows and max(computed) <= rows
    pairs = sum(map(learner_side.num_pairs, micros))
    layers = learner_side.layer_flops(shape, sum(computed), pairs)
    targets = sum(len(response) for _, response in batch)
    assert learner_shapes.step_flops(shape, micros) == layers + 6 * 1000 * 64 * targets


def test_a_micro_batch_of_the_peer_is_padded_or_packed_and_its_loss_is_ours(folder: Path, tmp_path: Path) -> None:
    batch = learner_side.load_batch(write_batch(tmp_path / "batch.jsonl.gz"))
    ours = learner_side.Ours(folder)
    ours.take(batch, 64)
    loss = ours.step()
    for packed, rows in ((False, 3 * 39 + 3 * 29), (True, sum(len(p) + len(r) for p, r in batch))):
        peer = learner_side.Transformers(folder)
        peer.take(batch, 120, packed)
        assert peer.rows == rows
        assert peer.step() == pytest.approx(loss, rel=5e-3)


def test_a_devices_peak_is_found_by_its_name() -> None:
    names = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA T4": None}
    assert {name: learner_shapes.peak_flops(name) for name in names} == names


def test_memory_falls_with_recomputation_and_grows_with_rows_alone() -> None:
    shape = Architecture(**SHAPE_64)
    bytes_by_level = [learner_shapes.step_bytes(shape, 4096, level) for level in learner_gpu.RECOMPUTE]
    assert bytes_by_level == sorted(bytes_by_level, reverse=True)
    growth = [learner_shapes.step_bytes(shape, rows, "none") for rows in (1000, 2000, 3000)]
    assert growth[1] - growth[0] == growth[2] - growth[1]


BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "vllm", "simpy"):
            raise ImportError(f"{name} is not on a machine that has what training needs alone")

sys.meta_path.insert(0, Blocked())
import torch
torch.set_num_threads(1)
from launch.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_gpu_suite_writes_what_it_has_before_each_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process that is stopped in a later part has lost no earlier one, and a side that breaks stops no other."""
    file, seen = tmp_path / "learner.json", list[dict[str, Any]]()

    class Measured:
        def __init__(self, side: str) -> None:
            self.side = side

        def measure(self, part: learner_gpu.Part, runs: int) -> list[learner_gpu.Found]:
            seen.append(json.loads(file.read_text()))
            if self.side == "transformers":
                raise RuntimeError("no memory")
            return [learner_gpu.Found(part, self.side, 100, 200, [1.0] * runs, 1 << 30, flops=10**9)]

    monkeypatch.setattr(learner_gpu, "Azr", lambda folder: Measured("azr"))
    monkeypatch.setattr(learner_gpu, "Peer", lambda folder: Measured("transformers"))
    monkeypatch.setattr(learner_shapes.Shape, "write", lambda self, folder, device: folder.mkdir())
    monkeypatch.setattr(learner_gpu, "measured_peak", lambda size: 1e12)
    report = learner_gpu.run(True, 2, 100.0, file)
    assert [list(one["ratios"]) for one in seen] == [[], *[["mfu_1_5b"]] * 2, ["mfu_1_5b", "mfu_7b_slice"]]
    assert [len(one["tables"][0]["rows"]) for one in seen] == [0, 1, 1, 2]
    assert all("unfinished" in one["notes"] and one["failures"] for one in seen)
    assert "unfinished" not in report.notes and report.notes["transformers, 1.5b"] == "RuntimeError: no memory"
    assert len(report.tables) == 1 and report.ratios["mfu_1_5b"].values == (1e-3, 1e-3)
    (missing,) = report.failures
    assert missing.startswith("not measured: rows_over_transformers, ")


@pytest.mark.slow
def test_the_gpu_suite_runs_on_tiny_shapes_without_an_engine_installed(tmp_path: Path) -> None:
    found = tmp_path / "learner.json"
    command = ["bench", "learner", "--suite", "tiny", "--runs", "1", "--seconds", "400", "--json", str(found)]
    done = subprocess.run([sys.executable, "-c", BLOCKED, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads(found.read_text())
    assert set(report["ratios"]) == set(learner_gpu.GOALS)
    assert all(ratio["median"] > 0 for ratio in report["ratios"].values())
    (table,) = report["tables"]
    measured = [row[0] for row in table["rows"]]
    assert len(measured) == sum(len(job.parts) * (1 + (job.side == "transformers")) for job in learner_gpu.JOBS[:3])
    assert not report["failures"]
