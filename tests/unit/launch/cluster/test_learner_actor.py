"""Where a learner listens; its life as a whole is an integration test's."""

from __future__ import annotations

from typing import Any

import pytest

from launch.cluster import learner_actor
from launch.config import Config
from launch.settings import RaySettings
from learner.settings import StreamSettings


def config(**stream: Any) -> Config:
    return Config(stream=StreamSettings(**stream), ray=RaySettings(address="10.0.0.1:6379"))


@pytest.mark.parametrize(
    ("port", "former", "expected"),
    [
        (0, None, "tcp://10.0.0.1:0"),
        (7000, None, "tcp://10.0.0.1:7000"),
        (0, "tcp://10.0.0.1:4321", "tcp://10.0.0.1:4321"),
        (0, "tcp://10.0.0.2:4321", "tcp://10.0.0.1:0"),
        (7000, "tcp://10.0.0.1:4321", "tcp://10.0.0.1:7000"),
    ],
)
@pytest.mark.parametrize("host", ["10.0.0.1", "auto"])
def test_a_learner_that_starts_again_takes_its_port_again(
    monkeypatch: pytest.MonkeyPatch, host: str, port: int, former: str | None, expected: str
) -> None:
    monkeypatch.setattr(learner_actor, "own_address", lambda: "10.0.0.1")
    assert learner_actor.stream_endpoint(config(host=host, port=port), former) == expected


@pytest.mark.parametrize(
    ("host", "address", "curve", "encrypted"),
    [
        ("auto", None, "auto", False),
        ("auto", "10.0.0.1:6379", "auto", True),
        ("auto", "10.0.0.1:6379", "off", False),
        ("auto", None, "on", True),
        ("127.0.0.1", "127.0.0.1:6379", "auto", False),
        ("10.0.0.1", None, "auto", True),
    ],
)
def test_keys_are_needed_beyond_loopback(host: str, address: str | None, curve: Any, encrypted: bool) -> None:
    config = Config(stream=StreamSettings(host=host, curve=curve), ray=RaySettings(address=address))
    assert config.encrypted is encrypted
    assert config.stream_host == ("127.0.0.1" if host == "auto" and not address else host)
