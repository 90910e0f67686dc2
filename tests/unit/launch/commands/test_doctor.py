"""`azr doctor`: what it says of layers, and when it is not content."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actors.buffer.journal import file_system
from executor.layers import PURPOSE, Layer
from launch.cli import main
from launch.config import Config
from launch.doctor import sandbox
from launch.doctor.report import Check, CheckState, Section, as_text
from launch.doctor.storage import storage


def test_a_report_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    """On any machine that passes these tests there is seccomp, and the wall holds."""
    code = main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert code == 0
    assert report["ok"]
    machine, storage, sandbox, *_ = report["sections"]
    assert {check["name"] for check in machine["checks"]} >= {"python", "kernel", "architecture", "user"}
    assert [check["name"] for check in storage["checks"]] == ["journal"]
    assert sandbox["tier"] in {"A", "B", "C"}
    checks = {check["name"]: check for check in sandbox["checks"]}
    assert set(Layer) <= set(checks)
    assert checks["seccomp"]["state"] == "on"
    assert all(check["state"] == "on" for name, check in checks.items() if name not in set(Layer))
    for layer in Layer:
        if checks[layer]["state"] == "off":
            assert checks[layer]["detail"]
            assert checks[layer]["mend"]


def test_a_recipe_that_requires_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sandbox.SerialPool.layers.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(
        sandbox.SerialPool, "layers", property(lambda pool: real(pool) | {Layer.LANDLOCK: "the kernel has none"})
    )
    assert main(["doctor", "smollm2-cpu", "executor.require=['landlock', 'seccomp']"]) == 1
    out = capsys.readouterr().out
    assert "FAILED  landlock" in out
    assert "why: the kernel has none; executor.require asks for it" in out
    assert "to be mended: landlock" in out
    assert main(["doctor", "executor.require=['seccomp']"]) == 0
    assert "OFF     landlock" in capsys.readouterr().out


def test_a_sandbox_that_does_not_start(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(pool: sandbox.SerialPool) -> None:
        raise sandbox.InfrastructureError("the wall does not hold")

    monkeypatch.setattr(sandbox.SerialPool, "start", refuse)
    assert main(["doctor"]) == 1
    assert "the wall does not hold" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["nowhere"], ["learner.steps=3"], ["executor.require=['sekkomp']"]])
def test_wrong_use(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *arguments]) == 2
    assert "azr: " in capsys.readouterr().err


def test_the_mend_names_the_switch_that_is_closed(tmp_path: Path) -> None:
    assert "max_user_namespaces" not in sandbox._mend(Layer.NET_NAMESPACE, tmp_path)
    (tmp_path / "user").mkdir()
    (tmp_path / "user/max_user_namespaces").write_text("0\n")
    mend = sandbox._mend(Layer.NET_NAMESPACE, tmp_path)
    assert "sysctl -w user.max_user_namespaces=" in mend
    assert "unprivileged_userns_clone" not in mend


def test_every_layer_has_a_mend_and_a_purpose(tmp_path: Path) -> None:
    for layer in Layer:
        assert sandbox._mend(layer, tmp_path)
        assert PURPOSE[layer]


def test_text_of_a_report() -> None:
    checks = (
        Check("one", CheckState.ON, "found", "is good"),
        Check("two", CheckState.OFF, "no kernel", "would be good", "install"),
        Check("three", CheckState.INFO, "a fact"),
        Check("four", CheckState.FAILED, "broken", "must be", "install"),
    )
    text = as_text([Section("part", checks, "half")])
    assert text.splitlines()[0] == "part: half"
    assert "to get it: install" in text
    assert "to get it: as above" in text
    assert text.splitlines()[-1] == "to be mended: four"


def test_the_journal_of_a_run_directory_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(journal: str = "auto") -> Check:
        config = Config.model_validate({"run": {"dir": str(tmp_path / "not" / "yet")}, "buffer": {"journal": journal}})
        (check,) = storage(config).checks
        return check

    assert found().state is CheckState.ON
    assert found("rollback").state is CheckState.OFF
    monkeypatch.setattr("actors.buffer.journal.NETWORKED", frozenset({file_system(tmp_path)}))
    assert found().state is CheckState.OFF
    assert file_system(tmp_path) in found().detail and "run.dir" in found().mend
    assert list(tmp_path.iterdir()) == []
