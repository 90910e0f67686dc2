"""How the agents of a job meet, and what keeps a node out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.addresses import LOOPBACK
from launch.slurm.facts import CLOCK_S, Facts, differences, own_facts, own_versions
from launch.slurm.job_log import JobLog
from launch.slurm.meeting import Guest, Host, InterfaceError, MeetingError, join, own_addresses

HEAD = Facts(0, "n1", "nonce", {"Python": "3.11.7", "azr": "0.1.0, code aa", "Ray": "2.60.0"}, 1000.0)
GUEST = replace(HEAD, index=1, node="n2")


def meet(token: str, with_host: Callable[[int], Coroutine[Any, Any, None]]) -> list[Guest]:
    """The agents that a host with `token` lets in, while `with_host(port)` runs."""
    guests: list[Guest] = []

    async def run() -> None:
        host = Host(token, guests.append)
        await with_host(await host.open(LOOPBACK))
        host.close()

    asyncio.run(run())
    return guests


def test_agents_meet_at_the_first_address_where_one_of_their_job_listens() -> None:
    async def knock(port: int) -> None:
        peer = await join(["127.0.0.3", LOOPBACK], port, "token", lambda: GUEST)
        assert peer.own_address == LOOPBACK
        peer.close()

    (guest,) = meet("token", knock)
    assert guest.facts == GUEST


def test_a_job_with_another_token_is_not_met() -> None:
    async def knock(port: int) -> None:
        with pytest.raises(MeetingError, match="closed"):
            await join([LOOPBACK], port, "another", lambda: GUEST)

    assert meet("token", knock) == []


def test_an_agent_does_not_follow_a_listener_that_does_not_know_the_token() -> None:
    """A port that another program has by now."""

    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'{"challenge": "00"}\n')
        proof = json.loads(await reader.readline())["proof"]
        writer.write(json.dumps({"proof": proof}).encode() + b"\n")

    async def run() -> None:
        async with await asyncio.start_server(impostor, LOOPBACK, 0) as server:
            with pytest.raises(MeetingError, match="no agent of this job"):
                await join([LOOPBACK], server.sockets[0].getsockname()[1], "token", lambda: GUEST)

    asyncio.run(run())


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b"{}\n", b"\xff\n", b'{"facts": {}}\n'])
def test_strangers_leave_the_host_open(sent: bytes) -> None:
    async def knock(port: int) -> None:
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
        writer.write(sent)
        writer.write_eof()
        await reader.read()
        writer.close()
        (await join([LOOPBACK], port, "token", lambda: GUEST)).close()

    assert len(meet("token", knock)) == 1


def test_equal_nodes_have_no_differences() -> None:
    facts = own_facts(1, "n2", "nonce", own_versions())
    assert Facts.from_message(json.loads(json.dumps(facts.to_message()))) == facts
    assert list(differences(replace(facts, index=0, node="n1"), facts, CLOCK_S, 0.0)) == []


@pytest.mark.parametrize(
    ("changed", "ahead_s", "words"),
    [
        ({"nonce": "old"}, 0.0, "n2 sees another folder of this attempt than n1"),
        ({"versions": HEAD.versions | {"Ray": "2.9.0"}}, 0.0, "n2 has Ray 2.9.0, and n1 has 2.60.0"),
        ({"versions": {"Python": "3.11.7", "Ray": "2.60.0"}}, 0.0, "n2 has azr none, and n1 has 0.1.0"),
        ({}, 90.0, "the clock of n2 is 90 s ahead of that of n1"),
        ({}, -90.0, "the clock of n2 is 90 s behind that of n1"),
    ],
)
def test_each_difference_names_the_node_and_both_sides(changed: dict[str, Any], ahead_s: float, words: str) -> None:
    (found,) = differences(HEAD, replace(GUEST, **changed), ahead_s, 0.5)
    assert found.startswith(words)


def test_a_slow_answer_is_no_wrong_clock() -> None:
    assert list(differences(HEAD, GUEST, 30.0, 28.0)) == []


@pytest.mark.parametrize("message", [{}, {"index": "x"}, GUEST.to_message() | {"versions": 3}])
def test_what_are_no_facts_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Facts.from_message(message)


def test_on_the_loopback_interface_each_node_has_an_address_of_its_own() -> None:
    assert [own_addresses(index, "lo") for index in range(2)] == [["127.0.0.2"], ["127.0.0.3"]]
    with pytest.raises(InterfaceError, match=r"slurm.interface = nope0"):
        own_addresses(0, "nope0")


def test_the_jobs_log_says_why_an_agent_does_not_start(tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    log.write_text("srun: error: n9: task 8: Exited with exit code 2\n")  # of an earlier start of the job
    found = JobLog(log, log.stat().st_size)
    assert found.refusals() == {}
    with log.open("a") as file:
        file.write(
            "srun: error: n2: task 1: Exited with exit code 2\n"
            "slurmstepd-n2: error: execve(): /venv/bin/python: No such file or directory\n"
            "slurmstepd-n20: error: another node\n"
            "azr: n3: /runs/a is not there\n"
            "srun: error: n3: task 2: Exited with exit code 1\n"
        )
    assert found.refusals() == {
        "n2": "execve(): /venv/bin/python: No such file or directory; Exited with exit code 2",
        "n3": "/runs/a is not there; Exited with exit code 1",
    }
    with log.open("a") as file:
        file.write(
            "srun: error: Task launch for StepId=4.0 failed on node n4: Communication connection failure\n"
            "srun: error: n1: task 0: Killed\n"
        )
    assert found.refusals() == {"n4": "Communication connection failure"}
    assert JobLog(tmp_path / "none", 0).refusals() == {}
