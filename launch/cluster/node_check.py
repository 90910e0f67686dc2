"""Looks at every machine that a run uses in a cluster, before anything starts there: has it what the run needs?

The processes of a run read the run folder, the model and the files that settings name, each on its own machine, and
import azr there. What is missing would otherwise show minutes later, in the log of one process.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Collection, Mapping
from importlib.metadata import version
from pathlib import Path

from executor.user_error import UserError
from launch.cluster.ray_port import RayPort
from launch.config import Config, SftConfig
from launch.models import KNOWN, ModelError, identity
from launch.run.configuration import INPUTS
from launch.run.folder import RunFolder

VISIBLE_S = 20.0
"""Seconds that a network file system may take to show on one machine what another one has just written."""

SHARED = "it must be on a file system that every machine has"
FOLDER, MODEL, VERSION = "the run folder", "the model", "the version of azr"


class NodeError(UserError):
    """A machine of the cluster that lacks what the run needs; the message names it and says what to do."""

    exit_code = 1


def look(config: Config | SftConfig, folder: Path, record: str) -> dict[str, str]:
    """What this machine has, by what it is; equal on all machines where they see the same files.

    `record`: the newest record of an attempt, which the driver has written. A fault is a sentence that begins with `!`.
    """
    found = {VERSION: f"{version('azr')} on Python {platform.python_version()}", FOLDER: "here"}
    deadline = time.monotonic() + VISIBLE_S
    while _record(folder) != record:
        if time.monotonic() > deadline:
            found[FOLDER] = f"!it does not see the run folder {folder}, or an old state of it: {SHARED}"
            break
        time.sleep(0.2)
    if needs_model(config):
        try:
            found[MODEL] = identity(config.model.path)
        except ModelError as error:
            found[MODEL] = f"!{error} {_mend(config.model.path)}"
    for key, path in _inputs(config).items():
        found[key] = (
            f"{os.path.getsize(path)} bytes" if os.path.isfile(path) else f"!{key} = {path} is no file: {SHARED}"
        )
    return found


def check_nodes(
    config: Config | SftConfig, folder: RunFolder, ray: RayPort, nodes: Collection[str], timeout_s: float
) -> None:
    """Raise NodeError if one of `nodes`, by their names in Ray, lacks what the run needs, or has something else.

    `timeout_s`: for each to answer; a machine may have to build the model first.
    """
    path = folder.path.absolute()
    mine = look(config, path, record := _record(path))
    addresses = {node.name: node.address or node.name for node in ray.nodes()}
    faults = []
    for name, answer in ray.on_nodes(nodes, look, config, path, record, timeout_s=timeout_s).items():
        where = addresses.get(name, name)
        if isinstance(answer, Exception):
            faults.append(f"{where}: {answer}")
        else:
            faults += [f"{where}: {text}" for text in _faults(mine, answer)]
    if faults:
        raise NodeError("\n  ".join(["machines of the cluster lack what the run needs:", *faults]))


def needs_model(config: Config | SftConfig) -> bool:
    """Whether the run's processes load the model."""
    return not isinstance(config, Config) or config.run.mode != "rehearse"


def _faults(mine: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    faults = []
    for what, found in theirs.items():
        if found.startswith("!"):
            faults.append(found[1:])
        elif found != mine[what]:
            faults.append(f"{what} is another one: {found}, and here {mine[what]}")
    return faults


def _mend(model: str) -> str:
    if model not in KNOWN:
        return f"On a cluster {SHARED}."
    return (
        f"Or prepare it once for all machines: AZR_CACHE=FOLDER azr model prepare {model}, with a FOLDER that every "
        "machine has, and start the run with AZR_CACHE=FOLDER."
    )


def _inputs(config: Config | SftConfig) -> dict[str, str]:
    """The files that settings name, by setting; without the model. Their paths are absolute."""
    named = {}
    for key in INPUTS:
        table, name = key.split(".")
        value = getattr(getattr(config, table, None), name, None)
        if key != "model.path" and value and os.path.isabs(value):
            named[key] = value
    return named


def _record(folder: Path) -> str:
    """The digest of the newest attempt's record; empty without one."""
    attempt = RunFolder(folder).newest_attempt()
    try:
        return hashlib.sha256(attempt.record.read_bytes()).hexdigest() if attempt else ""
    except OSError:
        return ""
