"""The folder of a study: its paths, and that its definition stays what it was when the first run began."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from launch.json_lines import to_json
from launch.run.folder import RunFolder
from launch.study.definition import PUT_BACK, Study, StudyError, StudyRun, differences, explain, read_study
from launch.whole_file import write_text


def now() -> str:
    """The time, UTC, as the files of a study have it."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())


class StudyFolder:
    """The paths of one study."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.definition = path / "study.toml"
        self.recipe = path / "recipe.toml"
        self.began = path / "began.json"
        self.runs = path / "runs"
        self.results = path / "results"
        self.logs = path / "logs"
        self.page = path / "report.md"
        self.notes = path / "notes.md"
        """What a person has to say about the study, in Markdown; stands on the page."""

    def run(self, run: StudyRun) -> RunFolder:
        """The folder of a run."""
        return RunFolder(self.runs / run.name)

    def result(self, run: StudyRun) -> Path:
        """The result file of a run; it is written when the run has ended."""
        return self.results / f"{run.name}.json"

    def log(self, run: StudyRun) -> Path:
        """What `azr train` printed."""
        return self.logs / f"{run.name}.log"

    def read_notes(self) -> str:
        """The notes; empty where there are none. Raises StudyError."""
        try:
            return self.notes.read_text().strip()
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError) as error:
            raise StudyError(f"{self.notes} cannot be read: {error}") from None

    def command_line(self, what: Literal["resume", "report"]) -> str:
        """The command line that goes on with the study, or writes its page."""
        return f"azr study {what} {shlex.quote(str(self.path))}"

    def read(self) -> Study:
        """The study, unchanged since its first run. Raises StudyError."""
        study = read_study(self.definition)
        if began := self.read_began():
            try:
                former = Study.model_validate(began["study"])
            except ValidationError as error:
                raise StudyError(
                    f"{self.began} holds no study that this azr knows ({explain(error.errors()[0])}): go on with the "
                    "azr that began it"
                ) from None
            if changed := differences(former, study):
                raise StudyError(
                    f"{self.definition} was changed after the first run, which began {began['time']}: "
                    f"{'; '.join(changed.values())}. What was written before the first run holds: put it back. "
                    f"{another(study)}"
                )
        with self.usable():
            same = not self.recipe.exists() or digest(self.recipe) == study.recipe_sha256
        if not same:
            raise StudyError(
                f"{self.recipe} is not the recipe that the study was written with: its runs would not be comparable. "
                f"Put it back. {another(study)}"
            )
        return study

    def read_began(self) -> dict[str, Any] | None:
        """When the first run began, and the study as it was then; None before that. Raises StudyError."""
        try:
            found = json.loads(self.began.read_text())
            if not isinstance(found, dict) or not {"time", "study"} <= found.keys():
                raise ValueError("it has no time and study")
        except FileNotFoundError:
            if any(self.results.glob("*.json")):
                raise StudyError(
                    f"{self.began} is gone, which says what the study was when its first run began. {PUT_BACK}"
                ) from None
            return None
        except (OSError, ValueError) as error:
            raise StudyError(
                f"{self.began}, which says what the study was when its first run began, cannot be read: {error}. "
                f"{PUT_BACK}"
            ) from None
        return found

    def begin(self, study: Study) -> None:
        """Note that the first run begins now, with this definition; later calls change nothing."""
        if not self.began.exists():
            with self.usable():
                self.results.mkdir(exist_ok=True)
                record = {"time": now(), "study": study.model_dump(mode="json")}
                write_text(self.began, to_json(record, indent=1) + "\n")

    @contextlib.contextmanager
    def usable(self) -> Iterator[None]:
        """Raise StudyError for an OSError in the block: something in the folder cannot be read or written."""
        try:
            yield
        except OSError as error:
            raise StudyError(
                f"{error.filename2 or error.filename or self.path} cannot be read or written: {error.strerror}. It has "
                "to be of the right kind, file or folder, and open to this user, and the disk must have room"
            ) from None


def another(study: Study) -> str:
    """The sentence that says how to start another study."""
    arms = " ARMS" if study.study == "arms" else ""
    return f"Start another study: azr study {study.study} {shlex.quote(study.recipe)}{arms} --out FOLDER ..."


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
