"""The other agents of a job, as the first node knows them: joined, refused, up, lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from launch.slurm.facts import Facts, differences
from launch.slurm.meeting import Guest, MeetingError
from launch.slurm.result import FAILED, Ended


class Roster:
    """The agents of nodes 1 to N-1."""

    def __init__(self, nodes: Sequence[str], own: Facts) -> None:
        """`nodes`: names of all nodes of the job, in order; `own`: the facts of the first one."""
        self._nodes = nodes
        self._own = own
        self._guests: dict[int, Guest] = {}
        self._hearing: list[asyncio.Task[None]] = []
        self._ending = False
        self.up: dict[int, str] = {}
        """Nodes whose Ray has joined -> address there."""
        self.silent = False
        """Whether an agent was told of the end and did not close its connection."""
        self.ended: Ended | None = None
        """The first agent that was refused, failed or was lost."""

    @property
    def missing(self) -> list[str]:
        """The nodes that have not joined."""
        return [node for index, node in enumerate(self._nodes) if index and index not in self._guests]

    @property
    def starting(self) -> list[str]:
        """The nodes whose Ray has not joined."""
        return [node for index, node in enumerate(self._nodes) if index and index not in self.up]

    @property
    def address(self) -> str | None:
        """The first node's address, as the others reach it; None before one has joined."""
        return self._guests[min(self._guests)].peer.own_address if self._guests else None

    def check(self) -> None:
        """Raise Ended if an agent was refused, failed or was lost."""
        if self.ended is not None:
            raise self.ended

    def welcome(self, guest: Guest) -> None:
        """Take in an agent that knows the token."""
        index = guest.facts.index
        wrong = list(differences(self._own, guest.facts, guest.clock_ahead_s, guest.uncertain_s))
        if not 0 < index < len(self._nodes) or index in self._guests:
            wrong.append(f"{guest.facts.node} says that it is node {index}, which the job has not, or has already")
        else:
            self._guests[index] = guest
        self._hearing.append(asyncio.create_task(self._hear(guest, wrong)))

    async def tell(self, index: int, **message: Any) -> None:
        """Send a message to the agent of a node; one that is lost is noticed elsewhere."""
        with contextlib.suppress(MeetingError):
            await self._guests[index].peer.send(**message)

    async def dismiss(self, patience_s: float) -> None:
        """Tell all that the job has ended, and wait until they close their connections."""
        self._ending = True
        for index in self._guests:
            await self.tell(index, end=True)
        if self._hearing:
            _, late = await asyncio.wait(self._hearing, timeout=patience_s)
            self.silent = bool(late)
            for task in late:
                task.cancel()

    async def _hear(self, guest: Guest, wrong: Sequence[str]) -> None:
        node = guest.facts.node
        try:
            if wrong:
                self._end(Ended(FAILED, "start", node, "; ".join(wrong)))
                await guest.peer.send(refused="; ".join(wrong))
            while True:
                message = await guest.peer.receive()
                if "up" in message:
                    self.up[guest.facts.index] = str(message["up"])
                elif "failed" in message:
                    how = message["failed"]
                    self._end(Ended(int(how["exit_code"]), str(how["part"]), node, str(how["reason"])))
        except MeetingError as error:
            self._end(Ended(FAILED, "node", node, f"{node} is lost: {error}", node_failure=True))
        finally:
            guest.peer.close()

    def _end(self, ended: Ended) -> None:
        if self.ended is None and not self._ending:
            self.ended = ended
