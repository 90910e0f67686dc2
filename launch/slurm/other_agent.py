"""The agent of every node but the first: joins the first node's, starts Ray, and ends when that one says so."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from launch.json_file import read_json
from launch.run.interrupts import NOTHING_TO_SAVE
from launch.slurm.facts import Facts, own_facts, own_versions
from launch.slurm.meeting import MeetingError, Peer, join, own_addresses
from launch.slurm.node_agent import LOOK_S, Agent
from launch.slurm.result import FAILED, Ended

_AGAIN_S = 0.5
_LOG = logging.getLogger(__name__)


class OtherAgent(Agent):
    """The agent of a node that is not the first."""

    async def run(self) -> int:
        """Run the node's part of the job to its end; returns the exit code."""
        timeout_s = float(self.setting("start_timeout_s", 600.0))
        joining = asyncio.create_task(self._join(timeout_s))
        stopping = asyncio.create_task(self.stop.wait())
        await asyncio.wait([joining, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not joining.done():
            joining.cancel()
            raise Ended(NOTHING_TO_SAVE, "start", self.step.node, "stopped before this node had joined")
        peer = joining.result()
        try:
            return await self._serve(peer)
        finally:
            peer.close()

    async def _join(self, timeout_s: float) -> Peer:
        """Join the first node's agent. Raises Ended."""
        versions = own_versions()
        why = "its agent has not written meeting.json"
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    meeting = read_json(self.attempt / "meeting.json")
                    if meeting.get("nonce") == self.nonce:
                        try:
                            token = (self.attempt / "token").read_text().strip()
                            return await join(
                                meeting["addresses"], meeting["port"], token, lambda: self._facts(versions)
                            )
                        except (MeetingError, OSError) as error:
                            why = str(error)
                    await asyncio.sleep(_AGAIN_S)
        except TimeoutError:
            reason = f"the first node is not reached within slurm.start_timeout_s = {timeout_s:g}: {why}"
            raise Ended(FAILED, "start", self.step.node, reason) from None

    def _facts(self, versions: dict[str, str]) -> Facts:
        nonce = str(read_json(self.attempt / "attempt.json").get("nonce"))
        return own_facts(self.step.index, self.step.node, nonce, versions)

    async def _serve(self, peer: Peer) -> int:
        """Do what the first node says, until it says the end or is lost."""
        hearing: asyncio.Task[dict[str, Any]] = asyncio.create_task(peer.receive())
        starting: asyncio.Task[None] | None = None
        try:
            while True:
                await asyncio.wait([hearing], timeout=LOOK_S)
                if hearing.done():
                    message = hearing.result()
                    if "refused" in message:
                        raise Ended(FAILED, "start", self.step.node, str(message["refused"]))
                    if "end" in message:
                        return 0
                    if "ray" in message:
                        starting = asyncio.create_task(self._start(peer, **message["ray"]))
                    hearing = asyncio.create_task(peer.receive())
                if starting is not None and starting.done():
                    starting.result()
                    self.check_ray()
        except MeetingError as error:
            raise Ended(FAILED, "agent", self.step.node, f"the first node is lost: {error}") from None
        except Exception as error:
            ended = self.ended_by(error)
            with contextlib.suppress(MeetingError):
                how = {"exit_code": ended.exit_code, "part": ended.part, "reason": ended.reason}
                await peer.send(failed=how)
            raise ended from None
        finally:
            hearing.cancel()
            if starting is not None:
                starting.cancel()

    async def _start(self, peer: Peer, head: str, labels: dict[str, str], interface: str | None, **how: Any) -> None:
        address = own_addresses(self.step.index, interface)[0] if interface else peer.own_address
        await self.start_ray(address, head, labels, **how)
        await peer.send(up=address)
