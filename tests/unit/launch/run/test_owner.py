"""One owner of a run folder: real processes that hold it, are killed, stopped, or are on another host."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from launch.config import Config
from launch.run.attempt import Origin, begin
from launch.run.folder import OwnerLost, RunFolder, RunFolderError, append_event
from launch.run.owner import owned, refusal
from tests.waiting import wait_until

PROGRAM = """
import sys
from pathlib import Path
from launch.run.folder import RunFolder, RunFolderError
from launch.run.owner import owned
try:
    with owned(RunFolder(Path(sys.argv[1])), print, lease_s=float(sys.argv[2])):
        print("owned", flush=True)
        sys.stdin.readline()
except RunFolderError as error:
    print("refused", error, flush=True)
"""
LEASE_S = 1.5


def start(folder: Path) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", PROGRAM, str(folder), str(LEASE_S)]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@contextmanager
def owner(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that owns `folder` until the block ends."""
    process = start(folder)
    try:
        assert process.stdout and process.stdout.readline() == "owned\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def own(folder: Path, said: Callable[[str], None] = lambda text: None) -> None:
    with owned(RunFolder(folder), said, LEASE_S):
        pass


def test_of_several_starts_at_once_one_owns_the_folder(tmp_path: Path) -> None:
    processes = [start(tmp_path / "run") for _ in range(4)]
    first = [process.stdout.readline() for process in processes if process.stdout]
    for process in processes:
        process.communicate("\n")
    assert [line.split()[0] for line in sorted(first)] == ["owned", "refused", "refused", "refused"]


def test_a_folder_that_is_in_use_is_refused_with_its_owner_and_what_to_do(tmp_path: Path) -> None:
    with owner(tmp_path) as process, pytest.raises(RunFolderError) as caught:
        own(tmp_path)
    for words in (f"process {process.pid} on {os.uname().nodename}", "heartbeat", "run.name=NAME", f"rm {tmp_path}"):
        assert words in str(caught.value)


@pytest.mark.slow
def test_an_owner_that_is_stopped_here_is_never_taken_for_dead(tmp_path: Path) -> None:
    with owner(tmp_path) as process:
        process.send_signal(signal.SIGSTOP)
        lock = RunFolder(tmp_path).owner
        wait_until(lambda: time.time() - lock.stat().st_mtime > 2 * LEASE_S)
        with pytest.raises(RunFolderError, match="in use"):
            own(tmp_path)


def test_the_folder_of_an_owner_that_was_killed_is_taken_over_at_once(tmp_path: Path) -> None:
    with owner(tmp_path) as process:
        process.kill()
        process.wait()
        said: list[str] = []
        own(tmp_path, said.append)
    assert f"process {process.pid} on" in said[0] and "killed?" in said[0]
    assert f'"pid": {process.pid}' in RunFolder(tmp_path).events.read_text()
    own(tmp_path, said.append)
    assert len(said) == 1, "it was given back"


def test_an_owner_that_was_killed_and_is_not_reaped_is_taken_for_dead(tmp_path: Path) -> None:
    with owner(tmp_path) as process:
        process.kill()
        wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
        said: list[str] = []
        own(tmp_path, said.append)
    assert "waiting up to" in said[0] and "taking over" in said[1]


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"\0" * 9, b"n1\n"], ids=["zeros", "cut"])
def test_a_file_that_names_no_owner_any_more_is_taken_over(tmp_path: Path, content: bytes) -> None:
    folder = RunFolder(tmp_path)
    folder.owner.write_bytes(content)
    with owned(folder, print, lease_s=LEASE_S):
        assert folder.owner.read_bytes() != content


