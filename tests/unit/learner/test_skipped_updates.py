"""A run ends at a number of skipped optimizer steps in a row, and never before."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from learner.skipped_updates import SkippedUpdates, UpdatesSkipped


@given(st.lists(st.booleans(), max_size=30), st.integers(1, 5))
def test_a_run_ends_at_the_nth_skipped_step_in_a_row(updated: list[bool], most: int) -> None:
    steps = SkippedUpdates(most)
    in_a_row, ended, message = 0, False, ""
    for step, taken in enumerate(updated):
        in_a_row = 0 if taken else in_a_row + 1
        try:
            steps.count(1.0 if taken else math.inf, taken, step)
        except UpdatesSkipped as error:
            ended, message = True, str(error)
            break
        assert in_a_row < most
    assert ended == (in_a_row == most)
    assert message.count("inf") == most * ended
