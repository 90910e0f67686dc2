"""The clusters that the other tests stand on: what they are, and what ends with them."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from tests.slurm.cluster import Cluster, Loopback
from tests.slurm.configuration import NUM_GPUS
from tests.slurm.hosts import ADDRESSES, Hosts


@pytest.fixture(params=["loopback", "ordinary", "hosts"])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    found: Cluster = request.getfixturevalue(request.param)
    return found


def test_a_job_has_two_nodes_and_their_gpus(cluster: Cluster) -> None:
    asked = 'echo "$SLURMD_NODENAME $(id -un) $CUDA_VISIBLE_DEVICES"'
    lines = cluster.run("srun", "--nodes=2", f"--gpus-per-node={NUM_GPUS}", "sh", "-c", asked).splitlines()
    gpus = ",".join(map(str, range(NUM_GPUS)))
    assert sorted(lines) == [f"{node} {cluster.account.pw_name} {gpus}" for node in ("n1", "n2")]


def test_a_job_ends_with_its_exit_code(cluster: Cluster) -> None:
    assert cluster.wait_for(cluster.batch("#!/bin/sh\nexit 7\n"))["ExitCode"] == "7:0"


def test_hosts_share_the_clusters_folder_and_nothing_else(hosts: Hosts) -> None:
    folder = hosts.new_folder()
    hosts.run("sh", "-c", f"touch {folder}/shared /tmp/own /dev/shm/own", host="n1")
    assert hosts.run("ls", str(folder), "/tmp/own", "/dev/shm/own", host="n2", check=False).count("No such file") == 2
    assert (folder / "shared").exists()
    assert hosts.run("hostname", host="n2") == "n2"
    assert hosts.run("getent", "hosts", "n2", host="n2").split()[0] == "127.0.1.1"
    interfaces = hosts.run("ip", "-4", "-oneline", "addr", host="n2")
    assert ADDRESSES["n2"] in interfaces and ADDRESSES["n1"] not in interfaces
    assert hosts.run("ip", "route", "get", "1.1.1.1", host="n2", check=False).endswith("Network is unreachable")


def test_a_lost_node_takes_its_processes_along_and_comes_back_empty(hosts: Hosts) -> None:
    job = hosts.batch("#!/bin/sh\nsrun --nodes=2 sh -c 'touch /tmp/mine; exec sleep 600'\n", "--nodes=2")
    for node in ("n1", "n2"):
        hosts.wait_until(lambda node=node: any("sleep" in line for line in hosts.processes(node)), 30)
    hosts.lose("n2")
    assert hosts.job(job)["JobState"] == "RUNNING"  # SLURM has not noticed yet, and answers
    hosts.clear()
    assert hosts.processes("n2") == []
    assert set(hosts.run("sh", "-c", "ls /tmp", host="n2").split()) == hosts.shared_in_tmp
    hosts.wait_until(lambda: hosts.processes("n1") == [], 30, lambda: str(hosts.processes("n1")))


def test_nothing_is_left_of_a_cluster() -> None:
    cluster = Loopback()
    cluster.start()
    job = cluster.batch("#!/bin/sh\ntrap '' TERM\nsleep 600\n")
    cluster.wait_for(job, "RUNNING")
    cluster.stop()
    marks = [f"SLURM_CONF={cluster.folder}/slurm.conf".encode(), f"{cluster.folder}/".encode()]
    left = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                read = [Path(f"/proc/{process.pid}/{name}").read_bytes() for name in ("environ", "cmdline")]
                if any(mark in text for mark in marks for text in read):
                    left.append(process)
        except (psutil.Error, OSError):
            continue
    assert left == [] and not cluster.folder.exists()
