"""The configuration reference, written from the settings classes: in Markdown (docs/configuration.md) and as text."""

from __future__ import annotations

import textwrap
import types
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, Literal, Union, get_args, get_origin

import tomli_w
from annotated_types import Ge, Gt, Le, Len, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from launch.config import Config, SftConfig

WIDTH = 120

_TRAIN = """\
# Configuration of `azr train`

Every setting of a self-play run, by table. `azr sft` has [its own page](configuration-sft.md).

A recipe is a TOML file that sets some of these keys; the rest keep their defaults. Recipes that ship lie in
`launch/recipes/`, and `base = "NAME"` at the top of a recipe takes over another one's values. The command line comes
last:

```
azr train smollm2-cpu learner.optimizer.lr=1e-5 run.name=try2
azr config show smollm2-cpu      # all values of a recipe, defaults filled in
azr config docs                  # this page, as text
```

An unknown key, a value out of bounds or two values that do not fit together stop the command before anything starts;
the message names the key, the file that it came from, and the closest known key. The resolved configuration is saved as
`config.toml` in the run folder. `azr train --resume RUN KEY=VALUE` changes a setting of an existing run.
"""
_SFT = """\
# Configuration of `azr sft`

Every setting of a fine-tuning run, by table. A recipe with a table `[sft]` is one of `azr sft`; how recipes, defaults
and overrides come together is told [with the settings of `azr train`](configuration.md). What the command does:
[supervised fine-tuning](sft.md).
"""
_WRITTEN = "<!-- Written by `make docs` from the settings classes. Change the docstrings there, not this file. -->\n"


def markdown(root: type[BaseModel]) -> str:
    """The page of `Config` or `SftConfig`: a heading and a table of settings for each table of the configuration."""
    assert root in (Config, SftConfig)
    parts = [_WRITTEN + (_TRAIN if root is Config else _SFT)]
    for name, section in _sections(root):
        first = (section.__doc__ or "").split("\n\n")[0]
        about = _capitalised(" ".join(first.split()).removeprefix(f"`[{name}]`").lstrip(":, "))
        rows = [_row(f"{name}.{key}", field) for key, field in _settings(section)]
        head = "| key | type | default | bounds | meaning |\n| --- | --- | --- | --- | --- |"
        lines = textwrap.wrap(about, WIDTH, break_long_words=False, break_on_hyphens=False)
        parts.append("\n".join([f"## `[{name}]`", "", *lines, "", head, *rows, ""]))
    return "\n".join(parts)


def plain_text(root: type[BaseModel]) -> str:
    """The settings of `Config` or `SftConfig` for a terminal: key, type, default and bounds, then the meaning."""
    lines = []
    for name, section in _sections(root):
        for key, field in _settings(section):
            default = "required" if field.is_required() else "default " + _default(field)
            facts = [_type(field.annotation), default, _bounds(field)]
            lines.append(f"{name}.{key}: " + "; ".join(fact for fact in facts if fact).replace("`", ""))
            lines += textwrap.wrap(
                " ".join((field.description or "").split()), 100, initial_indent="    ", subsequent_indent="    "
            )
    return "\n".join(lines) + "\n"


def _capitalised(text: str) -> str:
    """Make the first letter a capital, unless the first word has one further on, as vLLM has."""
    return text[:1].upper() + text[1:] if text.split(" ", maxsplit=1)[0].rstrip(".:").islower() else text


def _sections(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Every table below `model` that has settings of its own, as (dotted name, class)."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            if _settings(annotation):
                yield f"{prefix}{name}", annotation
            yield from _sections(annotation, f"{prefix}{name}.")


def _settings(section: type[BaseModel]) -> list[tuple[str, FieldInfo]]:
    return [
        (name, field)
        for name, field in section.model_fields.items()
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel))
    ]


def _row(key: str, field: FieldInfo) -> str:
    meaning = " ".join((field.description or "").split())
    default = "required" if field.is_required() else _default(field)
    cells = [f"`{key}`", _type(field.annotation), default, _bounds(field), meaning]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(annotation: Any) -> str:
    """The type as a reader of TOML knows it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{_toml(choice)}`" for choice in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(each) for each in arguments if each is not type(None))
    if origin in (tuple, list):
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"table of {_type(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return ", ".join(f"`{_toml(member.value)}`" for member in annotation)
    return {int: "integer", float: "number", bool: "boolean", str: "text"}.get(annotation, str(annotation))


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    return "unset" if value is None else f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    """A value as a recipe writes it, on one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }" if value else "{}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, StrEnum):
        value = value.value
    return tomli_w.dumps({"v": value}).removeprefix("v = ").strip()


def _bounds(field: FieldInfo) -> str:
    found = []
    for rule in field.metadata:
        match rule:
            case Ge():
                found.append(f"≥ {rule.ge}")
            case Gt():
                found.append(f"> {rule.gt}")
            case Le():
                found.append(f"≤ {rule.le}")
            case Lt():
                found.append(f"< {rule.lt}")
            case MinLen() | Len():
                found.append("not empty")
            case _ if pattern := getattr(rule, "pattern", None):
                found.append(f"`{pattern}`")
    return ", ".join(found)
