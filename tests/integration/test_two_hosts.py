"""Runs over two hosts that are really separate: ranks, engines and task buffer find each other, whatever the names say.

The hosts need root, and a kernel that allows namespaces.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.run.folder import RunFolder
from launch.run.interrupts import SAVED
from tests.integration.azr_process import easy_tasks
from tests.integration.two_hosts import RayHosts, two_hosts, write_small_model
from tests.slurm.hosts import HostsRefused

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

SMALL = [
    "learner.parallel.data=2",
    "learner.threads=1",
    "learner.batch.propose={deduction=2, abduction=1, induction=1}",
    "learner.batch.solve={deduction=4, abduction=2, induction=2}",
    "selfplay.solutions=2",
    "selfplay.proposals_per_prompt=1",
    "selfplay.references=1",
    "selfplay.max_propose_tokens=32",
    "selfplay.max_solve_tokens=8",
    "selfplay.heldout_every=0",
    "engine.kv_cache_gib=0.1",
    "executor.workers=2",
    "executor.timeout_s=10",
    "actors.num_actors=2",
    "run.name=run",
]


@pytest.fixture(scope="module")
def hosts() -> Iterator[RayHosts]:
    if os.getuid():
        pytest.skip("hosts of their own need root")
    try:
        with two_hosts() as hosts:
            yield hosts
    except HostsRefused as refused:
        pytest.skip(str(refused))


@pytest.fixture(scope="module")
def model(hosts: RayHosts) -> Path:
    return write_small_model(hosts.folder / "model")


def hosts_of(logs: Path) -> dict[str, str]:
    """Process -> the host that the first line of its log names."""
    return {path.name.split(".")[0]: path.read_text().split()[1] for path in logs.glob("*.log")}


def rows(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_two_ranks_train_and_save_and_their_engines_have_their_weights(hosts: RayHosts, model: Path) -> None:
    folder = hosts.new_folder()
    done = hosts.azr(
        "train", "smollm2-cpu", *SMALL, f"ray.address={hosts.address}", f"run.dir={folder}", f"model.path={model}",
        easy_tasks(folder / "seeds.jsonl", 3), "learner.steps=2", "learner.checkpoint_every=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for actor in ("rollout0", "rollout1"):
        assert f"{actor} equals the learner in all" in done.stdout
    assert "ledger: conserved" in done.stdout
    placed = hosts_of(folder / "run" / "logs")
    assert (placed["learner0"], placed["learner1"], placed["buffer"]) == ("n1", "n2", "n1")
    assert {placed["rollout0"], placed["rollout1"]} == {"n1", "n2"}
    assert sorted(path.name for path in (folder / "run" / "checkpoints").glob("step_*"))[-1] == "step_00000002"


def test_fine_tuning_saves_and_goes_on(hosts: RayHosts, model: Path) -> None:
    folder = hosts.new_folder()
    asked = [f"ray.address={hosts.address}", f"run.dir={folder}", f"model.path={model}", "learner.parallel.data=2"]
    done = hosts.azr("sft", "sft-smollm2-cpu", *asked, "sft.batch_size=32", "sft.epochs=0.35", "run.name=run")
    assert done.returncode == 0, done.stdout + done.stderr
    # From the other host: what a rank needs is neither in the driver's environment nor in its working directory.
    done = hosts.azr("sft", "--resume", str(folder / "run"), "sft.epochs=0.5", host="n2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert rows(folder / "run") == [0, 1, 2, 3]
    placed = hosts_of(folder / "run" / "logs")
    assert (placed["learner0"], placed["learner1"]) == ("n1", "n2")


def test_a_model_that_one_host_lacks_is_told_before_anything_starts(hosts: RayHosts, model: Path) -> None:
    folder = hosts.new_folder()
    hosts.run("cp", "-r", str(model), "/tmp/own", host="n1")
    asked = [*SMALL, f"ray.address={hosts.address}", f"run.dir={folder}", "model.path=/tmp/own"]
    done = hosts.azr("train", "smollm2-cpu", *asked)
    assert done.returncode == 1
    assert "10.77.0.2: model.path = '/tmp/own' is neither a folder nor a known model" in done.stdout
    assert not (folder / "run" / "logs" / "learner0.0.log").exists()


@pytest.mark.deep
def test_a_run_goes_on_without_a_host_that_is_lost(hosts: RayHosts) -> None:
    """Last, because the host stays lost: its rank and its actor start on the other host."""
    folder = hosts.new_folder()
    run, printed = folder / "run", folder / "printed"
    asked = [*SMALL, "run.mode=rehearse", f"ray.address={hosts.address}", f"run.dir={folder}"]
    asked += ["learner.steps=1000000", "learner.checkpoint_every=1"]

    def steps() -> int:
        return len(rows(run)) if (run / "metrics.jsonl").exists() else 0

    with printed.open("w") as out:
        azr = hosts.start_azr("train", "smollm2-cpu", *asked, host="n1", out=out)
        hosts.wait_until(lambda: steps() > 2 or azr.poll() is not None, 300)
        hosts.lose("n2")
        hosts.wait_until(lambda: "all ranks start again" in printed.read_text() or azr.poll() is not None, 300)
        before = steps()
        hosts.wait_until(lambda: steps() > before + 2 or azr.poll() is not None, 300)
        assert azr.poll() is None, printed.read_text()
        attempt = RunFolder(run).newest_attempt()
        assert attempt is not None
        hosts.run("kill", "-TERM", str(attempt.began()["pid"]), host="n1")
        assert azr.wait(120) == SAVED, printed.read_text()
    taken = rows(run)
    assert taken == sorted(set(taken)), "no step twice"
