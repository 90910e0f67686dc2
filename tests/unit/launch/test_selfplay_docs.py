"""What docs/selfplay.md says of recipes, settings and the buffer's tables is so."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

from actors.buffer.task_buffer import TaskBuffer
from actors.settings import IntrinsicSettings
from launch.config import documented
from launch.recipe import RECIPES

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "selfplay.md").read_text()


def test_every_ablation_is_listed_with_its_line() -> None:
    listed = dict(re.findall(r"^\| `(ablation-[a-z-]+)` \| `(.+)` \|$", TEXT, re.MULTILINE))
    files = {path.stem: path.read_text().splitlines()[-1] for path in RECIPES.glob("ablation-*.toml")}
    assert listed == files
    for path in RECIPES.glob("collapse-*.toml"):
        assert f"`{path.stem}`" in TEXT or f"`azr train {path.stem}`" in TEXT


def test_settings_that_are_named_exist() -> None:
    keys = {key for key, _ in documented()}
    named = set(re.findall(r"`((?:selfplay|learner|buffer|executor|actors|run)\.[a-z_.]+)", TEXT))
    tables = {key.rsplit(".", 1)[0] for key in keys}
    assert {name for name in named if name not in keys | tables} == set()
    assert len(named) > 20


def test_every_intrinsic_reward_is_explained() -> None:
    for term in IntrinsicSettings.model_fields:
        assert f"`{term}`" in TEXT


def test_the_examples_of_sql_run(tmp_path: Path) -> None:
    TaskBuffer(tmp_path / "tasks.sqlite").close()
    database = sqlite3.connect(tmp_path / "tasks.sqlite")
    (examples,) = re.findall(r"```sql\n(.*?)```", TEXT, re.DOTALL)
    statements = [text for text in examples.split(";") if text.strip()]
    assert len(statements) == 5
    for statement in statements:
        database.execute(statement).fetchall()
    database.close()
