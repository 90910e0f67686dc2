"""The effort of property tests: how many examples they draw, by hypothesis profile (CONTRIBUTING.md, "Tests").

- `fast`, the default: a quarter of the number that a test names. `make check`.
- `full`: that number. `make test`.
- `deep`: at least 500 examples, and 100 steps of each state machine. `make test-all`.
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings

FEWEST = 10
"""Examples that `fast` draws at least, if the test names as many."""

_ON_BUSY_MACHINES: Any = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}

settings.register_profile("fast", max_examples=25, stateful_step_count=30, **_ON_BUSY_MACHINES)
settings.register_profile("full", max_examples=100, stateful_step_count=50, **_ON_BUSY_MACHINES)
settings.register_profile("deep", max_examples=500, stateful_step_count=100, **_ON_BUSY_MACHINES)


def is_deep() -> bool:
    return settings.get_current_profile_name() == "deep"


def examples(number: int, steps: int | None = None, **others: Any) -> settings:
    """Settings of a test that draws `number` examples in `full`; `steps` are those of a state machine.

    No profile has a deadline or a check of speed: an example that is slow on a busy machine is no failure.
    """
    profile = settings()
    if settings.get_current_profile_name() == "fast":
        number = min(number, max(FEWEST, number // 4))
    elif is_deep():
        number = max(number, profile.max_examples)
    steps = max(steps or 0, profile.stateful_step_count) if is_deep() or steps is None else steps
    return settings(max_examples=number, stateful_step_count=steps, **others)
