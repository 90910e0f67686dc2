"""`azr bench weights` on a tiny model, without an engine: real processes, a real group."""

import os
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import transformers as tf

from launch.bench import weights, weights_delta, weights_fit, weights_shapes
from launch.bench.network import NoOwnNetwork, own_network
from launch.bench.weights_fit import Observation, Update


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    # The vocabulary is that of the recorded batch.
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 49152}
    torch.manual_seed(0)
    tf.LlamaForCausalLM(tf.LlamaConfig(num_attention_heads=2, num_key_value_heads=1, **shape)).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")  # a folder is asked for one; nothing here reads it
    return tmp_path


@pytest.mark.slow
def test_the_transport_is_measured_beside_its_limits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_fit, "SIZES", ((4, 4 << 10), (300, 4 << 10), (4, 4 << 20)))
    report = weights.run(weights.Options(str(folder), runs=2, receivers=2, repeats=1, engine=False)).to_json()
    assert [row["path"] for row in report["rows"]] == ["update", "raw broadcast", "file, saved and loaded"]
    assert report["ratios"]["rate_over_raw_broadcast"]["runs"] == 2
    assert report["ratios"]["rate_over_raw_broadcast"]["median"] > 0
    assert "left out" in report["notes"]["pause_over_transfer"]
    assert "pause_over_transfer" not in report["ratios"]
    (table,) = report["tables"]
    assert [row[0] for row in table["rows"]] == list(weights_fit.TRANSPORT.values())
    whole = dict(zip(table["columns"], table["rows"][0], strict=True))
    assert 0 < whole["7B s"] < whole["235B s"]


def test_the_phases_of_an_engine_become_rows_and_a_ratio() -> None:
    phases = {"ready_s": 0.1, "prepare_s": 0.2, "pause_s": 0.05, "transfer_s": 0.3, "load_s": 0.2, "resume_s": 0.0}
    report = weights.Report("weights", {})
    weights._report_engine(report, [phases, phases], num_bytes=10_000_000)
    assert report.ratios["pause_over_transfer"].median == pytest.approx(0.1)
    assert report.goals["pause_over_transfer"].met(0.1)
    assert {row["path"] for row in report.rows} == {f"engine: {phase}" for phase in weights.ENGINE_PHASES}
    assert "0.65 s" in report.notes["engine"]


def test_both_terms_come_out_of_updates_that_have_them_and_predict_others() -> None:
    draw = random.Random(0)
    fixed_s, tensor_s, byte_s = 2e-3, 30e-6, 0.4e-9
    observed = []
    for tensors, num_bytes in weights_fit.SIZES * 4:
        update = Update(tensors, tensors * num_bytes)
        seconds = fixed_s + tensor_s * update.tensors + byte_s * update.num_bytes
        observed.append(Observation(update, {"whole": seconds * draw.uniform(0.97, 1.03)}))
    observed[5].seconds["whole"] *= 8  # something else ran on the machine
    fit = weights_fit.fit_phase(observed, "whole")
    truth = (fixed_s, 1e3 * tensor_s, 1e9 * byte_s)
    for value, error, true in zip(fit.values, fit.errors, truth, strict=True):
        assert abs(value - true) < max(4 * error, 0.05 * true)
        assert error < 0.2 * true
    large = weights_fit.PREDICTED["235B"]
    expected = fixed_s + tensor_s * large.tensors + byte_s * large.num_bytes
    assert weights_fit.predict(fit, large) == pytest.approx(expected, rel=0.1)


def test_a_phase_that_takes_no_time_has_no_terms() -> None:
    observed = [Observation(Update(n, n << 20), {"resume_s": 0.0}) for n in (1, 10, 100)]
    fit = weights_fit.fit_phase(observed, "resume_s")
    assert weights_fit.predict(fit, Update(100, 100 << 20)) == pytest.approx(0.0, abs=1e-4)


def test_a_model_of_another_shape_has_the_tensors_of_that_shape(folder: Path) -> None:
    with weights_shapes.model_of_shape(folder, layers=3, heads=4) as other:
        found = dict(weights_shapes.weights_of(other))
        assert (other / "tokenizer.json").read_text() == "{}"
        config = tf.AutoConfig.from_pretrained(other)
    assert (config.num_hidden_layers, config.num_attention_heads, config.hidden_size) == (3, 4, 64)
    assert len(found) == 3 * 9 + 3 and {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert found["model.layers.2.self_attn.q_proj.weight"].shape == (64, 64)


def test_masters_are_spread_over_the_numbers_that_round_to_their_weight() -> None:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(10_000, generator=draw).bfloat16()
    weight[:300] = torch.ldexp(torch.ones(300), torch.randint(-9, 3, (300,), generator=draw)).bfloat16()
    weight[300:310] = 0
    weight[310:600] *= -1
    master = torch.zeros(10_000)
    weights_delta.spread_master(weight, master, draw)
    assert torch.equal(master.bfloat16(), weight)
    off = (master - weight.float()).abs() / weight.float().abs().clamp_min(1e-9)
    assert 0.5**11 < off.mean() < 0.5**9 and off.max() <= 0.5**8


@pytest.mark.slow
def test_what_changes_in_a_step_is_counted_and_sent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_delta, "COMPARED", 1e-9)
    monkeypatch.setattr(weights_delta, "LEARNING_RATES", (1e-9, 1e-3))
    monkeypatch.setattr(weights_delta, "WARM_STEPS", 2)
    report = weights_delta.run(folder, "tiny", runs=1, num_receivers=1).to_json()
    (table,) = report["tables"]
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    changed = [row["changed %"] for row in rows]
    assert 0 <= changed[0] < changed[1] <= 100, "the larger the step, the more bits change"
    assert [row["of whole %"] for row in rows] == sorted(row["of whole %"] for row in rows)
    assert rows[0]["of whole %"] < 50 and rows[1]["of whole %"] <= 101
    assert report["ratios"]["changed_over_whole_bytes"]["median"] < 1
    if "1 Gbit/s: whole ms" in table["columns"]:
        assert "changed_over_whole_1gbit" in report["ratios"]
    else:
        assert "not measured" in report["notes"]["changed_over_whole_1gbit"]


def test_a_network_of_its_own_is_as_slow_as_it_is_told_and_the_former_one_comes_back() -> None:
    here = os.readlink("/proc/thread-self/ns/net")
    try:
        with own_network() as network:
            assert os.readlink("/proc/thread-self/ns/net") != here
            network.limit(8e6)  # a megabyte a second, after the first 256 KiB
            sent = bytes(700_000)
            with (
                socket.create_server(("127.0.0.1", 0)) as server,
                ThreadPoolExecutor(1) as threads,
                socket.create_connection(server.getsockname()) as client,
            ):
                there, _ = server.accept()
                started = time.monotonic()
                sending = threads.submit(client.sendall, sent)
                with there, there.makefile("rb") as received:
                    assert received.read(len(sent)) == sent
                assert time.monotonic() - started > 0.25
                sending.result()
            network.limit(None)
    except NoOwnNetwork as error:
        pytest.skip(str(error))
    finally:
        assert os.readlink("/proc/thread-self/ns/net") == here
