"""`azr submit` without a SLURM: what it writes, and what it refuses before it asks one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from launch import cli
from launch.config import load, to_toml
from launch.json_file import write_json
from launch.slurm.client import clean_environment
from launch.slurm.folder import JobFolder


@pytest.fixture(autouse=True)
def no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only bash is on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "bash").symlink_to(shutil.which("bash") or "/bin/bash")
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.chdir(tmp_path)


def submit(*arguments: str) -> int:
    return cli.main(["submit", *arguments])


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "slurm").iterdir()}


def test_a_dry_run_writes_the_same_bytes_twice_and_from_every_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit("smollm2-cpu", "--dry-run", "slurm.nodes=2", "learner.steps=7") == 0
    run = tmp_path / "runs" / "smollm2-cpu"
    assert capsys.readouterr().out == f"{run / 'slurm'}\n"
    first = written(run)
    assert set(first) == {"job.sbatch", "recipe.toml", "submission.json"}
    assert submit("--resume", str(run), "--dry-run") == 0
    assert written(run) == first
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert submit("smollm2-cpu", "--dry-run", "slurm.nodes=2", "learner.steps=7", f"run.dir={tmp_path}/runs") == 0
    assert written(run) == first
    config = load(run / "slurm" / "recipe.toml")
    assert (config.folder, config.slurm.nodes, config.learner.steps) == (run, 2, 7)


def test_a_fine_tuning_recipe_is_submitted_by_the_same_command(tmp_path: Path) -> None:
    assert submit("sft-smollm2-cpu", "--dry-run") == 0
    assert "[sft]" in (tmp_path / "runs/sft-smollm2-cpu/slurm/recipe.toml").read_text()


def test_without_slurm_the_message_says_where_to_submit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit("smollm2-cpu") == 2
    assert "sbatch is not on PATH. Submit from a login node" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "needs a recipe"),
        (("smollm2-cpu", "learner.checkpoint_minutes=0", "learner.checkpoint_every=0"), "no checkpoint before its end"),
        (("smollm2-cpu", "ray.address=10.0.0.1:6379"), "ray.address=none"),
        (("smollm2-cpu", "run.mode=serial", "slurm.nodes=2"), "set slurm.nodes=1"),
        (("smollm2-cpu", "selfplay.seed_tasks=/nonexistent"), "selfplay.seed_tasks = /nonexistent cannot"),
        (("smollm2-cpu", "model.path=smollm2-135m-instrct"), "Did you mean smollm2-135m-instruct"),
        (("sft-smollm2-cpu", "sft.data=/nonexistent"), "sft.data = /nonexistent is no file"),
        (("sft-smollm2-cpu", "sft.validation_data=none.jsonl"), "sft.validation_data = none.jsonl is no file"),
        (("smollm2-cpu", "--sbatch", "array=0-3"), "the option array cannot be given"),
        (("smollm2-cpu", "--sbatch", "time=5"), "set slurm.time"),
        (("smollm2-cpu", "--sbatch", "mail_type=ALL"), "no long option of sbatch"),
        (("smollm2-cpu", "slurm.setup=['echo \"']"), "no valid bash"),
        (("smollm2-cpu", "slurm.environment.SLURM_JOB_ID=1"), "set by the job itself"),
        (("--resume", "runs/none"), "no run folder"),
    ],
)
def test_what_cannot_be_a_job_is_refused_and_leaves_nothing(
    arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(*arguments, "--dry-run") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_an_option_of_sbatch_is_text_whatever_it_looks_like(tmp_path: Path) -> None:
    assert (
        submit("smollm2-cpu", "--dry-run", "--sbatch", 'comment="1.10"', "--sbatch", "nice=1.10", "--sbatch", "hold")
        == 0
    )
    config = load(tmp_path / "runs/smollm2-cpu/slurm/recipe.toml")
    assert config.slurm.extra == {"comment": '"1.10"', "nice": "1.10", "hold": ""}


def test_a_run_that_has_begun_is_refused_with_the_command_that_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs" / "smollm2-cpu"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    assert submit("smollm2-cpu", "--dry-run") == 2
    assert f"azr submit --resume {run}" in capsys.readouterr().err


def test_a_dry_run_leaves_the_recipe_of_a_job_that_may_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit("smollm2-cpu", "--dry-run") == 0
    job = JobFolder(tmp_path / "runs" / "smollm2-cpu")
    attempt = job.new_attempt()
    write_json(attempt.record, {"job_id": "12", "nodes": "n1"})
    before = job.recipe.read_bytes()
    assert submit("smollm2-cpu", "--dry-run", "learner.steps=3") == 2
    assert "attempt 0, of job 12" in capsys.readouterr().err
    assert job.recipe.read_bytes() == before


def test_the_environment_of_a_surrounding_job_is_left_out() -> None:
    kept = {"PATH": "/bin", "SLURM_CONF": "/etc/slurm.conf", "PYTHONPATH": "/src"}
    left_out = {"SLURM_JOB_ID": "1", "SLURMD_NODENAME": "n1", "SBATCH_QOS": "a", "PMI_RANK": "0", "PMIX_ID": "1",
                "SRUN_CPUS_PER_TASK": "4", "SALLOC_PARTITION": "b"}  # fmt: skip
    assert clean_environment(kept | left_out) == kept


def test_the_warning_comes_from_what_the_run_has_measured(tmp_path: Path) -> None:
    assert submit("smollm2-cpu", "--dry-run") == 0
    run = tmp_path / "runs" / "smollm2-cpu"
    assert b"--signal=B:USR2@300\n" in written(run)["job.sbatch"]
    (run / "metrics.jsonl").write_text('{"step": 1, "train_s": 40.0}\n{"step": 2, "train_s": 4.0}\n')
    (run / "events.jsonl").write_text('{"event": "checkpoint", "step": 1, "seconds": 80.0}\n')
    assert submit("--resume", str(run), "--dry-run") == 0
    longest = 1.25 * 40 + 1.25 * 80 + 5 + 60  # docs/operating.md, "Stopping in time"; a minute for SLURM
    assert f"--signal=B:USR2@{longest:.0f}\n".encode() in written(run)["job.sbatch"]


def test_a_run_goes_on_without_the_ray_of_its_last_job(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "first"
    run.mkdir(parents=True)
    former = load("smollm2-cpu", ["run.name=first", "ray.address=10.0.0.1:6379", "learner.steps=9"])
    (run / "config.toml").write_text(to_toml(former))
    assert submit("--resume", "runs/first", "--dry-run", "slurm.nodes=2") == 0
    config = load(run / "slurm" / "recipe.toml")
    assert (config.folder, config.ray.address, config.learner.steps, config.slurm.nodes) == (run, None, 9, 2)


def test_a_run_that_was_only_submitted_goes_on_from_where_its_folder_is(tmp_path: Path) -> None:
    assert submit("smollm2-cpu", "--dry-run", "learner.steps=9") == 0
    moved = (tmp_path / "runs" / "smollm2-cpu").rename(tmp_path / "moved")
    assert submit("--resume", "moved", "--dry-run", "slurm.nodes=2") == 0
    config = load(moved / "slurm" / "recipe.toml")
    assert (config.folder, config.learner.steps, config.slurm.nodes) == (moved, 9, 2)
