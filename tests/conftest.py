from hypothesis import settings

settings.register_profile("deep", max_examples=3000, stateful_step_count=150, deadline=None)
"""By hand, minutes: `pytest --hypothesis-profile=deep tests/unit/learner/test_staleness_machine.py`."""
