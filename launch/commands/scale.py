"""`azr scale`: changes the number of rollout actors of a run while it goes on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from launch.arguments import new_command

_EXAMPLES = """\
examples:
  azr scale runs/smollm2-cpu --actors 3              start actors until there are three
  azr scale runs/smollm2-cpu --actors 1              let all but one finish their slots and leave
"""


def register(commands: Any) -> None:
    """Add `azr scale` to argparse's subcommands."""
    command = new_command(
        commands,
        "scale",
        "change the number of rollout actors of a run that goes on",
        "Set the number of rollout actors of a run that goes on, from any machine that sees its folder. New ones get "
        "the present weights before they play; surplus ones finish the slots that they hold and leave. The recipe "
        "keeps its number.",
        _EXAMPLES,
    )
    command.add_argument("folder", metavar="RUN", help="the run's folder, such as runs/smollm2-cpu")
    command.add_argument("--actors", type=int, required=True, metavar="N", help="how many rollout actors to have")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from launch.cluster.control import ask

    answer = ask(Path(arguments.folder), "scale", actors=arguments.actors)
    print(f"{arguments.folder} goes on with {answer['actors']} rollout actors")
    return 0
