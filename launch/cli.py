"""The `azr` command."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from actors.buffer_file import TaskBufferError
from launch import bench, config_reference, models
from launch import config as configuration
from launch.arguments import RunFolderError, add_overrides, overrides_of, run_config
from launch.cluster import control
from launch.commands import doctor, drill, execute, seeds
from launch.sft import data as sft_data
from launch.sft import run as sft
from learner.checkpoint import CheckpointError
from learner.stream.keys import KeysError

VERIFY_POLL_S = 0.5

_EXAMPLES = """\
examples:
  azr train smollm2-cpu                              the default run: a real 135M model on a laptop's CPU
  azr train smollm2-cpu learner.steps=200 run.name=long
  azr train --resume runs/smollm2-cpu learner.steps=40
  azr train smollm2-cpu run.mode=serial learner.max_staleness=0    one process, one thread, deterministic
  azr scale runs/smollm2-cpu --actors 3              more rollout actors, or fewer, while it runs
  azr verify runs/smollm2-cpu                        do its engines run what the learner has, bit by bit?
  azr config show smollm2-cpu                        every setting of a recipe, resolved
  azr sft sft-smollm2-cpu                            supervised fine-tuning first, as a warm start
  azr seeds save runs/first seeds.jsonl              a run's tasks, to start another with (selfplay.seed_tasks)
  azr model prepare smollm2-135m-instruct            build the model's folder in the cache
  azr exec program.py --input "[3, 1], 'abc'"        run a program in the sandbox, by hand
  azr doctor                                         what the sandbox is made of on this machine
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code. 2: the command or the configuration is wrong; 130: Ctrl-C."""
    parser = _parser()
    # argparse takes positionals in one stretch only: overrides that follow a --set come back as unknown.
    arguments, rest = parser.parse_known_args(argv)
    if any(text.startswith("-") or "=" not in text for text in rest) or (rest and "sets" not in arguments):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    try:
        return int(arguments.run(arguments))
    except _WRONG_USE as error:
        print(f"azr: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("azr: interrupted", file=sys.stderr)
        return 130


_WRONG_USE = (
    configuration.ConfigError,
    models.ModelError,
    RunFolderError,
    execute.ExecError,
    control.ControlError,
    drill.DrillError,
    KeysError,
    seeds.SeedError,
    TaskBufferError,
    CheckpointError,
    sft.SftError,
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="azr",
        description="Absolute Zero self-play: a language model proposes Python tasks, solves them, and learns from what an "
        "executor says is true.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="run self-play training",
        description="Train from a recipe, or go on with a run. Ctrl-C once stops after the present step and saves; twice "
        "stops at once.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("recipe", nargs="?", help="a TOML file, or the name of a recipe that ships")
    add_overrides(train, "settings on top, such as learner.steps=40")
    train.add_argument("--resume", metavar="RUN", help="a run folder to go on with, such as runs/smollm2-cpu")
    train.set_defaults(run=_train)

    scale = commands.add_parser(
        "scale",
        help="change the number of rollout actors of a run that goes on",
        description="Ask a run that goes on, on this machine, to have so many rollout actors. New ones get the present weights "
        "before they play; ones that are too many finish what they hold and leave. The recipe keeps its number.",
    )
    scale.add_argument("folder", metavar="RUN", help="the run's folder, such as runs/smollm2-cpu")
    scale.add_argument("--actors", type=int, required=True, metavar="N", help="how many rollout actors to have")
    scale.set_defaults(run=_scale)

    verify = commands.add_parser(
        "verify",
        help="compare the weights that a run's engines use with the learner's, while it goes on",
        description="Ask a run that goes on, on this machine, for digests of every tensor: the learner's after its next "
        "publication, and each engine's at the same version. The run does not stand still for it. Exit code 1 where one differs "
        "or could not be compared.",
    )
    verify.add_argument("folder", metavar="RUN", help="the run's folder, such as runs/smollm2-cpu")
    verify.set_defaults(run=_verify)
    drill.add_command(commands)

    config = commands.add_parser("config", help="look at settings").add_subparsers(required=True, metavar="WHAT")
    show = config.add_parser("show", help="a recipe with all defaults filled in, as TOML")
    show.add_argument("recipe", help="a TOML file, or the name of a recipe that ships")
    add_overrides(show, "settings on top, such as learner.steps=40")
    show.set_defaults(run=_config_show)
    schema = config.add_parser("schema", help="the JSON schema of a recipe")
    schema.set_defaults(run=_config_schema)
    docs = config.add_parser("docs", help="every setting with what it means")
    docs.add_argument(
        "--format", choices=("text", "markdown"), default="text", help="markdown: as in docs/configuration.md"
    )
    for command in (schema, docs):
        command.add_argument("--sft", action="store_true", help="of `azr sft`, in place of `azr train`")
    docs.set_defaults(run=_config_docs)

    model = commands.add_parser("model", help="models without a hub").add_subparsers(required=True, metavar="WHAT")
    prepare = model.add_parser("prepare", help="build a known model's folder in the cache, and print it")
    prepare.add_argument("name")
    prepare.set_defaults(run=_model_prepare)
    listing = model.add_parser("list", help="the models that can be prepared")
    listing.set_defaults(run=_model_list)

    execute.add_command(commands)
    doctor.add_command(commands)
    seeds.register(commands)
    sft.register(commands)
    sft_data.register(commands)
    bench.register(commands)
    return parser


def _train(arguments: argparse.Namespace) -> int:
    config = run_config(arguments, configuration.Config, "azr train", "smollm2-cpu")
    from launch.commands.train import train

    return train(config, resume=bool(arguments.resume))


def _scale(arguments: argparse.Namespace) -> int:
    answer = control.ask(Path(arguments.folder), "scale", actors=arguments.actors)
    print(f"{arguments.folder} goes on with {answer['actors']} rollout actors")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from launch.cluster.verify import sentences

    folder = Path(arguments.folder)
    number = control.ask(folder, "verify")["number"]
    said = ""
    while not (report := control.ask(folder, "verified", number=number))["done"]:
        if report["waits_for"] != said:
            said = report["waits_for"]
            print(f"waiting for {said}", file=sys.stderr)
        time.sleep(VERIFY_POLL_S)
    lines, equal = sentences(report["results"])
    print("\n".join(lines))
    return 0 if equal else 1


def _config_show(arguments: argparse.Namespace) -> int:
    data, _ = configuration.read_recipe(configuration.find_recipe(arguments.recipe))
    config = configuration.load(arguments.recipe, overrides_of(arguments), configuration.kind_of(data))
    print(configuration.to_toml(config), end="")
    return 0


def _config_schema(arguments: argparse.Namespace) -> int:
    print(configuration.schema(configuration.SftConfig if arguments.sft else configuration.Config))
    return 0


def _config_docs(arguments: argparse.Namespace) -> int:
    root = configuration.SftConfig if arguments.sft else configuration.Config
    if arguments.format == "markdown":
        print(config_reference.markdown(root), end="")
        return 0
    for key, text in configuration.documented(root):
        print("\n    ".join([key, *text.splitlines()]))
    return 0


def _model_prepare(arguments: argparse.Namespace) -> int:
    print(models.prepare(arguments.name, lambda text: print(text, file=sys.stderr)))
    return 0


def _model_list(arguments: argparse.Namespace) -> int:
    for name in models.KNOWN:
        folder = models.cache() / name
        print(f"{name}  {folder if folder.is_dir() else '(not prepared)'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
