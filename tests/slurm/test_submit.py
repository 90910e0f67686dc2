"""`azr submit` on a real SLURM: what arrives there, what is refused, and how a job is queued again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from launch import cli
from tests.slurm.cluster import Loopback

ROOT = Path(__file__).parents[2]
HORROR = "a 'b' \"c\" $HOME `id` $(id) # %t ; | & * x"
SURROUNDING = {"SBATCH_PARTITION": "nope", "SLURM_JOB_ID": "1", "SLURM_CPUS_PER_TASK": "99", "PMI_RANK": "3"}
"""What a job, or the profile of a user, sets for SLURM's commands."""


@pytest.fixture
def folder(loopback: Loopback, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, in which this process is a user of the cluster who sits in a job."""
    folder = loopback.new_folder()
    for name, value in {**loopback.environment, **SURROUNDING, "PYTHONPATH": str(ROOT)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    return folder


def submit(*arguments: str) -> int:
    return cli.main(["submit", *arguments, "--parsable", "slurm.exclusive=false", "slurm.cpus_per_task=2"])


def test_names_and_paths_arrive_unchanged_and_a_run_has_one_job(
    loopback: Loopback, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = folder / HORROR
    options = ["--sbatch", f"comment={HORROR} \\", "--sbatch", "nice=7", "--sbatch", "hold"]
    assert submit("smollm2-cpu", f"run.dir={runs}", *options) == 0
    job = capsys.readouterr().out.strip()
    shown = loopback.run("scontrol", "show", "job", "-o", job)
    log = str(runs / "smollm2-cpu" / "slurm" / "job.log")
    assert f"Comment={HORROR} \\ " in shown
    assert f"StdOut={log.replace('%', '%%')} " in shown
    found = loopback.job(job)
    assert [found[name] for name in ("Nice", "JobName", "Requeue", "Partition")] == ["7", "smollm2-cpu", "1", "low"]
    assert [path.name for path in folder.iterdir()] == [HORROR]  # nothing in it was executed

    for again in (["smollm2-cpu", f"run.dir={runs}"], ["--resume", str(runs / "smollm2-cpu")]):
        assert submit(*again) == 2
        assert f"job {job} is this run already (pending" in capsys.readouterr().err
    loopback.run("scancel", job)
    loopback.wait_for(job)
    assert submit("--resume", str(runs / "smollm2-cpu"), "--sbatch", "hold") == 0


def test_a_line_of_the_setup_that_fails_is_named_in_the_log_of_the_run(
    loopback: Loopback, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log is where it should be although SLURM expands `%` in its name."""
    setup = 'slurm.setup=["true", "ls /no/such/folder", "echo not reached"]'
    assert submit("smollm2-cpu", f"run.dir={folder / HORROR}", setup) == 0
    assert loopback.wait_for(capsys.readouterr().out.strip())["JobState"] == "FAILED"
    log = (folder / HORROR / "smollm2-cpu" / "slurm" / "job.log").read_text()
    assert "azr: a line of slurm.setup failed with exit code 2: ls /no/such/folder" in log
    assert "not reached" not in log


def test_sbatch_accepts_the_script_of_a_dry_run(
    loopback: Loopback, ordinary: Loopback, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also that of a user who is not root."""
    options = ["slurm.nodes=2", "slurm.gpus_per_node=2", "slurm.time=10", "slurm.memory=1G"]
    assert submit("smollm2-cpu", "--dry-run", *options) == 0
    script = Path(capsys.readouterr().out.strip()) / "job.sbatch"
    assert loopback.run("squeue", "--noheader") == ""
    assert "to start at" in loopback.run("sbatch", "--test-only", str(script))
    assert "to start at" in ordinary.run("sbatch", "--test-only", str(script))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["slurm.partition=nope"], "sbatch: error: invalid partition specified: nope"),
        (["--sbatch", "no-such-option=1"], "sbatch: unrecognized option '--no-such-option=1'"),
    ],
)
def test_a_refusal_is_in_the_words_of_sbatch_and_leaves_nothing(
    folder: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit("smollm2-cpu", *arguments) == 2
    assert words in capsys.readouterr().err
    assert list(folder.iterdir()) == []


PROBE = """\
#!/bin/sh
# In place of Python: the job's own commands are Python's, and the agent's step is a short one.
case "$*" in
*launch.slurm.agent*)
    shift 3
    if [ "$SLURM_PROCID" = 0 ]; then
        trap : USR2 TERM
        echo $$ > "$1/agent.pid"
        sleep 600 & wait
        echo '{"exit_code": 75, "part": "driver", "reason": "stopped"}' > "$1/result.json"
        kill $!
    fi ;;
*) exec PYTHON "$@" ;;
esac
"""
"""An agent that waits for the request to stop, and says that it has saved."""


class Started:
    """A run with such an agent, and its job."""

    def __init__(self, cluster: Loopback, folder: Path, output: pytest.CaptureFixture[str], *arguments: str) -> None:
        """Submit it, and wait until its agent is there."""
        probe = folder / "python"
        probe.write_text(PROBE.replace("PYTHON", sys.executable))
        probe.chmod(0o755)
        assert submit("smollm2-cpu", f"slurm.python={probe}", *arguments) == 0
        self.job = output.readouterr().out.strip()
        self.slurm = folder / "runs" / "smollm2-cpu" / "slurm"
        self._cluster = cluster
        self.wait_for_start(0)

    def wait_for_start(self, number: int) -> None:
        """Wait until the agent of that start of the job can be asked to stop."""
        pid = self.slurm / f"attempt.{number}" / "agent.pid"
        self._cluster.wait_until(pid.exists, 120, (self.slurm / "job.log").read_text)

    def stop(self) -> None:
        """Ask the run to save and end."""
        self._cluster.run("scancel", "--signal=USR2", "--batch", self.job)

    def record(self, number: int) -> dict[str, object]:
        return dict(json.loads((self.slurm / f"attempt.{number}" / "attempt.json").read_text()))


def test_a_run_is_stopped_before_its_time_limit_and_queued_again_up_to_the_cap(
    loopback: Loopback, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Started(loopback, folder, capsys, "slurm.nodes=2", "slurm.max_requeues=1", "slurm.time=1")
    run.wait_for_start(1)  # SLURM sends the signal
    assert (run.slurm / "latest").resolve() == run.slurm / "attempt.1"
    run.stop()
    assert loopback.wait_for(run.job)["ExitCode"] == "75:0"
    assert [run.record(number)["requeue"] for number in (0, 1)] == [True, False]
    assert run.record(1)["decision"] == "slurm.max_requeues = 1 is used up"
    assert (run.record(1)["restarts"], run.record(1)["warning_s"]) == (1, 30)


def test_a_cancelled_job_stays_cancelled(loopback: Loopback, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SLURM would queue it again, if the script asked."""
    run = Started(loopback, folder, capsys)
    loopback.run("scancel", run.job)
    assert loopback.wait_for(run.job)["JobState"] == "CANCELLED"
    assert (run.record(0)["exit_code"], run.record(0)["requeue"]) == (75, False)
    assert "left to SLURM" in str(run.record(0)["decision"])


def test_a_job_that_may_not_be_requeued_submits_itself_anew(
    loopback: Loopback, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Started(loopback, folder, capsys)
    loopback.run("scontrol", "update", f"JobId={run.job}", "Requeue=0")  # as a site that forbids it
    run.stop()
    assert loopback.wait_for(run.job)["ExitCode"] == "75:0"
    run.wait_for_start(1)
    assert run.record(1)["job_id"] == str(int(run.job) + 1)


def test_a_heterogeneous_job_is_requeued_by_its_leader(
    loopback: Loopback, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = ROOT / "tests" / "unit" / "launch" / "slurm" / "golden" / "heterogeneous.j2"
    own = folder / "own.j2"
    own.write_text(template.read_text().replace('{{ "rollout nodes" | sbatch }}', "low").replace("=2", "=1"))
    run = Started(loopback, folder, capsys, f"slurm.template={own}")
    assert run.record(0)["nodes"] == "n1,n2"
    run.stop()
    run.wait_for_start(1)
    assert run.record(1)["job_id"] == run.job
