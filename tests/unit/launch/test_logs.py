"""The logs of processes: one format, mergeable by time, levels as the run says."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from launch import logs
from launch.run.folder import RunFolder, append_event

LINE = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) (\S+) (\S+) (\d+) ([A-Z]+) (\S+): (.*)")


@pytest.fixture(autouse=True)
def levels() -> Iterator[None]:
    """Logging as it was, after each test."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    before = {name: logging.getLogger(name).level for name in logs.PACKAGES}
    yield
    for handler in [one for one in root.handlers if one not in handlers]:
        root.removeHandler(handler)
        handler.close()
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


def fields(line: str) -> tuple[str, ...]:
    match = LINE.fullmatch(line)
    assert match, f"not in the format: {line!r}"
    return match.groups()


def test_a_line_says_when_where_and_which_process(tmp_path: Path) -> None:
    started = datetime.now(UTC)
    logs.log_to_file(tmp_path / "log", "rollout3.1", "info")
    logging.getLogger("actors.rollout").warning("version %d failed", 7)
    when, host, process, pid, level, module, message = fields((tmp_path / "log").read_text().strip())
    assert 0 <= (datetime.fromisoformat(when) - started).total_seconds() + 0.001 < 60, "in UTC"
    assert (host, process, pid) == (os.uname().nodename, "rollout3.1", str(os.getpid()))
    assert (level, module, message) == ("WARNING", "actors.rollout", "version 7 failed")


def test_each_line_of_a_traceback_has_all_fields_so_that_sorting_keeps_it_whole(tmp_path: Path) -> None:
    logs.log_to_file(tmp_path / "log", "learner0.0", "info")
    log = logging.getLogger("launch.cluster")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("the learner failed")
    lines = (tmp_path / "log").read_text().splitlines()
    assert len({fields(line)[:6] for line in lines}) == 1
    text = [fields(line)[-1] for line in lines]
    assert (
        text[0] == "the learner failed"
        and text[1].startswith("Traceback")
        and text[-2:] == ["ValueError: two", "lines"]
    )


def test_the_logs_of_two_processes_merge_by_time(tmp_path: Path) -> None:
    written = []
    for number in range(6):
        process = ("driver.0", "learner0.0")[number % 2]
        logs.log_to_file(tmp_path / f"{process}.log", process, "info")
        logging.getLogger("launch").info("number %d", number)
        written.append(f"number {number}")
        while (
            datetime.now(UTC).microsecond // 1000
            == datetime.fromisoformat(fields((tmp_path / f"{process}.log").read_text().splitlines()[-1])[0]).microsecond
            // 1000
        ):
            pass  # the next one is of another millisecond
    files = sorted(str(path) for path in tmp_path.iterdir())
    merged = subprocess.run(["sort", "-s", "-k1,1", *files], capture_output=True, text=True, check=True).stdout
    assert [fields(line)[-1] for line in merged.splitlines()] == written


def test_the_level_is_of_this_project_alone(tmp_path: Path) -> None:
    logs.log_to_file(tmp_path / "log", "driver.0", "debug")
    for name in ("learner.loop", "urllib3"):
        logging.getLogger(name).debug("a detail")
        logging.getLogger(name).error("an error")
    logs.log_to_file(tmp_path / "log", "driver.0", "error")
    logging.getLogger("learner.loop").warning("a warning")
    found = [fields(line)[4:6] for line in (tmp_path / "log").read_text().splitlines()]
    assert found == [("DEBUG", "learner.loop"), ("ERROR", "learner.loop"), ("ERROR", "urllib3")]


def test_every_event_is_in_the_log_of_the_process_that_wrote_it(tmp_path: Path) -> None:
    logs.log_to_file(tmp_path / "log", "buffer.0", "info")
    append_event(RunFolder(tmp_path), "seeds_loaded", file="a b.jsonl")
    assert fields((tmp_path / "log").read_text().strip())[-1] == 'event seeds_loaded {"file": "a b.jsonl"}'


ACTOR = """
import logging, subprocess, sys
from pathlib import Path
from launch.run.folder import RunFolder, log_to
folder = RunFolder(Path(sys.argv[1]))
folder.create()
log_to(folder, "rollout0", 2, "info")
logging.getLogger("actors.rollout").info("seeding")
print("printed by a library", flush=True)
subprocess.run([sys.executable, "-c", "print('of a child')"])
"""


def test_an_actors_log_has_its_records_and_all_output_of_it_and_its_children(tmp_path: Path) -> None:
    for life in range(2):  # the same attempt again, as after --resume: what is there stays
        done = subprocess.run([sys.executable, "-c", ACTOR, str(tmp_path)], capture_output=True, text=True, check=True)
        assert done.stdout + done.stderr == "", life
    lines = (tmp_path / "logs" / "rollout0.2.log").read_text().splitlines()
    assert len(lines) == 8
    for start in (0, 4):
        first, second = (fields(line) for line in lines[start : start + 2])
        assert first[2:5] == ("rollout0.2", first[3], "INFO") and first[-1].startswith("the process starts: azr ")
        assert second[2:] == ("rollout0.2", first[3], "INFO", "actors.rollout", "seeding")
        assert lines[start + 2 : start + 4] == ["printed by a library", "of a child"]


def test_a_log_that_cannot_be_written_stops_nothing_and_a_closed_one_is_left_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "logs" / "driver.0.log"
    file.parent.mkdir()
    logs.log_to_file(file, "driver.0", "info")
    logging.getLogger("actors.rollout").info("one")
    # As libraries do that configure logging for themselves.
    logging.shutdown([weakref.ref(handler) for handler in logging.getLogger().handlers if handler.get_name() == "azr"])
    shutil.rmtree(file.parent)
    logging.getLogger("actors.rollout").info("two")
    assert "FileNotFoundError" in capfd.readouterr().err, "it is said, and the caller goes on"
    file.parent.mkdir()
    logging.getLogger("actors.rollout").info("three")
    assert [line.split(": ")[-1] for line in file.read_text().splitlines()] == ["three"]
    logs.close_log()
    logging.getLogger("actors.rollout").info("four")
    assert "four" not in file.read_text()


def test_a_full_disk_costs_the_log_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", True)
    logs.log_to_file(Path("/dev/full"), "driver.0", "info")
    for _ in range(3):
        logging.getLogger("launch").info("a line")
    logs.close_log()
    assert re.fullmatch(r"azr: the log /dev/full cannot be written: .*No space left.*\n", capsys.readouterr().err)
