"""The weight broadcast: learner -> engines, over a `torch.distributed` process group of its own.

    transfer.py   both ends: `WeightSender` (the learner's rank 0) and `WeightReceiver` (one an engine worker)
    group.py      one rank's membership of one group: who has arrived, deadlines, errors that name ranks
    manifest.py   which tensors are sent, in which order, in which buckets
    delta.py      sparse updates: of a bucket only the elements that have changed, and how that is checked
    local.py      the same protocol inside one process (serial mode)

The learner is rank 0 and owns the store where ranks meet; every engine worker is one further rank. Each group has a
`group_id`: when an actor joins or dies, the learner opens the next group, and leaves the process groups of Megatron and
vLLM as they are. NCCL on GPUs and gloo on CPUs run the same code. Tensors travel in buckets: neighbours of one dtype
are copied into one flat buffer, so neither end holds a second copy of the model; a large tensor is a bucket by itself
and is not copied. Buckets travel while the next are gathered (sender) and the last is loaded (receiver). Both ends cut
the same manifest.

Over the stream an engine is told the `manifest` once after it has connected, `join` for each group, and `weights` for
each version; it answers `loaded` or `load_failed` (`learner/publisher.py`).

Every wait has a deadline, and its error says which rank waited for which. A group that failed is never used again.

Needs torch alone, not Megatron, vLLM or a GPU.
"""
