"""The agents of a job: what their nodes run, which signals reach whom, and that nothing outlives the job.

Small programs take the place of the driver: they see Ray and the signals as the driver does.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import cast

import pytest

from tests.slurm.cluster import Loopback
from tests.slurm.hosts import Hosts
from tests.slurm.submission import ROOT, Submission, submit

RAY = """\
import json, os, signal, subprocess, sys, time
from pathlib import Path
import ray

here = Path({folder!r})
address = next(text for text in sys.argv if text.startswith("ray.address=")).partition("=")[2]
ray.init(address=address, log_to_driver=False, logging_level="ERROR")

@ray.remote(num_cpus=0)
def look(*names):
    # What loses its parent here is to end with the job all the same.
    subprocess.run(["sh", "-c", "setsid sleep 4321 & setsid sleep 4321 &"])
    return {{"node": os.uname().nodename, "nice": os.nice(0)}} | {{name: os.environ.get(name) for name in names}}

def at(role, *names):
    return ray.get(look.options(label_selector={{"role": role}}).remote(*names))
"""
"""The beginning of a program in place of the driver."""


def program(folder: Path, text: str) -> str:
    return RAY.format(folder=str(folder)) + text


def said(submission: Submission) -> dict[str, object]:
    """The last line of the program's output, as JSON."""
    lines = (submission.run / "slurm" / "attempt.0" / "driver.log").read_text().splitlines()
    return dict(json.loads(lines[-1]))


def check_nothing_left(hosts: Hosts, seconds: float = 30) -> None:
    for node in ("n1", "n2"):
        hosts.wait_until(lambda node=node: hosts.processes(node) == [], seconds, lambda: str(hosts.processes(node)))


def test_the_drivers_exit_code_is_the_jobs_and_nothing_outlives_it(hosts: Hosts) -> None:
    folder = hosts.new_folder()
    text = 'print(json.dumps(at("rollout", "OMP_WAIT_POLICY", "TMPDIR", "RAY_ADDRESS")))\nsys.exit(7)\n'
    submission = submit(hosts, "slurm.nodes=2", driver=program(folder, text), folder=folder)
    job = submission.wait_for()
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "7:0"), submission.logs()
    assert submission.result() | {"reason": ""} == {
        "exit_code": 7, "part": "driver", "node": "n1", "reason": "", "node_failure": False,
    }  # fmt: skip
    # The environment of the driver does not reach Ray's workers; that of the agent does.
    assert said(submission) == {
        "node": "n2", "nice": os.nice(0), "OMP_WAIT_POLICY": "passive", "TMPDIR": f"/tmp/azr-{submission.job}-0-1/tmp",
        "RAY_ADDRESS": None,
    }  # fmt: skip
    check_nothing_left(hosts)
    for node in ("n1", "n2"):
        assert "azr-" not in hosts.run("ls", "/tmp", host=node).replace(hosts.folder.name, "")


def test_signals_reach_the_driver_once_and_leave_ray_alive(hosts: Hosts) -> None:
    """SLURM sends SIGTERM to every process of the job, and twice; the driver needs Ray until it has saved."""
    folder = hosts.new_folder()
    text = """
got = []
def hear(number, frame):
    got.append(signal.Signals(number).name)
    (here / got[-1]).touch()
for number in (signal.SIGUSR2, signal.SIGTERM):
    signal.signal(number, hear)
(here / "ready").touch()
while not (here / "sent").exists():
    time.sleep(0.05)
nodes = [at(role)["node"] for role in ("learner", "rollout")]
print(json.dumps({"got": sorted(set(got)), "times": got.count("SIGUSR2"), "nodes": nodes}))
sys.exit(75)
"""
    submission = submit(hosts, "slurm.nodes=2", "slurm.requeue=false", driver=program(folder, text), folder=folder)
    submission.wait_until((folder / "ready").exists)
    for options in (["--signal=USR2", "--batch"], ["--signal=TERM"], ["--signal=TERM"], ["--signal=USR2", "--batch"]):
        hosts.run("scancel", *options, submission.job)
        if "--batch" in options:
            submission.wait_until((folder / "SIGUSR2").exists)
    (folder / "sent").touch()
    job = submission.wait_for()
    assert job["ExitCode"] == "75:0", submission.logs()
    assert said(submission) == {"got": ["SIGTERM", "SIGUSR2"], "times": 1, "nodes": ["n1", "n2"]}
    check_nothing_left(hosts)


@pytest.mark.deep
def test_a_node_whose_ray_ends_ends_the_job(hosts: Hosts) -> None:
    folder = hosts.new_folder()
    text = '(here / "ready").touch()\nsignal.sigwait([signal.SIGTERM])\nsys.exit(75)\n'
    text = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])\n" + text
    submission = submit(hosts, "slurm.nodes=2", driver=program(folder, text), folder=folder)
    submission.wait_until((folder / "ready").exists)
    (raylet,) = [process for process in hosts.tree("n2") if process.name() == "raylet"]
    raylet.kill()
    job = submission.wait_for(seconds=60)
    assert job["JobState"] == "FAILED", submission.logs()
    result = submission.result()
    assert (result["part"], result["node"], result["node_failure"]) == ("ray", "n2", False)
    check_nothing_left(hosts)


