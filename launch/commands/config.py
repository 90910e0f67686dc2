"""`azr config`: shows the settings of a recipe, their documentation, and their JSON schema."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from launch.arguments import add_overrides, new_command, overrides_of

if TYPE_CHECKING:
    from launch.config import Config, SftConfig

_EXAMPLES = """\
examples:
  azr config show smollm2-cpu                        every setting of a recipe, resolved
  azr config show smollm2-cpu actors.num_actors=4    the same, with a setting changed
  azr config docs                                    what every setting means
  azr config docs --sft                              those of azr sft
  azr config schema > recipe.schema.json             for an editor that checks TOML
"""


def register(commands: Any) -> None:
    """Add `azr config` to argparse's subcommands."""
    group = new_command(
        commands,
        "config",
        "look at settings",
        "Show the settings of a recipe, what each setting means, or the JSON schema of a recipe.",
        _EXAMPLES,
    ).add_subparsers(required=True, metavar="WHAT")
    show = new_command(
        group,
        "show",
        "a recipe with all defaults filled in, as TOML",
        "Print the resolved configuration of a recipe: its base, the defaults and the overrides put together.",
        _EXAMPLES,
    )
    show.add_argument("recipe", help="a TOML file, or the name of a recipe that ships")
    add_overrides(show, "settings on top, such as learner.steps=40")
    show.set_defaults(run=_show)
    schema = new_command(
        group, "schema", "the JSON schema of a recipe", "Print the JSON schema of a recipe.", _EXAMPLES
    )
    schema.set_defaults(run=_schema)
    docs = new_command(
        group, "docs", "every setting with what it means", "Print every setting with what it means.", _EXAMPLES
    )
    docs.set_defaults(run=_docs)
    docs.add_argument(
        "--format", choices=("text", "markdown"), default="text", help="markdown: as in docs/configuration.md"
    )
    for command in (schema, docs):
        command.add_argument("--sft", action="store_true", help="of `azr sft`, in place of `azr train`")


def _root(arguments: argparse.Namespace) -> type[Config] | type[SftConfig]:
    from launch.config import Config, SftConfig

    return SftConfig if arguments.sft else Config


def _show(arguments: argparse.Namespace) -> int:
    from launch.config import load, root_of, to_toml
    from launch.recipe import find_recipe, read_recipe

    data, _ = read_recipe(find_recipe(arguments.recipe))
    print(to_toml(load(arguments.recipe, overrides_of(arguments), root_of(data))), end="")
    return 0


def _schema(arguments: argparse.Namespace) -> int:
    from launch.config import schema

    print(schema(_root(arguments)))
    return 0


def _docs(arguments: argparse.Namespace) -> int:
    from launch.config_reference import markdown, plain_text

    print((markdown if arguments.format == "markdown" else plain_text)(_root(arguments)), end="")
    return 0
