"""docs/slurm.md: every command of the page is run, in its order, on a cluster, with a run that is rehearsed."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

from launch.config import Config, build
from launch.slurm.folder import JobFolder
from tests.slurm.cluster import Loopback

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "slurm.md"
RECIPE = """
base = "smollm2-cpu"

[run]
name = "first"
mode = "rehearse"
verify_weights = false

[learner.batch]
propose = { deduction = 2 }
solve = { deduction = 4 }

[slurm]
interface = "lo"
"""
"""The recipe that the commands name, for the nodes of the tests."""


def blocks(language: str) -> list[str]:
    """The blocks of code of the page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_the_recipe_of_the_page_is_one() -> None:
    (recipe,) = blocks("toml")
    config = build(tomllib.loads(recipe), None, Config)
    assert (config.run.name, config.slurm.nodes, config.slurm.setup) == ("first", 2, ("module load cuda",))


def test_every_command_of_the_page_does_what_it_says(loopback: Loopback) -> None:
    commands = "".join(blocks("sh")).splitlines()
    folder = loopback.new_folder()
    (folder / "my-recipe.toml").write_text(RECIPE)
    program = folder / "bin" / "azr"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m launch.cli "$@"\n')
    program.chmod(0o755)
    environment = {"PYTHONPATH": str(ROOT), "PATH": f"{program.parent}:{loopback.environment['PATH']}"}
    run = JobFolder(folder / "runs" / "first")

    def job() -> str:
        return (folder / "state").read_text().partition('"')[2].rstrip('"\n')

    def begun(number: int) -> Callable[[], bool]:
        return (run.path / f"attempt.{number}" / "agent.pid").exists

    def log() -> str:
        return run.log.read_text() if run.log.exists() else "no log yet"

    def before(command: str) -> None:
        """Wait until the cluster is where the page has its reader."""
        if command.startswith(("tail", "scancel --signal")):
            loopback.wait_until(begun(0), 120, log)
        elif command.startswith("scancel"):
            loopback.wait_until(begun(1), 120, log)
        elif command.startswith("azr submit --resume"):
            loopback.wait_for(job())

    shown = {}
    for command in commands:
        before(command)
        script = f'[ ! -f state ] || . ./state\n{command}\ncode=$?\n[ -z "$JOB" ] || declare -p JOB > state\nexit $code'
        shown[command] = loopback.run("bash", "-c", script, cwd=folder, **environment)

    assert len(shown) > 10
    assert "KillWait = " in shown["azr doctor my-recipe.toml"]
    assert "first" in shown['squeue --job "$JOB"']
    assert "job_id" in shown["cat runs/first/slurm/latest/attempt.json"]
    assert loopback.job(job())["JobState"] == "CANCELLED"
    assert (folder / "runs" / "second" / "slurm" / "job.sbatch").exists()


def test_the_template_of_the_page_can_be_filled_in(tmp_path: Path) -> None:
    from launch.config import load
    from launch.slurm.script import script

    (template,) = blocks("jinja")
    own = tmp_path / "own.j2"
    own.write_text(template)
    text = script(load("smollm2-cpu", [f"slurm.template={own}", "slurm.environment.A=b"]), "/opt/python", 300)
    assert text.index("source /opt/site/environment.sh") < text.index("export A=b") < text.index("srun ")