@pytest.mark.parametrize("phase", ["agents meet", "driver runs"])
def test_nothing_is_left_after_scancel(hosts: Hosts, phase: str) -> None:
    """Also where the driver does not end by itself, and SLURM kills."""
    folder = hosts.new_folder()
    text = "for number in (signal.SIGUSR2, signal.SIGTERM): signal.signal(number, signal.SIG_IGN)\n"
    text += 'at("learner"), at("rollout")\n(here / "ready").touch()\ntime.sleep(600)\n'
    submission = submit(hosts, "slurm.nodes=2", driver=program(folder, text), folder=folder)
    attempt = submission.run / "slurm" / "attempt.0"
    reached = (attempt / "meeting.json" if phase == "agents meet" else folder / "ready").exists
    submission.wait_until(reached)
    hosts.run("scancel", submission.job)
    assert submission.wait_for()["JobState"] == "CANCELLED"
    check_nothing_left(hosts)


def test_driver_and_ray_end_with_an_agent_that_is_killed(hosts: Hosts) -> None:
    """As for lack of memory: the agent can end nothing itself, and SLURM has no control groups here."""
    folder = hosts.new_folder()
    text = '(here / "ready").touch()\ntime.sleep(600)\n'
    submission = submit(hosts, "slurm.nodes=2", driver=program(folder, text), folder=folder)
    submission.wait_until((folder / "ready").exists)
    (agent,) = [process for process in hosts.tree("n1") if process.cmdline()[3:4] == ["launch.slurm.agent"]]
    agent.kill()
    assert submission.wait_for()["ExitCode"] == "137:0", submission.logs()
    check_nothing_left(hosts, 150)  # Ray's own agents try to reach its head for a minute


def test_an_agent_that_hangs_does_not_hold_up_the_end(hosts: Hosts) -> None:
    folder = hosts.new_folder()
    text = '(here / "ready").touch()\nwhile not (here / "go").exists(): time.sleep(0.05)\n'
    submission = submit(hosts, "slurm.nodes=2", driver=program(folder, text), folder=folder)
    submission.wait_until((folder / "ready").exists)
    (agent,) = [process for process in hosts.tree("n2") if process.cmdline()[3:4] == ["launch.slurm.agent"]]
    agent.suspend()
    (folder / "go").touch()
    assert submission.wait_for()["JobState"] == "COMPLETED", submission.logs()
    check_nothing_left(hosts)


def test_what_an_agent_cannot_do_fails_the_job_and_is_no_loss_of_its_node(hosts: Hosts) -> None:
    submission = submit(hosts, "slurm.nodes=2", "--sbatch", "hold")
    taken = f"/tmp/azr-{submission.job}-0-1"
    hosts.run("sh", "-c", f"mkdir {taken}; chown games {taken}", host="n2")
    hosts.run("scontrol", "release", submission.job)
    job = submission.wait_for()
    hosts.run("rmdir", taken, host="n2")
    assert (job["JobState"], job["Restarts"]) == ("FAILED", "0"), submission.logs()
    result = submission.result()
    assert (result["part"], result["node"], result["node_failure"]) == ("agent", "n2", False)
    assert f"{taken} cannot be made" in result["reason"]


@pytest.fixture
def one_host(request: pytest.FixtureRequest) -> Loopback:
    """Two nodes on one host, of a user who is not root where such a one can run this Python."""
    ordinary: Loopback = request.getfixturevalue("ordinary")
    if "Permission denied" in ordinary.run(sys.executable, "-c", "import launch", check=False, PYTHONPATH=str(ROOT)):
        return cast(Loopback, request.getfixturevalue("loopback"))
    return ordinary


def test_two_jobs_of_one_user_on_the_same_nodes_do_not_meet(one_host: Loopback) -> None:
    """Here both nodes of both jobs are one host, with one /tmp."""
    folders = [one_host.new_folder() for _ in range(2)]
    text = """
found = sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"])
(here / "seen").touch()
other = Path({other!r})
while not (other / "seen").exists():
    time.sleep(0.05)
print(json.dumps({{"found": found, "address": address}}))
"""
    submissions = [
        submit(one_host, "slurm.nodes=2", driver=program(folder, text.format(other=str(other))), folder=folder)
        for folder, other in (folders, reversed(folders))
    ]
    for submission in submissions:
        job = submission.wait_for()
        assert job["JobState"] == "COMPLETED", submission.logs()
    answers = [said(submission) for submission in submissions]
    assert [answer["found"] for answer in answers] == [["127.0.0.2", "127.0.0.3"]] * 2
    for submission, other in zip(submissions, reversed(answers), strict=True):
        assert str(other["address"]) not in submission.logs()
        assert list(Path("/tmp").glob(f"azr-{submission.job}-[0-9]*")) == []
