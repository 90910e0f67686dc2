"""The environment of a run's processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from launch.cluster.environment import VARIABLES, of_parts, set_variables

NICE = (
    "import os, logging; logging.basicConfig(); os.nice(5)\n"
    "from launch.cluster.environment import _take_niceness; _take_niceness()\n"
    "print(os.getpriority(os.PRIO_PROCESS, 0))"
)


def test_parts_get_what_the_user_has_set_and_the_rest_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, "AZR_CACHE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    set_variables()
    assert of_parts() == VARIABLES | {"OMP_WAIT_POLICY": "active"}
    monkeypatch.setenv("AZR_CACHE", "/shared/cache")
    assert of_parts()["AZR_CACHE"] == "/shared/cache"


def test_a_part_that_ray_made_nice_is_as_nice_as_ray_or_says_so() -> None:
    done = subprocess.run([sys.executable, "-c", NICE], capture_output=True, text=True, check=True)
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    assert int(done.stdout) == mine or "start Ray with RAY_worker_niceness=0" in done.stderr
