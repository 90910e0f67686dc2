"""What rank 0 decides reaches every rank."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from learner.ranks import Ranks
from learner.trajectory import Cell, Role, Trajectory, VersionSpan, dumps, loads


def batch() -> list[Trajectory]:
    return [
        Trajectory(
            "run", "a", 0, slot, "e", Cell("deduction", Role.SOLVE), np.array([1], np.int32),
            np.array([2, 3], np.int32), np.array([-0.5, -1.5], np.float32), (VersionSpan(slot, 0, 2),), 0.5 * slot,
        )
        for slot in range(3)
    ]  # fmt: skip


def test_one_rank_keeps_the_trajectories_themselves() -> None:
    chosen = batch()
    shared = Ranks().share_batch(lambda: chosen)
    assert all(one is other for one, other in zip(shared, chosen, strict=True))
    assert Ranks().share(lambda: "train") == "train"


def test_one_rank_raises_what_the_decision_raises() -> None:
    with pytest.raises(KeyError):
        Ranks().share_batch(lambda: {}["none"])


def run_rank(rank: int, size: int, folder: Path) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=size)
    ranks = Ranks(rank, size)

    def decide() -> list[Trajectory]:
        assert rank == 0, "only rank 0 decides"
        return batch()

    shared = ranks.share_batch(decide)
    (folder / f"{rank}.msgpack").write_bytes(dumps(shared))

    def fail() -> list[Trajectory]:
        raise ValueError("no batch")

    try:
        ranks.share_batch(fail)
    except (ValueError, RuntimeError) as error:
        (folder / f"{rank}.txt").write_text(f"{type(error).__name__}: {error}")
    dist.destroy_process_group()


def test_every_rank_gets_the_batch_of_rank_0_and_hears_of_its_failure(tmp_path: Path) -> None:
    mp.spawn(run_rank, args=(2, tmp_path), nprocs=2)
    for rank in range(2):
        shared = loads((tmp_path / f"{rank}.msgpack").read_bytes())
        assert dumps(shared) == dumps(batch())
    assert (tmp_path / "0.txt").read_text() == "ValueError: no batch"
    assert (tmp_path / "1.txt").read_text().startswith("RuntimeError: learner rank 0 failed")
