"""`azr sft`: supervised fine-tuning, the warm start of self-play."""

from __future__ import annotations

import argparse
from typing import Any

from launch.arguments import add_run, limits_of, new_command, run_config
from launch.run.interrupts import listening

_EPILOG = """\
A line of the data is one example:

  {"prompt": "2 + 2 = ", "response": "4"}
  {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}

examples:
  azr sft sft-smollm2-cpu                            the example that ships: the form of tasks
  azr sft sft-smollm2-cpu sft.data=mine.jsonl run.name=mine sft.epochs=3
  azr sft --resume runs/mine                         go on after a stop, exactly
  azr sft sft-smollm2-cpu --auto-resume              begin, or go on: the same command after every stop
  azr train smollm2-cpu model.path=runs/mine/hf      self-play from there
  azr sft-data tasks.jsonl mine.jsonl                examples out of any tasks
  azr config docs --sft                              every setting

exit codes: 0 complete, 75 stopped and saved, 130 stopped while there was nothing to save, 1 failed, 2 wrong use
"""


def register(commands: Any) -> None:
    """Add `azr sft` to argparse's subcommands."""
    command = new_command(
        commands,
        "sft",
        "supervised fine-tuning, as a warm start",
        "Learn prompts and their responses from a JSON Lines file. Self-play starts from the model that this leaves. "
        "Ctrl-C, SIGTERM, SIGUSR2 or SIGHUP stops after the present step and saves; a second Ctrl-C, 5 s later or "
        "more, stops at once.",
        _EPILOG,
    )
    about = "a TOML file with a table [sft], or the name of a recipe that ships"
    add_run(command, about, "sft.epochs=3", "runs/sft-smollm2-cpu")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    with listening(limits_of(arguments), to_exit=True) as interrupts:  # before the imports, which take seconds
        from launch.config import SftConfig
        from launch.sft.run import run

        config, start = run_config(arguments, SftConfig, "azr sft", "sft-smollm2-cpu")
        return run(config, start, interrupts)
