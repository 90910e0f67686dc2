"""Recipes as plain data: finds TOML files, puts a recipe on top of its base, and parses overrides."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from executor.user_error import UserError

RECIPES = Path(__file__).parent / "recipes"
"""The folder of the recipes that ship."""


class ConfigError(UserError):
    """A configuration that cannot be used; the message says what to do."""


def read_recipe(path: Path, above: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """Read a recipe with its `base`; returns its plain data, and for each dotted key the file that sets it.

    `base = "name"` at the top of a recipe (a name that ships, or a path relative to the recipe) takes over all values
    of the other recipe. This recipe's own values win, key by key, in nested tables too. A recipe with a base that sets
    no `run.name` is named like its file, so that runs of recipes with one base have folders of their own. `above`: the
    recipes whose base this is. Raises ConfigError.
    """
    here = path.resolve()
    if here in above:
        chain = " -> ".join(p.name for p in (*above[above.index(here) :], here))
        raise ConfigError(f"recipes are each other's base, round in a circle: {chain}. Take the base line out of one.")
    try:
        data = tomllib.loads(path.read_bytes().decode())
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text, as TOML must be: {error}. Save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    base = data.pop("base", None)
    sources = dict.fromkeys(_leaves(data), str(path))
    if base is None:
        return data, sources
    if not isinstance(base, str) or not base:
        raise ConfigError(f'base = {base!r} cannot be used ({path}): it names one recipe, as in base = "smollm2-cpu"')
    try:
        base_path = find_recipe(base, path.parent)
    except ConfigError as error:
        raise ConfigError(f"base = {base!r} cannot be used ({path}): {error}") from None
    below, base_sources = read_recipe(base_path, (*above, here))
    if isinstance(data.setdefault("run", {}), dict):
        data["run"].setdefault("name", path.stem)
    return _merge(below, data), base_sources | sources


def find_recipe(recipe: str | Path, folder: Path = Path()) -> Path:
    """Find the file of a recipe: a path, relative to `folder`, or the bare name of one that ships.

    A text with a slash or with the ending `.toml` is a path: it is that file or an error. Raises ConfigError with the
    names that ship.
    """
    path = Path(recipe)
    is_path = "/" in str(recipe) or path.suffix == ".toml"
    candidates = [folder / path] if path.suffix == ".toml" else [folder / path, folder / f"{path}.toml"]
    if not is_path:
        candidates.append(RECIPES / f"{path}.toml")
    for candidate in candidates:
        if os.path.isfile(candidate):
            return candidate
    names = sorted(p.stem for p in RECIPES.glob("*.toml"))
    stem = path.name.removesuffix(".toml")
    if is_path:
        ships = f" The recipe that ships is called {stem}." if stem in names else ""
        raise ConfigError(f"no recipe at {recipe}: there is no such file, or it may not be read.{ships}")
    near = difflib.get_close_matches(stem, names, 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ConfigError(f"no recipe at {recipe}, and none of that name ships.{hint} There are: {', '.join(names)}.")


def parse_override(text: str) -> tuple[str, Any]:
    """Parse `learner.optimizer.lr=2e-5` into (key, value). The value is TOML, or else text. Raises ConfigError."""
    key, separator, raw = text.partition("=")
    if not separator or not all(part.strip() for part in key.split(".")):
        raise ConfigError(
            f"override {text!r} is not of the form table.key=value, for example learner.optimizer.lr=2e-5"
        )
    try:
        value = tomllib.loads(f"v = {raw}")["v"]
    except tomllib.TOMLDecodeError:
        value = raw
    return key.strip(), value


def assign(data: dict[str, Any], key: str, value: Any) -> None:
    """Set the dotted `key` in `data`, in place. Raises ConfigError where a table is needed and there is a value."""
    *tables, leaf = key.split(".")
    for table in tables:
        data = data.setdefault(table, {})
        if not isinstance(data, dict):
            raise ConfigError(f"override {key}: {table} is a value, not a table")
    data[leaf] = value


def settings_in(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of nested tables, by dotted key; an empty table has none."""
    for name, value in data.items():
        if isinstance(value, dict):
            yield from settings_in(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _leaves(data: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in data.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Put `above` on top of `below`; where both have a table, key by key."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
