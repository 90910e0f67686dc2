"""docs/configuration.md and docs/configuration-sft.md are what `azr config docs` prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launch import cli
from launch.config import Config, SftConfig, documented
from launch.config_reference import markdown, plain_text

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize(("page", "options"), [("configuration.md", []), ("configuration-sft.md", ["--sft"])])
def test_the_committed_page_is_what_the_command_prints(
    page: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["config", "docs", "--format", "markdown", *options]) == 0
    assert capsys.readouterr().out == (DOCS / page).read_text(), (
        f"run `make docs` (azr config docs {' '.join(options)} --format markdown > docs/{page}) "
        "and commit what it changes"
    )


@pytest.mark.parametrize("root", [Config, SftConfig])
def test_the_reference_has_each_setting_once_with_its_meaning(root: type[Config] | type[SftConfig]) -> None:
    found = re.findall(r"^\| `([a-z0-9_.]+)` \|.* \| (.+?) \|$", markdown(root), re.MULTILINE)
    rows = dict(found)
    assert sorted(key for key, _ in found) == sorted(key for key, _ in documented(root))
    for key, text in documented(root):
        assert rows[key].replace("\\|", "|") == " ".join(text.split())


def test_the_reference_shows_types_defaults_and_bounds_as_a_recipe_writes_them() -> None:
    page = markdown(Config)
    assert '| `run.mode` | `"async"`, `"serial"`, `"rehearse"` | `"async"` |  |' in page
    assert "| `run.max_minutes` | number | unset | > 0 |" in page
    assert "| `executor.timeout_s` | number | `2.0` | > 0, ≤ 600 |" in page
    assert "| `learner.loss.clip_low` | number | `0.2` | > 0, < 1 |" in page
    assert "| `sft.data` | text | required | not empty |" in markdown(SftConfig)
    text = plain_text(Config).splitlines()
    assert "executor.timeout_s: number; default 2.0; > 0, ≤ 600" in text
    assert sorted(line.split(":")[0] for line in text if line[0] != " ") == sorted(key for key, _ in documented(Config))
