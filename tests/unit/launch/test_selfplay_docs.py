"""What docs/selfplay.md says of recipes, settings, metrics and the buffer's tables is so."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

from actors.buffer.task_buffer import TaskBuffer
from actors.metrics import describe_batch
from actors.settings import IntrinsicSettings
from launch.config import documented
from launch.recipe import RECIPES
from learner.metrics import describe_advantages, describe_ages
from learner.settings import BatchSettings
from learner.trajectory import Role, Status, Trajectory, VersionSpan

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "selfplay.md").read_text()
GLOSSARY = TEXT[TEXT.index("## Metrics") :]


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


def test_every_metric_of_a_batch_is_in_the_glossary() -> None:
    import numpy as np

    parts = dict.fromkeys(
        ("valid", "solve_rate", "duplicate", "ignores_input", "nodes", "complexity", "distance", "halstead", "composite",
         "answer_diversity", "correct", "replayed", "estimate", "reward/difficulty"), 0.5,
    )  # fmt: skip
    ids = np.array([1], np.int32)
    batch = [
        Trajectory(
            "run", "a", 0, 0, "e", cell, ids, ids, np.zeros(1, np.float32), (VersionSpan(0, 0, 1),), 0.0,
            parts | {"replayed": replayed}, Status.STOPPED, "valid" if cell.role is Role.PROPOSE else "correct",
        )
        for cell in BatchSettings().cells
        for replayed in (0.0, 1.0)
    ]  # fmt: skip
    numbers = describe_batch(batch) | describe_ages(batch, 0, {0: 0}) | describe_advantages(batch, np.zeros(len(batch)))
    for name in numbers:
        what = name.split("/")[0]
        assert f"`{what}/" in GLOSSARY or f"`{what}`" in GLOSSARY or what in ("batch_size", "reward_mean"), name
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
