"""Command-line parts that the subjects of `azr bench` share: checked types, a model, options that are read late."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from executor.user_error import UserError


class MissingFolder(UserError):
    """A folder that the command line names and that is not there."""


class LateParser(argparse.ArgumentParser):
    """A parser that gets its options when it parses, so that `azr --help` need not import what they are of."""

    fill: Callable[[argparse.ArgumentParser], None] | None = None
    """Adds the options; called once."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Add the options, then parse."""
        if self.fill is not None:
            fill, self.fill = self.fill, None
            fill(self)
        return super().parse_known_args(args, namespace)


def positive(kind: type[int] | type[float]) -> Any:
    """An argparse type: a number above 0 and below a billion."""

    def read(text: str) -> float:
        value = kind(text)
        if not 0 < value < 1e9:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    read.__name__ = kind.__name__  # argparse names it when a text is no number
    return read


def between(least: int, most: int, refusal: str) -> Any:
    """An argparse type: a whole number from `least` to `most`; `refusal` is the message for any other."""

    def read(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(refusal)
        return value

    read.__name__ = "int"
    return read


def add_seconds(parser: argparse.ArgumentParser, default: float, about: str) -> None:
    """Add `--seconds`; `about`: what the seconds bound, for the help."""
    parser.add_argument(
        "--seconds", type=positive(float), default=default, metavar="S", help=f"{about} (default %(default)s)"
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add `--model`."""
    parser.add_argument("--model", default="smollm2-135m-instruct", metavar="NAME", help="a folder, or a known name")


def check_folder(path: Path, folder: Path) -> None:
    """Raise MissingFolder where `folder`, which `path` is to lie in, does not exist."""
    if not folder.is_dir():
        raise MissingFolder(f"{path}: there is no folder {folder}; make it first")
