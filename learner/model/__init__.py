"""The policy as a Megatron-Core model. The only package that imports Megatron.

Open `policy.py` first. `architecture.py`, `weight_files.py` and `convert.py` read Hugging Face folders; `gpt.py`,
`attention.py`, `rope.py` and `moe.py` are the layers; `process_groups.py`, `pipeline_parallel.py` and
`context_parallel.py` divide them over ranks; `state.py` saves them.

Shape legend of the package: T rows of a micro-batch, R response tokens of a micro-batch, E hidden size, V rows of this
rank's part of the vocabulary, H query heads, G key/value heads, D head size, F feed-forward size, X experts, K experts
per row, C context ranks, B sequences. A suffix such as `hidden_TE` gives the shape [T, E].
"""
