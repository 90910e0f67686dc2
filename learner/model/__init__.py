"""The policy as a Megatron-Core model. The only package that imports Megatron.

Open `policy.py` first. `architecture.py` and `convert.py` read Hugging Face folders; `gpt.py`, `attention.py`, `rope.py`
and `moe.py` are the layers; `process_groups.py`, `pipeline_parallel.py` and `context_parallel.py` divide them over ranks.
"""
