"""Nodes that cannot join: the job fails in time, names node and reason, and gives its nodes back."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.hosts import Hosts
from tests.slurm.submission import ROOT, Submission, submit

TIMEOUT_S = 60


@pytest.fixture
def mount(hosts: Hosts) -> Iterator[object]:
    """Mounts something on n2, until the test ends."""
    mounted: list[str] = []

    def mount(*arguments: str) -> None:
        hosts.run("mount", *arguments, host="n2")
        mounted.append(arguments[-1])

    yield mount
    hosts.run("scancel", "--user=root")
    for target in reversed(mounted):
        hosts.run("umount", "--lazy", target, host="n2")


def failed(submission: Submission) -> str:
    """The reason of a job that must fail without n2, and give its nodes back in time."""
    submission.wait_for("RUNNING", "FAILED")
    began = time.monotonic()
    job = submission.wait_for()
    assert job["JobState"] == "FAILED" and job["Restarts"] == "0", submission.logs()
    assert time.monotonic() - began < TIMEOUT_S + 15
    result = submission.result()
    assert (result["part"], result["node"], result["exit_code"]) == ("start", "n2", 1), submission.logs()
    submission.wait_until(lambda: submission.cluster.processes("n2") == [])
    assert result["reason"] in submission.log
    return str(result["reason"])


def start(hosts: Hosts, folder: Path | None = None) -> Submission:
    return submit(hosts, "slurm.nodes=2", f"slurm.start_timeout_s={TIMEOUT_S}", folder=folder)


def test_a_node_without_the_installation(hosts: Hosts, mount) -> None:
    mount("-t", "tmpfs", "none", sys.prefix)
    assert f"{sys.executable}: No such file" in failed(start(hosts))


def test_a_node_that_does_not_see_the_run_folder(hosts: Hosts, mount) -> None:
    folder = hosts.new_folder()
    mount("-t", "tmpfs", "none", str(folder))
    assert "the run folder is not shared with this node" in failed(start(hosts, folder))


def test_a_node_with_other_code(hosts: Hosts, mount) -> None:
    file = hosts.new_folder() / "cli.py"
    shutil.copy(ROOT / "launch" / "cli.py", file)
    file.write_text(file.read_text() + "# changed\n")
    mount("--bind", str(file), str(ROOT / "launch" / "cli.py"))
    assert "n2 has azr" in failed(start(hosts))


def test_a_node_whose_slurmd_is_dead(hosts: Hosts) -> None:
    hosts.run("sh", "-c", f"kill -9 $(cat {hosts.folder}/n2/slurmd.pid)", host="n2")
    # srun then kills the agent of n1 before it can say why. SLURM may have noticed by itself: then it is a lost node.
    submission = submit(hosts, "slurm.nodes=2", "slurm.requeue=false")
    job = submission.wait_for()
    hosts.lose("n2")
    assert job["JobState"] == "FAILED"
    record = submission.attempt()
    assert record["node"] == "n2" and "Communication connection failure" in record["reason"]
