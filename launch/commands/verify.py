"""`azr verify`: compares the weights that a run's engines use with the learner's, while the run goes on."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from launch.arguments import new_command

POLL_S = 0.5

_EXAMPLES = """\
examples:
  azr verify runs/smollm2-cpu                        a line for each rollout actor
  azr verify runs/smollm2-cpu || echo "engines differ"
  azr train smollm2-cpu run.verify_weights=true      the same, once, at the end of a run
"""


def register(commands: Any) -> None:
    """Add `azr verify` to argparse's subcommands."""
    command = new_command(
        commands,
        "verify",
        "compare the weights that a run's engines use with the learner's, while it goes on",
        "Ask a run that goes on, from any machine that sees its folder, for digests of every tensor: the "
        "learner's after its next publication, and each engine's at the same version. The run does not wait for it. "
        "Exit code 1: an engine "
        "differs or could not be compared.",
        _EXAMPLES,
    )
    command.add_argument("folder", metavar="RUN", help="the run's folder, such as runs/smollm2-cpu")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from launch.cluster.control import ask
    from launch.cluster.verify import sentences

    folder = Path(arguments.folder)
    number = ask(folder, "verify")["number"]
    said = ""
    while not (report := ask(folder, "verified", number=number))["done"]:
        if report["waits_for"] != said:
            said = report["waits_for"]
            print(f"waiting for {said}", file=sys.stderr)
        time.sleep(POLL_S)
    lines, equal = sentences(report["results"])
    print("\n".join(lines))
    return 0 if equal else 1
