"""What the documentation names exists: files, links, settings, commands, recipes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch import cli
from launch.config import Config, SftConfig, documented
from launch.recipe import RECIPES

ROOT = Path(__file__).parents[3]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
OF_TODAY = [page for page in PAGES if page.name not in ("log.md", "CHANGELOG.md")]
"""The others tell of the past, and may name what is gone."""
WIDTH = 120

by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
of_today = pytest.mark.parametrize("page", OF_TODAY, ids=lambda page: page.name)


def prose(page: Path) -> Iterator[str]:
    """The lines that are neither code nor comments."""
    fenced = False
    for line in page.read_text().splitlines():
        fenced ^= line.lstrip().startswith("```")
        if not fenced and not line.startswith(("    ", "<!--")):
            yield line


def anchors(page: Path) -> set[str]:
    """GitHub's names of a page's headings."""
    headings = [line.lstrip("#").strip() for line in prose(page) if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@by_name
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)]+)\)", "\n".join(prose(page)))
    broken = []
    for target in targets:
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        if not other.exists() or (anchor and anchor not in anchors(other)):
            broken.append(target)
    assert broken == []


@of_today
def test_paths_that_are_named_exist(page: Path) -> None:
    named = _paths(page)
    tree = {path.relative_to(ROOT).as_posix() for folder in _folders() for path in folder.rglob("*")}
    tree |= {path.name for path in ROOT.iterdir()} | {f".ci/{path.name}" for path in (ROOT / ".ci").iterdir()}
    named = {name for name in named if not _PLACEHOLDERS & set(re.split(r"[/._]", name))} - _RUN
    missing = [name for name in named if not any(path == name or path.endswith(f"/{name}") for path in tree)]
    assert missing == []


def _paths(page: Path) -> set[str]:
    return set(re.findall(r"`((?:[\w.-]+/)*[\w.-]+\.(?:py|toml|jsonl|gz|sh|md|lock))\b", page.read_text()))


def _folders() -> list[Path]:
    return [ROOT / name for name in ("executor", "actors", "learner", "launch", "tests", "docs")]


_RUN = {"config.toml", "metrics.jsonl", "events.jsonl", "seeds.jsonl", "program.py", "programs.jsonl", "mine.jsonl",
        "tasks.jsonl", "results.jsonl", "owner.lock", "slurm/recipe.toml", "study.toml", "report.md"}  # fmt: skip
"""Files of a run folder, of a study, and of examples."""
_PLACEHOLDERS = {"N", "NAME", "RUN", "ACTOR", "PROCESS"}


@of_today
def test_settings_that_are_named_exist(page: Path) -> None:
    keys, tables = _keys_and_tables()
    named = _settings(page)
    # A module's dotted name begins with a package, too.
    modules = {name for name in named if (ROOT / name.split(".")[0]).is_dir() and _is_module(name)}
    files = {name for name in named if name.rsplit(".", 1)[-1] in ("py", "md", "toml", "json", "jsonl")}
    keys |= {
        f"learner.batch.{role}.{kind}"
        for role in ("propose", "solve")
        for kind in ("deduction", "abduction", "induction")
    }
    assert named - keys - tables - modules - files == set()


def _keys_and_tables() -> tuple[set[str], set[str]]:
    keys = {key for root in (Config, SftConfig) for key, _ in documented(root)}
    tables = {key.rsplit(".", 1)[0] for key in keys}
    return keys, tables | {table.split(".", maxsplit=1)[0] for table in tables}


def _settings(page: Path) -> set[str]:
    _, tables = _keys_and_tables()
    return set(re.findall(rf"(?<![\w./])((?:{'|'.join(sorted(tables, key=len))})(?:\.[a-z_]+)+)\b", page.read_text()))


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split(".")[:2])
    return path.is_dir() or path.with_suffix(".py").is_file()


@of_today
def test_commands_and_recipes_that_are_named_exist(page: Path) -> None:
    text = "\n".join(_code(page))
    commands = set(_subcommands())
    assert _commands(page) - commands == set()
    recipes = {path.stem for path in RECIPES.glob("*.toml")}
    used = set(re.findall(r"azr (?:train|sft|drill|config show) ([a-z][a-z0-9-]*)(?=\s|$)", text, re.MULTILINE))
    assert used - recipes == set()


def _commands(page: Path) -> set[str]:
    return set(re.findall(r"^(?:\$ )?azr ([a-z]+(?:-[a-z]+)*)", "\n".join(_code(page)), re.MULTILINE))


def test_the_pages_name_what_is_looked_for() -> None:
    """Otherwise the tests of names would pass because they find none."""
    settings, paths, commands = (set().union(*map(find, OF_TODAY)) for find in (_settings, _paths, _commands))
    assert (len(settings) > 100, len(paths) > 60, commands) == (True, True, set(_subcommands()))


def _code(page: Path) -> Iterator[str]:
    """Code in fences, line by line, and in backticks."""
    fenced = False
    for line in page.read_text().splitlines():
        fenced ^= line.lstrip().startswith("```")
        yield from [line.strip()] if fenced else re.findall(r"`([^`]+)`", line)


def _subcommands() -> list[str]:
    (action,) = (action for action in cli.make_parser()._actions if action.choices)
    assert action.choices is not None
    return list(action.choices)


@by_name
def test_prose_fits_the_width(page: Path) -> None:
    long = [line for line in prose(page) if len(line) > WIDTH and not line.startswith("|")]
    assert long == []


def test_every_event_is_explained() -> None:
    explained = (ROOT / "docs" / "operating.md").read_text()
    source = _source()
    events = set(re.findall(r"(?:on_event|\.event|append_event|context\.record)\(\s*(?:[\w.]+,\s*)?\"(\w+)\"", source))
    assert len(events) > 15
    assert {event for event in events if f"`{event}`" not in explained} == set()


def test_messages_that_are_explained_are_ones_that_come() -> None:
    text = (ROOT / "docs" / "operating.md").read_text()
    section = text[text.index("## Messages and what they mean") :].split("\n## ")[0]
    messages = re.findall(r"^\| `(.+?)` \|", section, re.MULTILINE)
    # A text over several lines of source is one text.
    source = re.sub(r"\"\s*\n\s*f?\"", "", _source())
    fragments = [part.strip() for message in messages for part in re.split(r"\.\.\.|(?<=rollout)N", message)]
    assert len(messages) > 20
    assert [fragment for fragment in fragments if fragment not in source] == []


def test_names_in_the_glossary_are_in_the_source() -> None:
    rows = [line for line in (ROOT / "docs" / "glossary.md").read_text().splitlines() if line.startswith("| ")]
    names = {name for row in rows for name in re.findall(r"`([A-Za-z_]+)`", row)}
    source = _source()
    assert len(names) > 10
    assert {name for name in names if not re.search(rf"\b{name}\b", source)} == set()


def _source() -> str:
    return "\n".join(path.read_text() for folder in _folders()[:4] for path in folder.rglob("*.py"))
