"""Which network interface a process's groups use."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from launch.cluster.meeting import Meeting, MeetingError
from launch.cluster.network import NetworkError, interface_of, interfaces, use_interface

VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "VLLM_HOST_IP")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as context:
        for name in VARIABLES:
            context.setenv(name, "")  # so that what the test sets is undone
            context.delenv(name)
        yield


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("10.0.0.7", "eth0"),
        ("10.0.0.8", None),
        ("fe80::1", "eth0"),
        ("[fd00::2]", "ib0"),
        ("127.0.0.1", "lo"),
        ("127.0.0.3", "lo"),
        ("::1", "lo"),
    ],
)
def test_the_interface_is_the_one_that_has_the_address(address: str, expected: str | None) -> None:
    found = {
        "lo": ["127.0.0.1", "::1"],
        "eth0": ["10.0.0.7", "fe80::1%eth0"],
        "ib0": ["10.1.0.7", "fd00::2"],
        "ib1": [],
    }
    assert interface_of(address, found) == expected


def test_the_variables_name_one_interface_exactly_and_keep_what_the_user_has_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0,ib1")
    use_interface("127.0.0.2")
    lo = interface_of("127.0.0.1", interfaces())
    assert [os.environ[name] for name in VARIABLES] == [lo, "ib0,ib1", "127.0.0.2"]
    use_interface("127.0.0.2", lo)
    assert os.environ["NCCL_SOCKET_IFNAME"] == f"={lo}", "slurm.interface goes before the environment"


def test_an_interface_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(NetworkError, match=r"slurm.interface = ib7: the machine 127.0.0.1 has no such (.*) It has lo"):
        use_interface("127.0.0.1", "ib7")


def test_an_unknown_address_leaves_the_choice_to_the_libraries(caplog: pytest.LogCaptureFixture) -> None:
    use_interface("203.0.113.9")
    assert not any(name in os.environ for name in VARIABLES)
    assert "203.0.113.9" in caplog.text


def _speak(address: str, answers: Any) -> None:
    store = Meeting().store(address, 60.0)
    assert store is not None
    store.set("word", "from rank 1")
    answers.put(store.get("word"))


def test_ranks_meet_in_a_store_whose_port_is_taken_before_its_address_is_told() -> None:
    meeting = Meeting()
    address = meeting.serve("127.0.0.1")
    with socket.socket() as other, pytest.raises(OSError):
        other.bind(("127.0.0.1", int(address.rpartition(":")[2])))
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    rank = context.Process(target=_speak, args=(address, answers))
    rank.start()
    assert answers.get(timeout=60) == b"from rank 1"
    rank.join()
    store = meeting.store(address, 60.0)
    assert store is not None and store.get("word") == b"from rank 1"


def test_a_rank_0_that_cannot_be_reached_is_named() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # bound, and nobody listens
        port = silent.getsockname()[1]
        with pytest.raises(MeetingError, match=f"rank 0 cannot be reached at tcp://127.0.0.1:{port} within 1 s"):
            Meeting().store(f"tcp://127.0.0.1:{port}", 1.0)
