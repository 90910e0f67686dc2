"""Serial mode: one process, one thread, the same numbers every time; and engine and learner agree."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from launch.models import prepare
from learner.model import PolicyModel
from learner.packing import pack
from learner.parallel import init_parallel
from learner.settings import ModelSettings, OptimizerSettings, ParallelSettings

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

OVERRIDES = [
    "run.mode=serial",
    "run.name=run",
    "learner.steps=2",
    "learner.max_staleness=0",
    "learner.batch.propose={deduction=2, abduction=2, induction=2}",
    "learner.batch.solve={deduction=4, abduction=4, induction=4}",
    "selfplay.proposals_per_prompt=2",
    "selfplay.max_propose_tokens=48",
    "model.dtype=float32",
    "engine.dtype=float32",
]
TIMES = ("_s", "_per_s")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of one seed, each in a process of its own, which is what a user has."""
    folders = []
    for name in ("first", "second"):
        folder = tmp_path_factory.mktemp(name)
        command = [sys.executable, "-m", "launch.cli", "train", "smollm2-cpu", *OVERRIDES, f"run.dir={folder}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "ledger: conserved" in done.stdout
        folders.append(folder / "run")
    return folders


def metrics(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.endswith(TIMES)} for row in rows]


def test_two_runs_with_one_seed_are_equal(runs: list[Path]) -> None:
    first, second = (metrics(folder) for folder in runs)
    assert len(first) == 2
    assert first == second


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
