"""How the end of a driver is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launch.slurm.driver_process import DriverProcess


@pytest.mark.parametrize(
    ("act", "code", "told"),
    [
        ("exit 0", 0, "the run ended with exit code 0"),
        ("exit 130", 130, "the run ended with exit code 130: step 7"),
        ("echo FAILED: no space; echo its log; exit 1", 1, "the run ended with exit code 1: FAILED: no space"),
        ("kill -KILL $$", 137, "the run was killed by SIGKILL; the last line of its log: step 7"),
    ],
)
def test_a_driver_that_was_killed_is_told_from_one_that_ended(act: str, code: int, told: str, tmp_path: Path) -> None:
    driver = DriverProcess(["sh", "-c", f"echo step 7; {act}"], os.environ, tmp_path / "driver.log")
    driver.process.wait(60)
    assert (driver.exit_code, driver.told) == (code, told)
