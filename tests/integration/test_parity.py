"""`max_staleness = 0` is serial mode: the same seeds give the same trajectories and the same weights, bit by bit. And
within a mode, engine and learner agree on the log-probability of every token.

Two real runs of SmolLM2: one process and one thread here; Ray, sockets, a weight group and an engine of its own there.
One request at a time, because the bits of a matrix product depend on how many rows it has, and so on who else is in the
batch.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from launch.models import prepare
from learner.batching.packing import pack
from learner.model.policy import PolicyModel
from learner.model.process_groups import init_parallel
from learner.settings import ModelSettings, OptimizerSettings, ParallelSettings
from tests.integration.azr_process import azr, check_logs

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

OVERRIDES = [
    "run.name=run",
    "engine.seeded=true",
    "engine.max_num_seqs=1",
    "engine.dtype=float32",
    "model.dtype=float32",
    "learner.threads=1",
    "actors.concurrency=1",
    "actors.adapt.enabled=false",
    "learner.max_staleness=0",
    "learner.steps=2",
    "learner.batch.propose={deduction=2, abduction=1, induction=1}",
    "learner.batch.solve={deduction=3, abduction=2, induction=1}",
    "selfplay.proposals_per_prompt=1",
    "selfplay.references=1",
    "selfplay.max_prompt_tokens=320",
    "selfplay.max_propose_tokens=32",
    "selfplay.max_solve_tokens=12",
    "selfplay.heldout_every=0",
]
NOT_SAMPLED = ("actor", "timings")
OF_A_MOMENT = ("time", "ledger/", "buffer/", "tokens_generated", "generate_", "engine_weights/", "wait_for_", "memory/")
"""Asked for while the next batch is being played already, or not yet."""
TIMES = ("_s", "_s/mean", "_s/max", "wait_for_batch_share")


@pytest.fixture(scope="module")
def runs(runs_folder: Path) -> list[Path]:
    """The serial run, then the asynchronous one."""
    folders = []
    for mode in ("serial", "async"):
        folder = runs_folder / mode
        done = azr("train", "smollm2-cpu", *OVERRIDES, f"run.mode={mode}", f"run.dir={folder}")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "ledger: conserved" in done.stdout
        folders.append(folder / "run")
    return folders


def test_every_kind_of_process_logs_in_one_format(runs: list[Path]) -> None:
    serial, distributed = (run / "logs" for run in runs)
    check_logs(serial, {"serial.0"})
    check_logs(distributed, {"driver.0", "learner0.0", "rollout0.0", "buffer.0"})


def trajectories(folder: Path) -> list[dict]:
    files = sorted((folder / "trajectories").glob("step_*.jsonl"))
    played = [json.loads(line) | {"step": file.stem} for file in files for line in file.read_text().splitlines()]
    return [{key: value for key, value in one.items() if key not in NOT_SAMPLED} for one in played]


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = (folder / "checkpoints" / "step_00000002" / "hf").glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def test_the_same_seeds_give_the_same_trajectories(runs: list[Path]) -> None:
    """In the same order, with the same log-probabilities, versions, outcomes and rewards, before an update and after
    it."""
    serial, asynchronous = (trajectories(folder) for folder in runs)
    assert {one["step"] for one in serial} == {"step_00000001", "step_00000002"}
    assert len({one["reward"] for one in serial}) > 2, "nothing to tell apart"
    assert asynchronous == serial


def test_the_same_trajectories_give_the_same_weights(runs: list[Path]) -> None:
    serial, asynchronous = (weights(folder) for folder in runs)
    before = load_file(prepare("smollm2-135m-instruct") / "model.safetensors")
    assert any(not before[name].equal(tensor.to(before[name].dtype)) for name, tensor in serial.items()), "no update"
    assert serial.keys() == asynchronous.keys()
    assert [name for name in serial if not serial[name].equal(asynchronous[name])] == []


def test_what_both_modes_measure_is_equal(runs: list[Path]) -> None:
    serial, asynchronous = (metrics(folder) for folder in runs)
    assert len(serial) == len(asynchronous) == 2
    for one, other in zip(serial, asynchronous, strict=True):
        names = [name for name in one if not name.startswith(OF_A_MOMENT) and not name.endswith(TIMES)]
        assert {"loss", "grad_norm", "reward_mean", "logprob_mismatch"} <= set(names)
        assert {name: other.get(name) for name in names} == {name: one[name] for name in names}
        assert one["grad_norm"] > 0


def test_engine_and_learner_agree_after_an_update(runs: list[Path]) -> None:
    """Both in float32, every token at the learner's version: step 2 is measured on updated weights."""
    rows = metrics(runs[0])
    assert [row["age_max"] for row in rows] == [0, 0]
    assert all(row["logprob_mismatch"] < 1e-4 for row in rows)


def test_every_sampled_token_has_the_learners_logprob(runs: list[Path]) -> None:
    """vLLM's log-probabilities against Megatron's, token by token, under the weights that both started from."""
    lines = (runs[0] / "trajectories" / "step_00000001.jsonl").read_text().splitlines()
    batch = [json.loads(line) for line in lines]
    parallel = ParallelSettings()
    init_parallel(parallel, 0, 1)
    policy = PolicyModel(
        prepare("smollm2-135m-instruct"), ModelSettings(dtype="float32"), OptimizerSettings(), parallel
    )
    sequences = [(np.array(t["prompt_ids"]), np.array(t["response_ids"])) for t in batch]
    worst = 0.0
    for micro in pack(sequences, 2048):
        ((_, ours, _),) = policy.logprobs([micro])
        engine = [
            batch[i]["logprobs"][j]
            for i, j in zip(micro.sequence_index.tolist(), micro.token_index.tolist(), strict=True)
        ]
        worst = max(worst, float((ours - torch.tensor(engine)).abs().max()))
    assert worst < 1e-4
