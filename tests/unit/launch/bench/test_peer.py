"""The benchmark beside TRL, as far as it needs neither TRL nor a network: equal work, ratios, the environment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.bench import peer, peer_environment
from launch.bench.learner_side import SHIPPED
from launch.bench.peer import PeerWorkError, Turns
from launch.bench.peer_environment import PeerEnvironmentError
from launch.bench.peer_work import Work, missing_work, not_trained, recorded
from launch.bench.report import Report

works = st.builds(
    Work,
    st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=5).map(tuple), min_size=1, max_size=4, unique=True).map(
        tuple
    ),
    st.integers(1, 3),
    st.integers(1, 9),
)


def done(work: Work) -> list[tuple[list[int], int]]:
    return [(list(prompt), work.tokens) for prompt in work.prompts for _ in range(work.responses)]


@given(works, st.randoms())
def test_all_of_the_work_in_any_order_is_equal_work_and_anything_else_is_not(work: Work, draw: Any) -> None:
    found = done(work)
    draw.shuffle(found)
    assert missing_work(work, found) == ""
    prompt, length = found[0]
    assert "missing" in missing_work(work, found[1:])
    assert "others" in missing_work(work, [*found, found[0]])
    assert "others" in missing_work(work, [(prompt + [100], length), *found[1:]])
    assert "other lengths" in missing_work(work, [(prompt, length + 1), *found[1:]])


@given(works)
def test_work_survives_json(work: Work) -> None:
    assert Work.from_json(json.loads(json.dumps(work.to_json(), allow_nan=False))) == work
    assert work.response_tokens == sum(length for _, length in done(work))
    assert 0 < work.shared <= 1


def test_a_step_that_did_not_train_is_named() -> None:
    step = {"loss": 0.0, "grad_norm": 0.5, "changed": 3, "tensors": 4}
    assert not_trained(step) == ""
    assert "loss" in not_trained(step | {"loss": None})
    assert "grad_norm" in not_trained(step | {"grad_norm": None})
    assert "gradient is 0" in not_trained(step | {"grad_norm": 0.0})
    assert "none of its 4 tensors" in not_trained(step | {"changed": 0})


def test_the_recorded_prompts_share_what_the_recorded_batch_shares() -> None:
    work = recorded(SHIPPED, 6, 8, 32)
    assert len(work.prompts) == 6 and work.longest < 200
    # docs/performance.md: sharing prompts computes 33% of the recorded batch's rows.
    assert work.shared == pytest.approx(0.33, abs=0.02)
    with pytest.raises(ValueError, match="different prompts, not 1000"):
        recorded(SHIPPED, 1000, 1, 1)


class Answers:
    """A side that has answered already: its seconds by request, in turn."""

    def __init__(self, work: Work, seconds: list[tuple[float, float]], overlapped: list[float] = []) -> None:
        self._trained = {"loss": 0.0, "grad_norm": 1.0, "changed": 1, "tensors": 1, "done": done(work)}
        self._seconds, self._overlapped = iter(seconds), iter(overlapped)

    def ask(self, message: dict[str, Any], _: float) -> dict[str, Any]:
        if message["op"] == "async":
            steps = [self._trained] * message["steps"]
            return {"seconds": next(self._overlapped), "steps": steps, "oldest": 1, "mean_age": 0.5}
        generate_s, train_s = next(self._seconds)
        return self._trained | {"generate_s": generate_s, "train_s": train_s, "seconds": generate_s + train_s}


def test_ratios_are_of_speeds_and_the_better_way_of_azr_counts() -> None:
    work = recorded(SHIPPED, 2, 2, 4)
    ours = Answers(work, [(9.0, 9.0), (1.0, 3.0), (1.0, 3.0)], [6.0])
    theirs = Answers(work, [(9.0, 9.0), (0.5, 11.5), (0.5, 11.5)])
    turns = Turns(work, ours, theirs, overlapped=2)  # type: ignore[arg-type]
    turns.measure(1, lambda text: None)
    report = Report("peer", {})
    turns.report(report)
    ratios = {key: ratio.median for key, ratio in report.ratios.items()}
    assert ratios == pytest.approx(
        {
            "over_trl": 4.0, "synchronous_over_trl": 3.0, "asynchronous_over_trl": 4.0, "generate_over_trl": 0.5,
            "train_over_trl": 11.5 / 3,
        }
    )  # fmt: skip
    assert report.to_json()["goals"]["over_trl"]["met"]
    assert "generate_over_trl 0.5" in report.notes["where azr loses"]
    both = next(row for row in report.rows if row["path"] == "both, TRL")
    assert both["rate"] == pytest.approx(16 / 12, rel=1e-4) and both["p50_ms"] == 12000


def test_a_side_that_did_less_stops_the_measurement() -> None:
    work = recorded(SHIPPED, 2, 2, 4)
    ours = Answers(Work(work.prompts, 1, 4), [(1.0, 1.0)])
    with pytest.raises(PeerWorkError, match="a step of azr: 2 responses"):
        Turns(work, ours, ours, overlapped=1).measure(1, lambda text: None)  # type: ignore[arg-type]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(PeerEnvironmentError, match="no virtual environment and not empty"):
        peer_environment.prepare(tmp_path, print)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_too_little_space_is_said_before_anything_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_environment, "NEEDED_GIB", 1e9)
    with pytest.raises(PeerEnvironmentError, match=r"needs 1000000000 GiB, and .* are free"):
        peer_environment.prepare(tmp_path / "env", print)
    assert list((tmp_path / "env").iterdir()) == []


def test_an_installation_that_fails_says_what_to_do(tmp_path: Path) -> None:
    assert "--env" in peer_environment.explain(tmp_path, "trl", "ERROR: [Errno 28] No space left on device")
    network = peer_environment.explain(tmp_path, "trl", "ERROR: No matching distribution found for trl==1.16.0")
    assert "PIP_FIND_LINKS" in network and "No matching distribution" in network
    assert f"Remove {tmp_path}" in peer_environment.explain(tmp_path, "trl", "Segmentation fault")


def test_an_environment_of_other_requirements_is_not_complete(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    (tmp_path / "azr-peer").write_text(peer_environment.requirements_digest("0.0.0"))
    assert not peer_environment.is_complete(tmp_path)
    torch = peer_environment._torch()
    (tmp_path / "azr-peer").write_text(peer_environment.requirements_digest(torch))
    assert peer_environment.is_complete(tmp_path)


def test_requirements_are_pinned_and_torch_is_azrs_own() -> None:
    lines = [line for line in peer_environment.REQUIREMENTS.read_text().splitlines() if line and line[0] != "#"]
    assert all(line.count("==") == 1 for line in lines) and lines == sorted(lines, key=str.lower)
    assert any(line.startswith("trl==") for line in lines)
    assert not any(line.startswith("torch==") for line in lines)


def test_every_setting_of_trl_has_a_reason() -> None:
    plain, mended = (peer._settings_table(peer.Options(mended=mended)).rows for mended in (False, True))
    assert all(len(row) == 3 and all(row) for row in plain)
    assert [(row[0], row[1]) for row in mended if row not in plain] == [("use_vllm", "True")]
    assert [row[0] for row in mended] == [row[0] for row in plain]
