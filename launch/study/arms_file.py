"""Arms of a study as a file: a table of settings for each, as a recipe has them."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from launch.recipe import settings_in
from launch.study.arms import FOLDER, NAMES
from launch.study.definition import Arm, StudyError

_FORM = "it has a table [arms.NAME] for each arm, with settings as in a recipe, such as selfplay.references = 0"


def find_arms(name: str) -> Path:
    """The file of this path, or of this name among those that ship. Raises StudyError."""
    is_path = "/" in name or name.endswith(".toml")
    path = Path(name) if is_path else FOLDER / f"{name}.toml"
    if os.path.isfile(path):
        return path
    raise StudyError(
        f"there is no file of arms {name}: give the path of a .toml file, or one that ships: {', '.join(NAMES)}"
    )


def read_arms(path: Path, baseline: str | None = None) -> tuple[Arm, ...]:
    """The arms of a file, in its order. `baseline`: the one that the others are compared with; None: the first.

    Raises StudyError.
    """
    try:
        data = tomllib.loads(path.read_bytes().decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StudyError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise StudyError(f"{path} cannot be read: {error.strerror}") from None
    tables = data.pop("arms", None)
    if data or not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise StudyError(f"{path} is no file of arms: {_FORM}")
    if not tables:
        raise StudyError(f"{path} has no arm: {_FORM}")
    named = next(iter(tables)) if baseline is None else baseline
    if named not in tables:
        raise StudyError(f"--baseline {named}: {path} has the arms {', '.join(tables)}")
    return tuple(_arm(path, name, table, None if name == named else named) for name, table in tables.items())


def question(recipe: str, arms: Sequence[Arm]) -> str:
    """The question, in words."""
    baseline = next(arm.name for arm in arms if arm.baseline is None)
    others = ", ".join(arm.name for arm in arms if arm.baseline is not None)
    return f"What does {recipe} learn with {others}, beside {baseline}?" if others else f"What does {recipe} learn?"


def _arm(path: Path, name: str, table: dict[str, Any], baseline: str | None) -> Arm:
    overrides = tuple(f"{key}={_text(path, key, value)}" for key, value in settings_in(table))
    try:
        return Arm(name=name, overrides=overrides, baseline=baseline)
    except ValidationError:
        raise StudyError(
            f"{path}: an arm cannot be called {name!r}: take letters, digits, dots, hyphens and underscores"
        ) from None


def _text(path: Path, key: str, value: Any) -> str:
    """A value as on the command line, which is TOML. Raises StudyError."""
    try:
        # Of what JSON writes, TOML takes all but one character.
        text = json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")
        if tomllib.loads(f"v = {text}")["v"] == value:
            return text
    except (TypeError, ValueError):
        pass
    raise StudyError(f"{path}: {key} = {value!r} is no value of a setting")
