from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
"""No example fails for being slow: machines are busy."""

settings.register_profile("deep", max_examples=500, stateful_step_count=100, deadline=None)
"""By hand, minutes: `pytest --hypothesis-profile=deep tests/unit/learner/test_staleness_machine.py`."""
