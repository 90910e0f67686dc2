"""The run's socket: real sockets, both ends."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from launch.cluster import control
from launch.run import scratch


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    run = tmp_path / "runs" / "first"
    with scratch.scratch(run):
        yield run


@pytest.fixture
def server(run: Path) -> Iterator[list[int]]:
    asked: list[int] = []

    def scale(request: object) -> dict[str, int]:
        actors = int(request["actors"])  # type: ignore[index]
        if actors < 1:
            raise ValueError("at least 1 actor")
        asked.append(actors)
        return {"actors": actors}

    server = control.ControlServer(run, {"scale": scale})
    yield asked
    server.close()


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
    for nonsense in (b"", b"\xff", b"[1]", b'{"do": []}', b"[" * 5000):
        socket = zmq.Context.instance().socket(zmq.REQ)
        socket.connect(f"ipc://{control.socket_path(run)}")
        socket.send(nonsense)
        assert b'"ok": false' in socket.recv()
        socket.close(0)
    assert control.ask(run, "scale", actors=2) == {"actors": 2}


def test_a_run_that_is_not_there(run: Path) -> None:
    with pytest.raises(control.ControlError, match="nobody answers for the run"):
        control.ask(run, "scale", actors=2)
