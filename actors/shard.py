"""What one worker of an engine has of a tensor, and how the workers' shards make the whole. Plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Shard:
    """One worker's shard of a tensor, as vLLM splits it over its workers."""

    name: str
    part: torch.Tensor
    dim: int | None = None
    """Dimension along which the tensor is split; None: every worker has all of it."""
    replicas: int = 1
    """Number of consecutive workers that have the same part, as where there are more workers than key/value heads."""
    size: int | None = None
    """Size of the whole along `dim`, where the parts are padded beyond it; None: they are not."""

    def unpadded(self, rank: int) -> torch.Tensor:
        """The part, which is that of worker `rank`, without padding, which comes after the last row of the whole."""
        if self.dim is None or self.size is None:
            return self.part
        length = self.part.shape[self.dim]
        return self.part.narrow(self.dim, 0, min(length, max(0, self.size - rank * length)))

    def whole(self, rank: int, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """The tensor that `parts` of all workers make. Of parts that several have, it takes that of worker `rank`."""
        assert self.dim is not None, "a tensor that is not split"
        whole = torch.cat(list(parts[rank % self.replicas :: self.replicas]), dim=self.dim)
        return whole if self.size is None else whole.narrow(self.dim, 0, self.size)
