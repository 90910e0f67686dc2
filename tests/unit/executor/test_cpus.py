"""The CPUs that a process may use: affinity, control groups, SLURM."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from executor.cpus import CoresError, allowed_cpus, pin

V1 = {"quota": "200000", "period": "100000"}


@pytest.fixture(autouse=True)
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))


def groups(tmp_path: Path, own: str, files: dict[str, str]) -> int:
    """`allowed_cpus` in the control groups `own`, with these files."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "own").write_text(own)
    return allowed_cpus(tmp_path, tmp_path / "own")


@pytest.mark.parametrize(
    ("own", "files", "cpus"),
    [
        ("0::/job/step\n", {"job/step/cpu.max": "max 100000\n", "job/cpu.max": "350000 100000\n"}, 3),
        ("0::/job/step\n", {"job/step/cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 16),
        ("0::/of/the/host\n", {"cpu.max": "400000 100000\n"}, 4),
        ("0::/job\n", {"job/cpu.max": "not a quota\n"}, 16),
        ("3:cpuset:/\n2:cpu,cpuacct:/job\n", {f"cpu,cpuacct/job/cpu.cfs_{n}_us": v for n, v in V1.items()}, 2),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 16),
    ],
)  # fmt: skip
def test_the_least_quota_of_the_own_control_groups_counts(
    tmp_path: Path, own: str, files: dict[str, str], cpus: int
) -> None:
    assert groups(tmp_path, own, files) == cpus


@pytest.mark.parametrize(("slurm", "cpus"), [("4", 4), ("64", 16), ("", 16), ("4(x2)", 16)])
def test_slurms_share_of_a_task_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, slurm: str, cpus: int) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", slurm)
    assert groups(tmp_path, "", {}) == cpus


@pytest.mark.slow
def test_a_learner_takes_no_more_threads_than_it_has_cpus() -> None:
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "import torch; from executor.cpus import allowed_cpus; from launch.run import assemble\n"
        "from launch.config import Config; from pathlib import Path\n"
        "class Stop(Exception): pass\n"
        "def stop(*_): raise Stop\n"
        "assemble.init_parallel = stop\n"
        "try: assemble.make_policy(Config(), Path('.'), 0, None, 1.0)\n"
        "except Stop: print(allowed_cpus(), torch.get_num_threads())"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["1", "1"]


def test_a_pinned_process_and_its_children_keep_to_their_cores() -> None:
    script = """
import os, subprocess, sys, threading
from executor.cpus import pin
one = max(os.sched_getaffinity(0))
ready, go = threading.Event(), threading.Event()
found = []
def look():
    ready.set()
    go.wait()
    found.append(os.sched_getaffinity(0))
thread = threading.Thread(target=look)
thread.start()
ready.wait()
pin([one])
go.set()
thread.join()
child = subprocess.check_output([sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"], text=True)
assert found == [{one}] and os.sched_getaffinity(0) == {one} and child.strip() == str({one}), (found, child)
pin([])
assert os.sched_getaffinity(0) == {one}
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_cores_that_are_not_there_are_named() -> None:
    with pytest.raises(CoresError, match=r"\[4095\].*learner.cpus and actors.cpus"):
        pin([4095])
