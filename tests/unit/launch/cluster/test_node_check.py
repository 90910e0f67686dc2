"""What a run asks of every machine of a cluster before it starts anything there."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.cluster import node_check
from launch.cluster.node_check import FOLDER, MODEL, NodeError, check_nodes, look
from launch.cluster.placement import Node
from launch.config import Config
from launch.models import identity
from launch.run.folder import RunFolder
from learner.settings import ModelSettings
from tests.unit.launch.cluster.fake_ray import FakeRay

NODES = (Node("n0", 4, address="10.0.0.1"), Node("n1", 4, address="10.0.0.2"))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (model / name).write_text(name)
    return Config(model=ModelSettings(path=str(model)))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.new_attempt().record.write_text("{}")
    return folder


def test_machines_that_see_the_same_are_accepted(config: Config, folder: RunFolder) -> None:
    check_nodes(config, folder, FakeRay(NODES), ["n0", "n1"], 60.0)


def test_every_fault_is_told_with_the_machine_that_has_it(
    config: Config, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_check, "VISIBLE_S", 0.0)
    ray = FakeRay(NODES)
    elsewhere = config.model_copy(update={"model": ModelSettings(path="/elsewhere/model")})
    ray.answers["n1"] = look(elsewhere, folder.path / "nowhere", "digest") | {node_check.VERSION: "0.0.1 on Python 3"}
    with pytest.raises(NodeError) as caught:
        check_nodes(config, folder, ray, ["n0", "n1"], 60.0)
    told = str(caught.value).splitlines()
    assert len(told) == 4 and all(line.startswith("  10.0.0.2: ") for line in told[1:])
    assert "the version of azr is another one: 0.0.1 on Python 3, and here " in told[1]
    assert f"does not see the run folder {folder.path / 'nowhere'}" in told[2]
    assert "'/elsewhere/model' is neither a folder nor a known model" in told[3] and "On a cluster" in told[3]


def test_a_machine_that_does_not_answer_is_named(config: Config, folder: RunFolder) -> None:
    ray = FakeRay(NODES)
    ray.answers["n0"] = TimeoutError("no answer within 60 s")
    with pytest.raises(NodeError, match="10.0.0.1: no answer within 60 s"):
        check_nodes(config, folder, ray, ["n0", "n1"], 60.0)


def test_a_file_system_that_shows_files_late_is_waited_for(
    config: Config, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, attempt = node_check._record(folder.path), folder.newest_attempt()
    assert attempt is not None
    attempt.record.write_text("of the attempt before")
    monkeypatch.setattr(node_check.time, "sleep", lambda seconds: attempt.record.write_text("{}"))
    assert look(config, folder.path, record)[FOLDER] == "here"


def test_models_are_alike_where_their_files_are(config: Config, tmp_path: Path) -> None:
    path = Path(config.model.path)
    before = identity(str(path))
    assert before == identity(str(path)) == look(config, tmp_path, "")[MODEL]
    (path / "config.json").write_text("config.jsoN")
    assert identity(str(path)) != before, "what is small is read"
    (path / "config.json").write_text("config.json")
    (path / "model.safetensors").write_text("longer than before")
    assert identity(str(path)) != before
