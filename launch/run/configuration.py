"""The configuration that a run folder keeps: reads it for a resume from any directory, and writes it."""

from __future__ import annotations

import os
import shlex
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import overload

from launch.config import AnyConfig, Config, SftConfig, build, override, root_of, to_toml
from launch.recipe import ConfigError, assign, read_recipe
from launch.run.aside import last_step
from launch.run.folder import RunFolder, RunFolderError, usable

INPUTS = ("model.path", "selfplay.seed_tasks", "sft.data", "sft.validation_data", "rehearsal.lengths")
"""Settings that name a file or a folder; a relative one starts at the working directory."""


def load_run(path: Path, overrides: Sequence[str], root: type[AnyConfig]) -> tuple[AnyConfig, AnyConfig]:
    """Load the configuration of the run in folder `path`: with `overrides` on top, and as it was.

    `run.dir` and `run.name` follow from `path`, which may have been moved or renamed. Raises ConfigError and
    RunFolderError.
    """
    if not os.path.isfile(path / "config.toml"):
        with usable(RunFolder(path)):
            raise RunFolderError(_no_config(RunFolder(path)))
    data, sources = read_recipe(path / "config.toml")
    if "run" not in data:  # every configuration that a run keeps has this table
        raise RunFolderError(f"{path / 'config.toml'} was emptied or cut short. {_newest_config(RunFolder(path))}")
    if root_of(data) is not root:
        command = "azr sft" if root is Config else "azr train"
        raise RunFolderError(
            f"{path} is a run of `{command}`: go on with it by {command} --resume {shlex.quote(str(path))}"
        )
    # As it was typed, where that has the folder's own name.
    own = path if path.name not in ("", "..") and not path.is_symlink() else path.resolve()
    for key, value in (("run.dir", str(own.parent)), ("run.name", own.name)):
        if any(text.partition("=")[0].strip() == key for text in overrides):
            raise RunFolderError(
                f"{key} cannot be changed with --resume: the run stays in {path}. Move the folder instead."
            )
        assign(data, key, value)
        sources[key] = f"the folder {own}"
    try:
        former = build(data, sources, root)
    except ConfigError:
        if not overrides:
            raise
        former = None  # written by another version, or by hand; the overrides may mend it
    config = override(data, sources, overrides, root)
    return config, former or config


def _no_config(folder: RunFolder) -> str:
    """The message for a folder without `config.toml`."""
    if last_step(folder):
        return f"{folder.path} has recorded steps, but its config.toml is gone. {_newest_config(folder)}"
    begun = " Its learner has not begun yet, or never did: then start it again." if folder.newest_attempt() else ""
    return f"{folder.path} is no run folder: it has no config.toml.{begun} `ls runs` shows what there is."


def _newest_config(folder: RunFolder) -> str:
    """What to do where `config.toml` is lost."""
    attempt = folder.newest_attempt()
    if attempt is None or not os.path.isfile(attempt.config):
        return "Put it back, or start another run from a checkpoint: model.path=CHECKPOINT/hf"
    copy = shlex.join(["cp", str(attempt.config), str(folder.config)])
    return f"That of its last attempt is kept; to go on with it: {copy}"


def to_run_toml(config: Config | SftConfig) -> str:
    """Write the configuration as TOML that means the same from every directory: files and folders are absolute."""
    return to_toml(with_absolute_paths(config))


@overload
def with_absolute_paths(config: Config) -> Config: ...
@overload
def with_absolute_paths(config: SftConfig) -> SftConfig: ...
@overload
def with_absolute_paths(config: Config | SftConfig) -> Config | SftConfig: ...
def with_absolute_paths(config: Config | SftConfig) -> Config | SftConfig:
    """The configuration with absolute paths in the settings of `INPUTS` that name a file or a folder."""
    data = tomllib.loads(to_toml(config))
    for key in INPUTS:
        table, name = key.split(".")
        value = data.get(table, {}).get(name)
        if value and os.path.exists(found := os.path.expanduser(value)):
            data[table][name] = os.path.abspath(found)
    return build(data, None, Config) if isinstance(config, Config) else build(data, None, SftConfig)
