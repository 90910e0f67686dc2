"""Checkpoints of a run: written beside training; a folder appears complete under its final name, or not at all.

- `.partial_00000012/`: being written; a kill leaves it, and the next start removes it
- `step_00000012/`: complete: every file is on the disk, and `complete.json` lists them with their sizes
- `.replaced_00000012/`: the former one, while a new one of the same version takes its name
- `broken_00000012/`: found incomplete at a start; left for a person to look at
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from executor.user_error import UserError
from learner.disk import matches, sync
from learner.ranks import Ranks
from learner.trajectory import Trajectory, dumps, loads

FORMAT = 2
"""Version of the folder's format. Format 1 had no `complete.json` and held a torch file for each rank."""
MARKER = "complete.json"
WRITE_TIMEOUT = timedelta(minutes=30)
"""Deadline of a rank that waits for the other ranks' part of a checkpoint."""

Finish = Callable[["dist.ProcessGroup | None"], None]
"""The slow part of a write, which a thread does beside training. Collective over the given group (None: one rank), and
over no other."""


class CheckpointError(UserError):
    """A checkpoint that cannot be written or read; the message names it and says what to do."""


class Checkpoints:
    """The folder `checkpoints/` of a run; keeps the newest `keep` checkpoints."""

    def __init__(
        self,
        directory: Path,
        keep: int,
        on_complete: Callable[[int, float], object] = lambda version, seconds: None,
        check_owner: Callable[[], object] = lambda: None,
    ) -> None:
        """`on_complete` is called on rank 0 with the version and the seconds that it took, once a checkpoint is
        complete; on the thread that writes it. `check_owner` is called before a rank writes, and before a checkpoint
        gets its name; it raises where the folder belongs to another run by now."""
        self._check_owner = check_owner
        self.directory = directory
        self._on_complete = on_complete
        self._keep = keep
        self._group: dist.ProcessGroup | None = None
        self._writer: threading.Thread | None = None
        self._failure: tuple[Path, BaseException] | None = None

    def latest(self) -> Path | None:
        """Return the newest complete checkpoint, or None. Raises CheckpointError for one of another format."""
        return next((folder for folder in self._newest_first() if defect(folder) is None), None)

    def recover(self) -> list[str]:
        """Clean up after a kill, before a run goes on; returns sentences for the user.

        Incomplete checkpoints newer than the newest complete one move to `broken_*`. Raises CheckpointError if only
        incomplete ones are left, or if the newest has another format.
        """
        for replaced in matches(self.directory, r"\.replaced_\d{8}"):
            final = self.directory / f"step_{replaced.name.removeprefix('.replaced_')}"
            if defect(replaced) is None and (not final.exists() or defect(final) is not None):
                shutil.rmtree(final, ignore_errors=True)
                replaced.rename(final)
        for left in matches(self.directory, r"\.(partial|replaced|deleted)_.*"):
            if left.is_dir():
                shutil.rmtree(left)
        bad = []
        for folder in self._newest_first():
            why = defect(folder)
            if why is None:
                break
            bad.append((folder, why))
        else:
            if bad:
                told = "; ".join(f"{folder}: {why}" for folder, why in bad)
                raise CheckpointError(
                    f"no complete checkpoint is left to go on from ({told}). To begin at step 1 again, add --start-over"
                )
            return []
        notices = []
        for broken, why in bad:
            name = broken.name.replace("step_", "broken_")
            number = len(list(self.directory.glob(f"{name}*")))  # of earlier ones of this version, which stay
            aside = self.directory / (f"{name}.{number + 1}" if number else name)
            broken.rename(aside)
            notices.append(f"checkpoint {broken} is incomplete ({why}), now {aside.name}; going on from {folder.name}")
        return notices

    def save(self, version: int, ranks: Ranks, write: Callable[[Path], Finish | None]) -> None:
        """Start to write the checkpoint of `version`. Collective over the ranks.

        `write(folder)` writes or copies at once what training will change, and returns the rest of the work, which a
        thread does. Once every rank is done, rank 0 gives the folder its name. Waits for the previous checkpoint, and
        raises CheckpointError if that one failed.
        """
        self.wait()
        self._check_owner()
        began = time.monotonic()
        if ranks.world_size > 1 and self._group is None:
            # Apart from training's groups, whose collectives must not come between this one's.
            self._group = dist.new_group(backend="gloo", timeout=WRITE_TIMEOUT)
        partial = self.directory / f".partial_{version:08d}"
        if ranks.is_main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        ranks.barrier()  # nobody writes before the folder is there
        finish = write(partial)
        # Not a daemon: a run that ends by an exception still completes what it has begun.
        self._writer = threading.Thread(
            target=self._complete, args=(version, partial, ranks.is_main, finish, began), name=f"checkpoint {version}"
        )
        self._writer.start()

    def wait(self) -> None:
        """Wait for the checkpoint that is being written. Raises CheckpointError on every rank if it failed on one."""
        self.join()
        if self._failure is not None:
            (folder, error), self._failure = self._failure, None
            raise CheckpointError(f"the checkpoint {folder} could not be written: {error}") from error

    def join(self) -> None:
        """Wait for the checkpoint that is being written, without an error if it failed."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def _complete(self, version: int, partial: Path, is_main: bool, finish: Finish | None, began: float) -> None:
        final = self.directory / f"step_{version:08d}"
        try:
            self._together(lambda: finish(self._group) if finish is not None else None)
            self._together(lambda: self._name(version, partial, final) if is_main else None)
            if is_main:
                self._on_complete(version, time.monotonic() - began)
        except Exception as error:
            self._failure = (final, error)

    def _together(self, work: Callable[[], None]) -> None:
        """Do this rank's work; raises on every rank if it failed on one."""
        error: Exception | None = None
        try:
            work()
        except Exception as caught:
            error = caught
        if self._group is not None:
            failed = torch.tensor([error is not None], dtype=torch.int32)
            dist.all_reduce(failed, group=self._group)
            if error is None and int(failed):
                error = CheckpointError("another learner rank failed to write its part; its log says why")
        if error is not None:
            raise error

    def _name(self, version: int, partial: Path, final: Path) -> None:
        """Bring everything to the disk, give the folder its name, and remove what is beyond `keep`."""
        self._check_owner()
        seal(partial, version)
        for path in [*partial.rglob("*"), partial]:
            sync(path)
        replaced = self.directory / f".replaced_{version:08d}"
        if final.exists():
            final.rename(replaced)
        partial.rename(final)
        sync(self.directory)
        shutil.rmtree(replaced, ignore_errors=True)
        others = [folder for folder in self._newest_first() if folder != final and defect(folder) is None]
        for old in others[self._keep - 1 :]:
            # By a name that no start takes for a checkpoint: a kill amid the deletion would leave half of one.
            deleted = self.directory / f".deleted_{old.name}"
            old.rename(deleted)
            shutil.rmtree(deleted)

    def _newest_first(self) -> list[Path]:
        return [folder for folder in reversed(matches(self.directory, r"step_\d{8}")) if folder.is_dir()]