def test_it_is_given_back_after_an_error_and_an_empty_folder_is_not_left_behind(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a" / "run")
    with pytest.raises(ZeroDivisionError), owned(folder, lambda text: None):
        raise ZeroDivisionError
    assert list((tmp_path / "a").iterdir()) == []


@pytest.mark.parametrize("lives", [True, False])
@pytest.mark.slow
def test_an_owner_on_another_host_is_known_by_its_heartbeat(tmp_path: Path, lives: bool) -> None:
    folder = RunFolder(tmp_path)
    elsewhere = f"filelock/2\npid={os.getpid()}\nhost=elsewhere\nmode=lease\ntoken={'a' * 32}\nduration={LEASE_S}\n"
    folder.owner.write_text(elsewhere)
    done = threading.Event()

    def beat() -> None:
        while not done.wait(LEASE_S / 15):
            folder.owner.touch()

    heart = threading.Thread(target=beat)
    if lives:
        heart.start()
    said: list[str] = []
    try:
        if lives:
            with pytest.raises(RunFolderError, match="on elsewhere"):
                own(tmp_path, said.append)
        else:
            own(tmp_path, said.append)
    finally:
        done.set()
        if lives:
            heart.join()
    assert "waiting up to" in said[0]
    assert len(said) == (1 if lives else 2)


def test_an_owner_that_has_lost_the_folder_finds_out(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with owned(folder, lambda text: None, 0.3):
        folder.check_owner()
        folder.owner.unlink()

        def lost() -> bool:
            try:
                folder.check_owner()
            except OwnerLost as error:
                return "writes nothing more" in str(error)
            return False

        wait_until(lost)


@pytest.mark.parametrize("place", ["file/run", "/proc/foo/run"])
def test_a_folder_that_cannot_be_made_is_an_error_with_the_reason(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"cannot be used: .*run\.dir"):
        own(tmp_path / place)


REPLACED = """
import subprocess, sys
from pathlib import Path
from launch.run.folder import RunFolder
from launch.run.interrupts import listening
from launch.run.owner import owned
folder = RunFolder(Path(sys.argv[1]))
with listening() as interrupts, owned(folder, print, lease_s=float(sys.argv[2])):
    interrupts.loss = folder.loss
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    print(child.pid, flush=True)
    sys.stdin.readline()
"""


@pytest.mark.slow
def test_an_owner_that_comes_back_after_another_host_took_over_ends_with_all_its_processes(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    arguments = [sys.executable, "-c", REPLACED, str(tmp_path), str(LEASE_S)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = psutil.Process(int(process.stdout.readline()))
        process.send_signal(signal.SIGSTOP)
        seen_from_elsewhere(folder)
        with owned(folder, lambda text: None, LEASE_S):
            process.send_signal(signal.SIGCONT)
            assert process.wait(60) == 1
            wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
            folder.check_owner()
            assert folder.owner.exists(), "it is the other one's now"


def seen_from_elsewhere(folder: RunFolder) -> None:
    """Make the owner's record that of a process on another host, as a second host would see it."""
    lines = folder.owner.read_text().splitlines(keepends=True)
    folder.owner.write_text("".join("host=elsewhere\n" if line.startswith("host=") else line for line in lines))


def test_a_process_of_a_run_writes_no_event_once_another_run_owns_the_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with owned(folder, lambda text: None, 60.0):
        rank = pickle.loads(pickle.dumps(folder.absolute()))
        append_event(rank, "first")
        folder.owner.write_text(folder.owner.read_text().replace(folder.claim, "0" * 32))
        append_event(rank, "second")
        with pytest.raises(OwnerLost, match="writes nothing more"):
            rank.check_owner()
    assert [json.loads(line)["event"] for line in folder.events.read_text().splitlines()] == ["first"]


def test_a_run_on_slurm_is_refused_with_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    folder = RunFolder(tmp_path)
    with owned(folder, lambda text: None, LEASE_S):
        begin(Config(), folder, Origin())
        with pytest.raises(RunFolderError, match="in use by SLURM job 4711, attempt 1, process"):
            own(tmp_path)
        assert "in use by SLURM job 4711" in str(refusal(folder, lambda job: False))
        assert refusal(folder, {"4711": True}.__getitem__) is None


@pytest.mark.parametrize(("job", "restart", "taken"), [("4711", "1", True), ("4711", "0", False), ("4712", "1", False)])
def test_a_later_start_of_the_same_slurm_job_takes_over_from_an_owner_that_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str, restart: str, taken: bool
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    folder = RunFolder(tmp_path)
    with owned(folder, lambda text: None, LEASE_S):
        begin(Config(), folder, Origin())
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_RESTART_COUNT", restart)
        said: list[str] = []
        if taken:
            own(tmp_path, said.append)
            assert "earlier start of this SLURM job" in said[0]
            with pytest.raises(OwnerLost):
                folder.check_owner()
        else:
            with pytest.raises(RunFolderError, match="in use by SLURM job 4711"):
                own(tmp_path, said.append)
            folder.check_owner()
