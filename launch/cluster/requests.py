"""Serves the requests of `azr scale` and `azr verify` in the driver of a running run.

Requests arrive on the control socket's thread and are answered there at once. The work that they ask for is done on the
supervisor's thread, which calls `serve` after each poll.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from launch.addresses import LOOPBACK
from launch.cluster.control import ControlServer
from launch.cluster.environment import own_address
from launch.cluster.placement import place
from launch.cluster.ray_port import RayPort
from launch.cluster.supervisor import Supervisor
from launch.cluster.verify import WeightComparison
from launch.config import Config
from launch.run.folder import RunFolder


class Requests:
    """The requests of one run that are not done, and the reports of its verifications."""

    def __init__(self, config: Config, ray: RayPort) -> None:
        self._config = config
        self._ray = ray
        self._todo: queue.SimpleQueue[Callable[[Supervisor], None]] = queue.SimpleQueue()
        self._verifications: dict[int, WeightComparison] = {}
        """The verifications that go on, by number."""
        self._reports: dict[int, dict[str, Any]] = {}
        """The newest report of every verification, by number."""

    @contextlib.contextmanager
    def accepted(self) -> Iterator[None]:
        """Accept requests until the block ends."""
        handlers = {
            "scale": self._answer_scale,
            "verify": self._answer_verify,
            "verified": self._answer_verified,
        }
        # A Ray of the run's own is on this machine, and so are its actors.
        host = LOOPBACK if self._config.ray.address is None else own_address()
        attempt = RunFolder(self._config.folder).newest_attempt()
        server = ControlServer(self._config.folder, handlers, host, attempt.number if attempt else 0)
        try:
            yield
        finally:
            server.close()

    def serve(self, supervisor: Supervisor) -> None:
        """Do the work that was asked for; never waits. Call it on the supervisor's thread."""
        while not self._todo.empty():
            self._todo.get()(supervisor)
        for number, verification in list(self._verifications.items()):
            verification.poll()
            self._reports[number] = verification.report()
            if verification.done:
                del self._verifications[number]

    def _answer_scale(self, request: Mapping[str, Any]) -> dict[str, int]:
        """`{"actors": N}`: have N rollout actors. Answers the same. Refused where they do not fit the cluster."""
        num_actors = parse_num_actors(request)
        place(self._config, self._ray.nodes(), num_actors)
        self._todo.put(lambda supervisor: supervisor.scale(num_actors))
        return {"actors": num_actors}

    def _answer_verify(self, request: Mapping[str, Any]) -> dict[str, int]:
        """`{}`: begin to compare the engines' weights with the learner's. Answers with the verification's number."""
        number = len(self._reports)

        def begin(supervisor: Supervisor) -> None:
            self._verifications[number] = supervisor.verify()

        self._reports[number] = {"done": False, "waits_for": "the run's driver", "results": {}}
        self._todo.put(begin)
        return {"number": number}

    def _answer_verified(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """`{"number": N}`: the newest report of that verification."""
        number = int(request["number"])
        if number not in self._reports:
            raise ValueError(f"this run has no verification number {number}")
        return self._reports[number]


def parse_num_actors(request: Mapping[str, Any]) -> int:
    """The number of actors of a scale request; ValueError says what is wrong with it."""
    actors = request["actors"]
    if not isinstance(actors, int) or isinstance(actors, bool) or not 1 <= actors <= 100_000:
        raise ValueError(f"{actors!r} rollout actors: a whole number from 1 on")
    return actors
