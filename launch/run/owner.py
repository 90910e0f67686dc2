"""One owner of a run folder: a lease that is taken before anything is written or removed in it.

The lease is the file `owner.lock` with the owner's host, process id and start time. Its modification time is the
heartbeat, which a thread renews every `LEASE_S` / 3 seconds; a clean end removes the file. The library `filelock` makes
it by exclusive creation, which holds across the hosts of a shared file system; `flock` may not.

    the owner lives on this host      refused at once, also where it is stopped and gives no heartbeat
    the owner was killed              taken over at once: no process has its id and start time
    the owner is on another host      taken over after `LEASE_S` without a heartbeat, refused otherwise
    it is of an earlier start of      taken over at once: SLURM has given that start up, although some of it may live,
    the same SLURM job                such as after the loss of its node's slurmd
"""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
from filelock import LeaseSettingsMismatch, OwnerRecord, SoftFileLease, Timeout

from launch.run.folder import RunFolder, RunFolderError, append_event

LEASE_S = 60.0
"""Seconds without a heartbeat after which an owner on another host counts as dead. Equal in every process that starts a
run in the folder."""
HERE_S = 1.0
"""Seconds to try before the owner is looked at: enough to notice that it was killed, and to take its place."""
DAMAGED_S = 5.0
"""Seconds to try where the file names no owner: `filelock` takes such a file, if it is not
empty, for left behind after 2 s."""


@contextlib.contextmanager
def owned(folder: RunFolder, say: Callable[[str], None], lease_s: float = LEASE_S) -> Iterator[None]:
    """Own `folder` until the block ends; a missing folder is made. Raises RunFolderError where another process owns it.

    `folder.claim` is then the lease's token, by which every process of the run sees whether the folder is still its
    own: a run that is stopped (SIGSTOP, a suspended machine) or cut off for longer than `LEASE_S` loses it when another
    host resumes it. `say` gets a line when this waits for another host, and when it takes over from a process that is
    gone. `lease_s` replaces `LEASE_S` in tests.
    """
    path = folder.path
    lease = SoftFileLease(folder.owner, lease_duration=lease_s, thread_local=False, poll_interval=0.1)
    made = not os.path.exists(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        former = lease.owner
        _acquire(folder, lease, say)
    except OSError as error:
        raise RunFolderError(
            f"the run folder {path} cannot be used: {error.strerror} ({error.filename or path}). Set run.dir to a "
            "folder that can be written"
        ) from None
    folder.claim = lease.token or ""
    try:
        if former is not None:
            say(f"taking over {path}: {_named(former)} ended without giving it back (killed?)")
            append_event(folder, "owner_replaced", host=former.hostname, pid=former.pid)
        yield
    finally:
        lease.release()
        if made:
            with contextlib.suppress(OSError):
                path.rmdir()  # it is empty where the start was refused


def refusal(folder: RunFolder, has_ended: Callable[[str], bool] = lambda job: False) -> str | None:
    """The sentence about a living owner of `folder`, for a command that must not work beside it; None without one.

    `has_ended`: whether the SLURM job with this id has ended; its processes have ended with it, whatever they left.
    """
    owner = SoftFileLease(folder.owner, lease_duration=LEASE_S).owner
    if owner is None:
        return None
    began = _began(folder, owner)
    if "slurm_job" in began and has_ended(str(began["slurm_job"])):
        return None
    try:
        beats = time.time() - folder.owner.stat().st_mtime < LEASE_S
    except FileNotFoundError:
        return None  # it has just ended
    return _refusal(folder, owner) if (_lives_here(owner) if _of_this_host(owner) else beats) else None


def _acquire(folder: RunFolder, lease: SoftFileLease, say: Callable[[str], None]) -> None:
    try:
        with contextlib.suppress(Timeout):
            lease.acquire(timeout=HERE_S)
            return
        owner = lease.owner
        if owner is None:  # removed in between, or damaged: by a full disk, by a power cut
            with contextlib.suppress(Timeout):
                lease.acquire(timeout=DAMAGED_S)
                return
        elif _is_given_up(folder, owner):
            say(f"{folder.path} is owned by {_named(owner)} of an earlier start of this SLURM job: it is taken over")
            folder.owner.unlink(missing_ok=True)
            with contextlib.suppress(Timeout):
                lease.acquire(timeout=HERE_S)
                return
        elif not _lives_here(owner):
            say(
                f"{folder.path} is owned by {_named(owner)}: waiting up to {lease.lease_duration:.0f} s for its "
                "heartbeat before it is taken over"
            )
            with contextlib.suppress(Timeout):
                lease.acquire(timeout=lease.lease_duration + 5 * HERE_S)
                return
    except LeaseSettingsMismatch as error:
        raise RunFolderError(f"another version of azr uses {folder.path}: {error}") from None
    raise RunFolderError(_refusal(folder, lease.owner))


def _is_given_up(folder: RunFolder, owner: OwnerRecord) -> bool:
    """Whether `owner` began under an earlier start of the SLURM job that this process belongs to."""
    began = _began(folder, owner)
    if not began.get("slurm_job"):
        return False
    restart = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    return bool(began["slurm_job"] == os.environ.get("SLURM_JOB_ID") and began["slurm_restart"] < restart)


def _began(folder: RunFolder, owner: OwnerRecord) -> dict[str, Any]:
    """The record of the attempt that `owner` began; empty where there is none."""
    attempt = folder.newest_attempt()
    began = attempt.began() if attempt is not None else {}
    return began if began.get("pid") == owner.pid else {}


def _lives_here(owner: OwnerRecord) -> bool:
    """Whether the owner is a living process of this host."""
    if not _of_this_host(owner):
        return False
    try:
        # One that was killed and whose parent has not asked for its end keeps its id.
        return bool(psutil.Process(owner.pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _of_this_host(owner: OwnerRecord) -> bool:
    """Whether the owner runs, or ran, here. The name of a host may have the process namespace after a `?`."""
    return bool(owner.hostname.partition("?")[0] == socket.gethostname().partition("?")[0])


def _named(owner: OwnerRecord) -> str:
    return f"process {owner.pid} on {owner.hostname.partition('?')[0]}"


def _refusal(folder: RunFolder, owner: OwnerRecord | None) -> str:
    """The message that says who owns the folder, and what to do."""
    who, beat = "another process", ""
    if owner is not None:
        began = _began(folder, owner)
        number = f"attempt {began['attempt']}, " if began else ""
        if number and "slurm_job" in began:
            number = f"SLURM job {began['slurm_job']}, {number}"
        since = f", since {began['time']}" if number else ""
        who = f"{number}{_named(owner)}{since}"
    with contextlib.suppress(OSError):
        beat = f" (last heartbeat {max(0.0, time.time() - folder.owner.stat().st_mtime):.0f} s ago)"
    return (
        f"{folder.path} is in use by {who}{beat}. Stop that run first (Ctrl-C, or kill -TERM on its host), or start "
        "another one with run.name=NAME. Only if that process is certainly gone: "
        f"rm {shlex.quote(str(folder.owner))}"
    )
