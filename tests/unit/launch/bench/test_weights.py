"""`azr bench weights` on a tiny model, without an engine: real processes, a real group."""

from pathlib import Path

import pytest
import torch
import transformers as tf

from launch.bench import weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 61}
    torch.manual_seed(0)
    tf.LlamaForCausalLM(tf.LlamaConfig(num_attention_heads=2, num_key_value_heads=1, **shape)).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")  # a folder is asked for one; nothing here reads it
    return tmp_path


@pytest.mark.slow
def test_the_transport_is_measured_beside_its_limits(folder: Path) -> None:
    report = weights.run(weights.Options(str(folder), runs=2, receivers=2, repeats=1, engine=False)).to_json()
    assert [row["path"] for row in report["rows"]] == ["update", "raw broadcast", "file, saved and loaded"]
    assert report["ratios"]["rate_over_raw_broadcast"]["runs"] == 2
    assert report["ratios"]["rate_over_raw_broadcast"]["median"] > 0
    assert "left out" in report["notes"]["pause_over_transfer"]
    assert "pause_over_transfer" not in report["ratios"]
    with weights._ways(*_parts(folder)) as ways:
        for way in ways.values():
            way()


def test_the_phases_of_an_engine_become_rows_and_a_ratio() -> None:
    phases = {"ready_s": 0.1, "prepare_s": 0.2, "pause_s": 0.05, "transfer_s": 0.3, "load_s": 0.2, "resume_s": 0.0}
    report = weights.Report("weights", {})
    weights._report_engine(report, [phases, phases], num_bytes=10_000_000)
    assert report.ratios["pause_over_transfer"].median == pytest.approx(0.1)
    assert report.goals["pause_over_transfer"].met(0.1)
    assert {row["path"] for row in report.rows} == {f"engine: {phase}" for phase in weights.ENGINE_PHASES}
    assert "0.65 s" in report.notes["engine"]


def _parts(folder: Path) -> tuple[weights.Export, weights.Manifest, int, int]:
    export = weights._policy(str(folder))
    manifest = weights.manifest_of(export())
    return export, manifest, sum(spec.num_bytes for spec in manifest), 1
