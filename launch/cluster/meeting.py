"""Where the learner's ranks find each other: a store that rank 0 serves, and the others connect to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from executor.user_error import UserError
from launch.addresses import host_of, port_of

if TYPE_CHECKING:
    from torch.distributed import TCPStore


class MeetingError(UserError):
    """Rank 0 cannot be reached; the message names its address."""

    exit_code = 1


class Meeting:
    """One rank's side of it."""

    def __init__(self) -> None:
        self._served: TCPStore | None = None

    def serve(self, host: str) -> str:
        """Serve the store at `host`, an address of this machine; returns `tcp://host:port`. Rank 0 only."""
        from learner.store import serve_store

        self._served = serve_store(host)
        return f"tcp://{host}:{self._served.port}"

    def store(self, address: str | None, timeout_s: float) -> TCPStore | None:
        """The store at `address`, what rank 0's `serve` returned; None for the only rank, which has no address.

        Raises MeetingError where it cannot be reached within `timeout_s`.
        """
        if address is None or self._served is not None:
            return self._served
        from torch.distributed import DistError

        from learner.store import join_store

        try:
            return join_store(host_of(address), port_of(address), timeout_s)
        except DistError as error:
            raise MeetingError(
                f"learner rank 0 cannot be reached at {address} within {timeout_s:.0f} s: look for a "
                "firewall between the learner's machines, and for a route from this one to that address"
            ) from error
