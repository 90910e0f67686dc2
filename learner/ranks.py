"""Agreement of the learner's ranks: rank 0 decides, the others run the same code in lock-step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgpack
import torch
import torch.distributed as dist

from learner.trajectory import Trajectory, dumps, loads


class Ranks:
    """Rank and world size of this learner process, and `share`, the only way that a decision spreads."""

    def __init__(self, rank: int = 0, world_size: int = 1, device: torch.device | str = "cpu") -> None:
        self.rank = rank
        self.world_size = world_size
        self._device = torch.device(device)

    @property
    def is_main(self) -> bool:
        """Whether this rank owns the stream, the ledger and the files."""
        return self.rank == 0

    def share(self, decide: Callable[[], Any]) -> Any:
        """Run `decide` on rank 0 and return its result (plain msgpack data) on every rank. Collective.

        An exception on rank 0 is raised there and as RuntimeError on the others, so that no rank hangs.
        """
        if self.world_size == 1:
            return decide()
        error: BaseException | None = None
        payload = b""
        if self.is_main:
            try:
                payload = msgpack.packb([True, decide()])
            except BaseException as caught:
                error = caught
                payload = msgpack.packb([False, repr(caught)])
        length = torch.tensor([len(payload)], dtype=torch.int64, device=self._device)
        dist.broadcast(length, 0)
        buffer = torch.empty(int(length), dtype=torch.uint8, device=self._device)
        if self.is_main:
            buffer.copy_(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
        dist.broadcast(buffer, 0)
        if error is not None:
            raise error
        fine, result = msgpack.unpackb(buffer.cpu().numpy().tobytes(), max_bin_len=int(length))
        if not fine:
            raise RuntimeError(f"learner rank 0 failed: {result}")
        return result

    def share_batch(self, decide: Callable[[], Sequence[Trajectory]]) -> list[Trajectory]:
        """Run `decide` on rank 0 and return its trajectories on every rank. Collective; errors as in `share`.

        Rank 0 keeps the objects themselves; only the other ranks get copies.
        """
        chosen: list[Trajectory] = []

        def packed() -> bytes:
            chosen.extend(decide())
            return dumps(chosen) if self.world_size > 1 else b""

        data = self.share(packed)
        return chosen if self.is_main else loads(data)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all ranks, in place. Collective."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def max(self, values: torch.Tensor) -> torch.Tensor:
        """Maximum over all ranks, element by element, in place. Collective."""
        if self.world_size > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    def barrier(self) -> None:
        """Wait for all ranks. Collective."""
        if self.world_size > 1:
            dist.barrier()
