"""The whole run with the real parts: SmolLM2, Ray, vLLM, ZeroMQ, Megatron, gloo, the sandbox."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from safetensors.torch import load_file

from launch.config import Config, load
from launch.models import prepare
from launch.recorder import RunFolder
from launch.train import train

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

SMALL = [
    "learner.batch.propose={deduction=4, abduction=2, induction=2}",
    "learner.batch.solve={deduction=8, abduction=4, induction=4}",
    "selfplay.proposals_per_prompt=2",
    "selfplay.max_propose_tokens=128",
    "run.max_minutes=10",
    "run.verify_weights=true",
]


def small(folder: Path, name: str, *overrides: str) -> Config:
    return load("smollm2-cpu", [*SMALL, f"run.dir={folder}", f"run.name={name}", *overrides])


def read_batches(folder: RunFolder) -> list[list[dict]]:
    files = sorted(folder.trajectories.glob("step_*.jsonl"))
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


def easy_tasks(path: Path) -> Path:
    """A seed file with tasks of each kind that even the untrained model solves now and then."""
    tasks = [
        {"kind": kind, "program": "def f(x):\n    return x", "inputs": [str(n), str(n + 1)][: 1 + (kind == "induction")],
         "message": "f gives back what it gets."}
        for kind in ("deduction", "abduction", "induction")
        for n in range(4)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(task) + "\n" for task in tasks))
    return path


def test_asynchronous_run_resumes_and_keeps_its_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Five steps at max_staleness 2, then two more after a resume."""
    seeds = f"selfplay.seed_tasks={easy_tasks(tmp_path / 'seeds.jsonl')}"
    config = small(tmp_path, "async", "learner.steps=5", "learner.max_staleness=2", seeds)
    assert train(config) == 0
    printed = capsys.readouterr().out
    assert "equals the learner in all 272 tensors, bit by bit" in printed.replace("\n", " ")
    assert "ledger: conserved" in printed

    folder = RunFolder(config.folder)
    rows = folder.read_metrics()
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert all(math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"]) for row in rows)
    assert any(row["grad_norm"] > 0 for row in rows)
    assert all(0 <= row["age_max"] <= 2 for row in rows)
    assert max(row["age_max"] for row in rows) >= 1
    assert any(row["logprob_mismatch"] < 0.1 for row in rows if "logprob_mismatch" in row)
    for row in rows:
        ended = sum(row[f"ledger/{state}"] for state in ("trained", "dropped", "returned", "queued", "in_flight"))
        assert row["ledger/granted"] == ended

    batches = read_batches(folder)
    played = [t for batch in batches for t in batch]
    assert {(t["kind"], t["role"]) for t in played} == {
        (kind, role) for kind in ("deduction", "abduction", "induction") for role in ("propose", "solve")
    }
    rewards = {role: {t["reward"] for t in played if t["role"] == role} for role in ("propose", "solve")}
    assert rewards["solve"] <= {-1.0, -0.5, 1.0} and 1.0 in rewards["solve"] and len(rewards["solve"]) > 1
    assert -1.0 in rewards["propose"] and all(-1.0 <= reward <= 1.0 for reward in rewards["propose"])
    for t in played:
        terms = [value for name, value in t["reward_parts"].items() if name.startswith("reward/")]
        assert sum(terms) == pytest.approx(t["reward"])
    assert any(len(t["versions"]) > 1 for batch in batches for t in batch), "no trajectory spans two versions"
    for trained_at, batch in enumerate(batches):
        assert all(trained_at - min(v for v, _, _ in t["versions"]) <= 2 for t in batch)

    before = load_file(prepare(config.model.path) / "model.safetensors")
    after = load_file(next((folder.checkpoints / "step_00000005" / "hf").glob("*.safetensors")))
    changed = [name for name in after if not before[name].equal(after[name])]
    assert len(changed) > len(after) / 2, "the weights did not move"

    assert train(small(tmp_path, "async", "learner.steps=7", "learner.max_staleness=2", seeds), resume=True) == 0
    rows = folder.read_metrics()
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert rows[-1]["ledger/trained"] > rows[4]["ledger/trained"]
    assert "ledger: conserved" in capsys.readouterr().out


def test_zero_staleness_is_on_policy(tmp_path: Path) -> None:
    """At max_staleness = 0 every token of every trajectory was sampled by the version that it trained.

    The run starts from triplets that the model itself proposed before, and measures held-out tasks.
    """
    config = small(
        tmp_path,
        "sync",
        "learner.steps=2",
        "learner.max_staleness=0",
        "selfplay.seed_tasks_target=3",
        "selfplay.heldout_every=5",
    )
    assert train(config) == 0
    folder = RunFolder(config.folder)
    batches = read_batches(folder)
    first = folder.read_metrics()[0]
    assert first["buffer/deduction"] >= 3
    assert first["heldout/version"] == 0 and 0 <= first["heldout/mean"] < 1
    assert len(batches) == 2
    for version, batch in enumerate(batches):
        assert batch
        assert all([v for v, _, _ in t["versions"]] == [version] for t in batch)
