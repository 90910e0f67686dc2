"""A run's scratch folder: sockets and temporary files of its processes on the driver's machine, removed when it ends.

    /tmp/azr-<uid>/<digest of the run folder's path>/
        owner       locked (flock) while the run's driver lives
        tmp/        TMPDIR of the run's processes, with vLLM's sockets
        ray/        Ray's session: its sockets and its own logs

It is not in the run folder, because the path of a socket is limited to 107 bytes and shared file systems have no
sockets. A driver that is killed leaves it behind; the next start of the run removes it, and `azr doctor` names it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from executor.user_error import UserError

LONGEST = 24
"""Longest folder for temporary files in which Ray's sockets still have paths of less than 107 bytes."""


class ScratchError(UserError):
    """The folder for sockets cannot be used; the message says what to do."""


def scratch_base() -> Path:
    """The folder of this user's scratch folders: in the one for temporary files, or in `/tmp` if that path is long."""
    folder = tempfile.gettempdir()
    return Path(folder if len(folder) <= LONGEST else "/tmp") / f"azr-{os.getuid()}"


def scratch_of(run: Path) -> Path:
    """The scratch folder of the run in folder `run`."""
    return scratch_base() / hashlib.blake2b(str(run.resolve()).encode(), digest_size=6).hexdigest()


@contextlib.contextmanager
def scratch(run: Path) -> Iterator[Path]:
    """Make the scratch folder of the run in folder `run`, and remove it at the end. Raises ScratchError."""
    folder = scratch_of(run)
    try:
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        check_private(folder.parent)
        if is_used(folder):
            raise ScratchError(f"{folder} is in use: another process runs {run.resolve()}")
        remove(folder)
        (folder / "tmp").mkdir(mode=0o700, parents=True)
        lock = os.open(folder / "owner", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(lock, f"{run.resolve()}\n".encode())
    except OSError as error:
        raise ScratchError(
            f"the folder for sockets, {folder}, cannot be made: {error.strerror}. Set TMPDIR to a folder on a local "
            "disk"
        ) from None
    try:
        yield folder
    finally:
        remove(folder)
        os.close(lock)


@contextlib.contextmanager
def environment(**values: str | None) -> Iterator[None]:
    """Set variables of the environment, or remove those that are None, until the block ends."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


@contextlib.contextmanager
def temporary_files(folder: Path) -> Iterator[None]:
    """Have this process and those that it starts keep their temporary files in `folder`, until the block ends."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        with environment(TMPDIR=str(folder)):
            yield
    finally:
        tempfile.tempdir = before


def is_used(folder: Path) -> bool:
    """Whether the driver of the run with this scratch folder lives."""
    try:
        lock = os.open(folder / "owner", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False


def remove(folder: Path) -> None:
    """Remove a scratch folder, as far as that is possible; processes that are about to end may still write to it."""
    for _ in range(3):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            break


def check_private(folder: Path) -> None:
    """Raise ScratchError if another user can enter `folder`."""
    found = folder.stat()
    if found.st_uid != os.getuid():
        raise ScratchError(f"{folder} belongs to another user: set TMPDIR to a folder of your own on a local disk")
    if found.st_mode & 0o077:
        raise ScratchError(
            f"{folder} can be entered by others: remove it (rm -r {folder}); it is made again, mode 0700"
        )


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
