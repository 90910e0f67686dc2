"""The inference engine: vLLM as a rollout actor uses it.

`generation.py` is what the rest knows of an engine; `base.py` is what both engines share; `async_engine.py` serves the
distributed run and `serial_engine.py` serial mode.
"""
