"""A calibration from run folders on disk: what made the recorded numbers comes out again."""

import json

import numpy as np
import pytest
import tomli_w
from safetensors.numpy import save_file

from launch.cli import main
from launch.tune.calibration import load_calibration
from launch.tune.engine_model import StepCost
from learner.trajectory import Role
from tests.unit.launch.tune.test_fit import recorded_batch

STEP_S, ROW_S, TARGET_S, BETWEEN_S = 1.5, 0.004, 0.005, 0.05
ENGINE = StepCost(0.03, 0.002, 1e-6, 8e-4, 0.0, 32)
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}


def line(item):
    """A trajectory as the recorder writes it."""
    proposed = item.cell.role is Role.PROPOSE
    return {
        "slot": item.slot,
        "episode": item.episode,
        "kind": item.cell.kind,
        "role": item.cell.role.value,
        "reward_parts": {"valid": 1.0} if proposed else {"correct": 1.0, "estimate": 1.0},
        "versions": [[item.step - 1, 0, item.response]],
        "actor": item.actor,
        "timings": {"queue_s": 0.0, "generate_s": item.sampling_s, "execute_s": item.execute_s},
        "prompt_ids": [item.prompt_key] * item.prompt,
        "response_ids": [0] * item.response,
    }


def make_run(folder, name, steps=6):
    """A synchronous run of one actor, of the engine and the learner above."""
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text(json.dumps(MODEL))
    (model / "tokenizer.json").write_text("{}")
    save_file({"embedding": np.zeros((256, 64), np.float32)}, model / "model.safetensors")
    run = folder / name
    (run / "trajectories").mkdir(parents=True)
    settings = {
        "model": {"path": str(model)},
        "selfplay": {"solutions": 4},
        "engine": {"threads": 1, "max_num_seqs": 32},
        "learner": {"max_staleness": 0, "threads": 1},
    }
    (run / "config.toml").write_text(tomli_w.dumps(settings))
    rng, rows, now = np.random.default_rng(1), [], 0.0
    for step in range(1, steps + 1):
        batch = recorded_batch(rng, step, ENGINE)
        (run / "trajectories" / f"step_{step:08d}.jsonl").write_text("".join(json.dumps(line(i)) + "\n" for i in batch))
        packed = int(rng.integers(500, 3000))
        targets = sum(item.response for item in batch)
        train_s, wait_s = STEP_S + ROW_S * packed + TARGET_S * targets, max(item.sampling_s for item in batch)
        weights = {"weights/ready_s": 0.03, "weights/send_s": 0.33, "weights/wait_loaded_s": 0.02}
        step_s = wait_s + train_s + 0.35 + BETWEEN_S
        now += step_s
        row = {"step": step, "time_s": now, "step_s": step_s, "wait_for_batch_s": wait_s, "train_s": train_s}
        prompts = {"tokens_prompt": 4000.0 * step, "tokens_cached": 1000.0 * step, "tokens_computed": packed}
        prompts |= {"tokens_trained": targets}
        rows.append(row | weights | prompts | {"actors": 1, "age_mean": 0.0, "batch_size": len(batch)})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def test_what_made_a_run_comes_out_of_its_folder(tmp_path, capsys):
    out = tmp_path / "here.json"
    assert main(["tune", "calibrate", str(make_run(tmp_path, "sync")), "--out", str(out)]) == 0
    found = load_calibration(out)
    assert found.learner.step_s.value == pytest.approx(STEP_S, rel=1e-3)
    assert found.learner.row_s.value == pytest.approx(ROW_S, rel=1e-3)
    assert found.learner.target_s.value == pytest.approx(TARGET_S, rel=1e-3)
    assert found.learner.between_s.value == pytest.approx(BETWEEN_S, rel=1e-3)
    assert (found.weights.ready_s.value, found.weights.load_s.value) == pytest.approx((0.03, 0.02))
    assert found.weights.send_s.value == pytest.approx(0.30)
    # The caches of this run are made up, so single figures differ; the time of a step of all its sequences does not.
    assert StepCost.of(found.engine).decode(8, 1000, 1) == pytest.approx(ENGINE.decode(8, 1000, 1), rel=0.1)
    assert found.executor.validate_s.value == pytest.approx(0.02)
    assert found.sharing.engine_beside_learner.source.startswith("assumed")
    assert {cell: sum(len(g.responses) for g in groups) for cell, groups in found.workload.items()} == {
        "deduction/propose": 48,
        "deduction/solve": 96,
    }
    assert "sync" in capsys.readouterr().out


def test_a_run_of_one_step_is_refused(tmp_path, capsys):
    run = make_run(tmp_path, "short", steps=1)
    assert main(["tune", "calibrate", str(run), "--out", str(tmp_path / "x.json")]) == 2
    assert "has 1 recorded steps; a calibration needs 2 or more" in capsys.readouterr().err