def seal(folder: Path, version: int) -> None:
    """Write `complete.json` into `folder`: all its files with their sizes. That makes the checkpoint complete."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    (folder / MARKER).write_text(json.dumps({"format": FORMAT, "version": version, "files": sizes}, allow_nan=False))


def defect(folder: Path) -> str | None:
    """Return what `folder` lacks of a complete checkpoint, in words, or None. Raises CheckpointError for another
    format."""
    try:
        marker = json.loads((folder / MARKER).read_text())
        found, version, files = marker["format"], int(marker["version"]), dict(marker["files"])
    except FileNotFoundError:
        if any((folder / "model").glob("rank_*.pt")):
            raise CheckpointError(_other_format(folder, 1)) from None
        return f"it has no {MARKER}"
    except (ValueError, KeyError, TypeError):
        return f"its {MARKER} cannot be read"
    if found != FORMAT:
        raise CheckpointError(_other_format(folder, found))
    if f"{version:08d}" != folder.name.rpartition("_")[2]:
        return f"it is that of step {version}, under another name"
    for name, size in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
    return None


def unloadable(folder: Path, error: Exception) -> CheckpointError:
    """The error for a complete checkpoint that cannot be loaded, because of `error`."""
    return CheckpointError(
        f"the checkpoint {folder} cannot be loaded ({type(error).__name__}: {error}). If its files are damaged, move "
        "it away: the run then goes on from the one before"
    )


def write_stream_state(directory: Path, gate_state: dict[str, Any], queued: Sequence[Trajectory]) -> None:
    """Write the gate's state (`gate.json`) and the queued trajectories (`queue.msgpack`) into `directory`."""
    (directory / "gate.json").write_text(json.dumps(gate_state, allow_nan=False))
    (directory / "queue.msgpack").write_bytes(dumps(queued))


def read_stream_state(directory: Path) -> tuple[dict[str, Any], list[Trajectory]]:
    """Read what `write_stream_state` wrote: (the gate's state, queued trajectories)."""
    return json.loads((directory / "gate.json").read_text()), loads((directory / "queue.msgpack").read_bytes())


def _other_format(folder: Path, found: Any) -> str:
    return (
        f"{folder} is a checkpoint of format {found}; this azr reads format {FORMAT}. Go on with the azr that wrote "
        f"it, or start a new run from its weights: model.path={folder / 'hf'}"
    )
