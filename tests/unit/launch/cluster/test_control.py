"""The run's control socket: real sockets, both ends."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from launch.addresses import LOOPBACK, free_port
from launch.cluster import control
from launch.run.folder import RunFolder
from learner.stream.keys import KeyPair


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "runs" / "first"
    run.mkdir(parents=True)
    return run


@pytest.fixture
def server(run: Path) -> Iterator[list[int]]:
    asked: list[int] = []

    def scale(request: Any) -> dict[str, int]:
        actors = int(request["actors"])
        if actors < 1:
            raise ValueError("at least 1 actor")
        asked.append(actors)
        return {"actors": actors}

    server = control.ControlServer(run, {"scale": scale}, LOOPBACK, attempt=3)
    yield asked
    server.close()
    assert not RunFolder(run).control.exists()


def endpoint(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RunFolder(run).control.read_text())
    return found


def ask(run: Path, data: bytes, pair: KeyPair | None) -> bytes | None:
    """The raw answer to raw data from an asker with these keys, or with none; None where none comes."""
    found = endpoint(run)
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        if pair is not None:
            socket.curve_publickey, socket.curve_secretkey = pair.public, pair.secret
            socket.curve_serverkey = found["driver_key"].encode()
        socket.connect(found["address"])
        socket.send(data)
        known = pair is not None and pair.public.decode() == found["public_key"]
        return socket.recv() if socket.poll(10_000 if known else 500) else None


def test_a_request_is_answered(run: Path, server: list[int]) -> None:
    assert control.ask(run, "scale", actors=3) == {"actors": 3}
    assert server == [3]


def test_a_refusal_says_why(run: Path, server: list[int]) -> None:
    with pytest.raises(control.ControlError, match="at least 1 actor"):
        control.ask(run, "scale", actors=0)
    with pytest.raises(control.ControlError, match="this run knows scale"):
        control.ask(run, "dance")
    with pytest.raises(control.ControlError, match="actors"):
        control.ask(run, "scale")


def test_nonsense_does_not_end_it(run: Path, server: list[int]) -> None:
    found = endpoint(run)
    asker = KeyPair(found["public_key"].encode(), found["secret_key"].encode())
    for nonsense in (b"", b"\xff", b"[1]", b'{"do": []}', b"[" * 5000):
        answer = ask(run, nonsense, asker)
        assert answer is not None and b'"ok": false' in answer
    assert control.ask(run, "scale", actors=2) == {"actors": 2}


@pytest.mark.parametrize("pair", [None, KeyPair.make()], ids=["no keys", "foreign keys"])
def test_who_has_not_the_runs_keys_gets_no_answer(run: Path, server: list[int], pair: KeyPair | None) -> None:
    assert ask(run, b'{"do": "scale", "actors": 9}', pair) is None
    assert server == []
    assert control.ask(run, "scale", actors=2) == {"actors": 2}


def test_its_file_is_private_and_one_that_is_not_is_refused(run: Path, server: list[int]) -> None:
    assert RunFolder(run).control.stat().st_mode & 0o777 == 0o600
    RunFolder(run).control.chmod(0o640)
    with pytest.raises(control.ControlError, match="can be read or written by others"):
        control.ask(run, "scale", actors=2)
    RunFolder(run).control.chmod(0o600)


def test_a_run_that_is_not_there(run: Path) -> None:
    with pytest.raises(control.ControlError, match="nobody answers for the run .*it is not running"):
        control.ask(run, "scale", actors=2)


def test_a_driver_that_was_killed_is_named_and_the_next_one_takes_its_place(run: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from launch.cluster.control import ControlServer
ControlServer(Path({str(run)!r}), {{}}, "127.0.0.1", attempt=7)
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program], check=False)
    with pytest.raises(control.ControlError, match=r"driver of attempt 7, process \d+ on .* it was killed"):
        control.ask(run, "scale", actors=2)
    server = control.ControlServer(run, {"scale": lambda request: {"by": 8}}, LOOPBACK, attempt=8)
    assert control.ask(run, "scale") == {"by": 8}
    later = control.ControlServer(run, {"scale": lambda request: {"by": 9}}, LOOPBACK, attempt=9)
    server.close()
    assert control.ask(run, "scale") == {"by": 9}, "the file is the later one's"
    later.close()


def test_a_driver_that_is_out_of_reach_is_said_without_waiting_for_ever(run: Path, server: list[int]) -> None:
    found = endpoint(run) | {"address": f"tcp://127.0.0.1:{free_port()}", "host": "elsewhere"}
    RunFolder(run).control.write_text(json.dumps(found))
    with pytest.raises(control.ControlError, match=r"on elsewhere.*this machine does not reach it"):
        control.ask(run, "scale", actors=2)
    RunFolder(run).control.write_text("half of")
    with pytest.raises(control.ControlError, match="is damaged"):
        control.ask(run, "scale", actors=2)
    RunFolder(run).control.unlink()
