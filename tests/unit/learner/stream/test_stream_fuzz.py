"""Tens of thousands of malformed messages over a real socket. A million: `python -m tests.fuzz_stream`."""

from __future__ import annotations

import ast
import random
from pathlib import Path

from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from learner.fields import Refusal
from tests.examples import examples
from tests.fuzz_stream import Fuzz, fuzzing, malformed

MESSAGES = 800
PROTOCOL = {"wire", "trajectory", "staleness", "ledger", "member", "keys"}
CHECKS = examples(25, suppress_health_check=list(HealthCheck))


def test_what_is_malformed_is_refused_by_reason_while_an_honest_actor_plays_on() -> None:
    """Each example sends its messages and waits until all are refused, each for the reason that is due."""

    with fuzzing() as fuzz:
        CHECKS(given(st.integers(0, 2**32))(lambda seed: _send(fuzz, seed)))()
        fuzz.check_play()
        assert fuzz.expected.total() >= CHECKS.max_examples * MESSAGES
        assert set(fuzz.expected) == set(Refusal), "a reason that nothing was refused for"


def test_nothing_on_a_wire_is_pickled() -> None:
    """No module of the protocols imports pickle or what is built on it, or uses pyzmq's pickling calls."""
    modules = [
        path
        for path in (Path(__file__).parents[4] / "learner").rglob("*.py")
        if path.stem in PROTOCOL or path.parent.name == "stream"
    ]
    assert {path.stem for path in modules} >= PROTOCOL
    for path in modules:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"pickle", "marshal", "shelve", "dill"}, path
            if isinstance(node, ast.Attribute):
                assert node.attr not in {"send_pyobj", "recv_pyobj", "send_serialized", "recv_serialized"}, path


def _send(fuzz: Fuzz, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(MESSAGES):
        fuzz.send(malformed(rng))
    fuzz.check()
