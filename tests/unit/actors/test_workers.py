"""Engines of several workers: the shards that make whole tensors, digests that all have to agree on, refused
environments."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.engine.base import VllmEngine, common_digests
from actors.settings import EngineSettings
from actors.shard import Shard
from actors.worker_memory import remove_names
from tests.examples import examples


@examples(200)
@given(
    workers=st.integers(1, 6),
    replicas=st.integers(1, 3),
    length=st.integers(1, 4),
    padding=st.integers(0, 8),
    dim=st.integers(0, 1),
    wrong=st.integers(0, 17),
)
def test_shards_make_the_whole_of_every_worker_with_its_own_in_it(
    workers: int, replicas: int, length: int, padding: int, dim: int, wrong: int
) -> None:
    """`workers` different parts, each of which `replicas` workers have."""
    size = max(1, workers * length - padding)
    whole = torch.randn((size, 3) if dim == 0 else (3, size))
    rows = [0] * (2 * (1 - dim)) + [0, workers * length - size]
    padded = torch.nn.functional.pad(whole, rows)
    parts = [part.clone() for part in padded.split(length, dim) for _ in range(replicas)]
    shards = [Shard("w", part, dim, replicas, size) for part in parts]
    assert all(torch.equal(shard.whole(rank, parts), whole) for rank, shard in enumerate(shards))
    if replicas == 1:
        own = [shard.unpadded(rank) for rank, shard in enumerate(shards)]
        assert torch.equal(torch.cat(own, dim), whole)
    wrong %= len(parts)
    if (wrong // replicas) * length < size:  # not padding alone
        parts[wrong].select(dim, 0).fill_(7.0)
        assert not torch.equal(shards[wrong].whole(wrong, parts), whole)


def test_digests_on_which_workers_differ_equal_none() -> None:
    of_workers = [{"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "9"}]
    assert common_digests(of_workers) == {"a": "1", "b": "2 9", "c": "3 missing"}
    assert common_digests(of_workers[:1]) == of_workers[0]


def test_an_environment_that_makes_engines_data_parallel_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_DP_SIZE", "2")
    with pytest.raises(ValueError, match=r"VLLM_DP_SIZE=2: unset it(.*)actors\.num_actors"):
        VllmEngine(tmp_path, EngineSettings(), in_process=True)


def test_only_the_names_of_this_engines_memory_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["vllm_dist_1-tp:0-[0-1]-cpushm0", "vllm_dist_2-tp:0-[0-1]-cpushm0", "psm_vllm_dist_1"]
    for name in names:
        (tmp_path / name).touch()
    monkeypatch.delenv("VLLM_DIST_IDENT", raising=False)
    remove_names(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    monkeypatch.setenv("VLLM_DIST_IDENT", "vllm_dist_1")
    remove_names(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])
