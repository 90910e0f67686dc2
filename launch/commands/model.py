"""`azr model`: builds the folders of models that recipes name, without a model hub."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from launch.arguments import new_command

_EXAMPLES = """\
examples:
  azr model list                                     the models that can be prepared, and where they are
  azr model prepare smollm2-135m-instruct            build the model's folder in the cache, and print it
  azr train smollm2-cpu model.path=/models/qwen3-0.6b      any Hugging Face folder will do
"""


def register(commands: Any) -> None:
    """Add `azr model` to argparse's subcommands."""
    group = new_command(
        commands,
        "model",
        "models without a hub",
        "Build the folder of a model that recipes know by name (in $AZR_CACHE, or ~/.cache/azr), or list these models.",
        _EXAMPLES,
    ).add_subparsers(required=True, metavar="WHAT")
    prepare = new_command(
        group,
        "prepare",
        "build a known model's folder in the cache, and print it",
        "Build a known model's folder in the cache, unless it is there, and print its path.",
        _EXAMPLES,
    )
    prepare.add_argument("name")
    prepare.set_defaults(run=_prepare)
    listing = new_command(
        group, "list", "the models that can be prepared", "List the models that can be prepared.", _EXAMPLES
    )
    listing.set_defaults(run=_list)


def _prepare(arguments: argparse.Namespace) -> int:
    from launch.models import prepare

    print(prepare(arguments.name, lambda text: print(text, file=sys.stderr)))
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from launch.models import KNOWN, cache

    for name in KNOWN:
        folder = cache() / name
        print(f"{name}  {folder if os.path.isdir(folder) else '(not prepared)'}")  # or it cannot be read
    return 0
