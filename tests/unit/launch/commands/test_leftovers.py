"""What `azr doctor` finds of killed runs: real sockets, semaphores and scratch folders."""

from __future__ import annotations

import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import pytest

from launch.doctor import leftovers as doctor
from launch.run import scratch


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for temporary files and one for shared memory; nothing of other runs on this machine."""
    monkeypatch.setattr(doctor, "scratch_base", lambda: tmp_path / "base")
    monkeypatch.setattr(doctor, "_orphans", list)
    (tmp_path / "shm").mkdir()
    return tmp_path


def found(folder: Path) -> list[str]:
    return [check.detail for check in doctor.leftovers(folder, folder / "shm").checks]


def test_nothing_is_left_by_runs_that_ended_well(nowhere: Path) -> None:
    assert found(nowhere) == ["killed runs have left nothing behind"]


def test_sockets_that_nobody_has_bound_are_named(nowhere: Path) -> None:
    def bind() -> socket.socket:
        bound = socket.socket(socket.AF_UNIX)
        here = os.getcwd()
        os.chdir(nowhere)  # the path of a socket is short
        try:
            bound.bind(str(nowhere / str(uuid.uuid4())) if len(str(nowhere)) < 60 else str(uuid.uuid4()))
        finally:
            os.chdir(here)
        return bound

    bind().close()
    (line,) = found(nowhere)
    assert line.startswith(f"1 of vLLM in {nowhere}") and "rm " in line


@pytest.mark.parametrize("name", ["sem.mp-stale", "psm_stale", "vllm_dist_0-tp_0-[0-1]-cpushm_0"])
def test_shared_memory_that_nobody_maps_is_named(nowhere: Path, name: str) -> None:
    used, stale = nowhere / "shm" / "sem.mp-used", nowhere / "shm" / name
    for path in (used, stale):
        path.write_bytes(b"\0" * 32)
    with used.open("r+b") as file, mmap.mmap(file.fileno(), 32):
        (line,) = found(nowhere)
    assert str(stale) in line and str(used) not in line


def test_the_scratch_folder_of_a_killed_run_is_named_until_the_run_starts_again(
    tmp_path: Path, nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs" / "killed"
    program = (
        "import sys, signal; from pathlib import Path; from launch.run import scratch\n"
        "scratch.scratch_base = lambda: Path(sys.argv[1])\n"
        "with scratch.scratch(Path(sys.argv[2])) as folder: print(folder, flush=True); signal.pause()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "base"), str(run)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        assert found(nowhere) == ["killed runs have left nothing behind"], "it lives"
        monkeypatch.setattr(scratch, "scratch_base", lambda: tmp_path / "base")
        with pytest.raises(scratch.ScratchError, match="in use"), scratch.scratch(run):
            pass
        process.send_signal(signal.SIGKILL)
    (line,) = found(nowhere)
    assert line == f"of {run}. To remove it: rm -r {folder}"
    with scratch.scratch(run) as again:
        assert again == folder and sorted(path.name for path in again.iterdir()) == ["owner", "tmp"]
    assert not folder.exists()


def test_a_folder_that_others_can_enter_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "scratch_base", lambda: tmp_path / "base")
    (tmp_path / "base").mkdir(mode=0o755)
    with pytest.raises(scratch.ScratchError, match="rm -r"), scratch.scratch(tmp_path / "run"):
        pass


def test_sockets_have_short_paths_wherever_temporary_files_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    longest = "ray/session_2026-11-27_08-29-04_123456_1234567/sockets/plasma_store"
    for folder in ("/tmp", "/scratch/" + "x" * 200):
        monkeypatch.setattr("tempfile.gettempdir", lambda folder=folder: folder)
        assert len(str(scratch.scratch_of(tmp_path) / longest)) < 107


def test_temporary_files_of_a_process_and_its_children_can_be_gathered(tmp_path: Path) -> None:
    with scratch.temporary_files(tmp_path), tempfile.NamedTemporaryFile() as own:
        program = "import tempfile; print(tempfile.gettempdir())"
        child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert Path(own.name).parent == Path(child.stdout.strip()) == tmp_path
    assert tempfile.gettempdir() != str(tmp_path)
