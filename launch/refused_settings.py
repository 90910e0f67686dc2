"""Keys that are no settings and are refused with a reason: former names, and what users of other systems expect."""

from __future__ import annotations

from actors.settings import SEVERAL_ENGINES

RENAMED = {
    "actors.max_restarts": "supervision.max_actor_restarts",
    "actors.restart_window_s": "supervision.restart_window_s",
    "buffer.max_restarts": "supervision.max_buffer_restarts",
    "learner.max_restarts": "supervision.max_learner_restarts",
    "run.watchdog_s": "supervision.watchdog_s",
}
"""Former key -> its present name: old recipes and run folders are refused with it."""

_SHAPES_SAMPLING = (
    "the learner's log-probabilities have to be of the distribution that is sampled, and are those of "
    "softmax(logits / selfplay.temperature)."
)
_NO_EXPERT_PARALLEL = f"the experts of a model are split with its other weights. {SEVERAL_ENGINES}"
_NO_ARGUMENTS = (
    "vLLM gets the arguments that follow from [engine], and no others: the version of every token, the weight updates "
    "and the log-probabilities depend on them."
)

REFUSED = {
    **dict.fromkeys(
        (
            "selfplay.top_p",
            "selfplay.top_k",
            "selfplay.min_p",
            "selfplay.repetition_penalty",
            "selfplay.presence_penalty",
            "selfplay.frequency_penalty",
        ),
        _SHAPES_SAMPLING,
    ),
    **dict.fromkeys(
        (
            "engine.data_parallel",
            "engine.data_parallel_size",
            "engine.data_parallel_backend",
            "engine.dp_size",
            "engine.pipeline_parallel",
            "engine.pipeline_parallel_size",
        ),
        SEVERAL_ENGINES,
    ),
    **dict.fromkeys(
        ("engine.expert_parallel", "engine.enable_expert_parallel", "engine.expert_parallel_size", "engine.ep_size"),
        _NO_EXPERT_PARALLEL,
    ),
    **dict.fromkeys(("engine.extra", "engine.args", "engine.engine_args", "engine.vllm"), _NO_ARGUMENTS),
    **dict.fromkeys(
        ("engine.tensor_parallel_size", "engine.tp_size", "engine.num_gpus"), "it is called engine.tensor_parallel."
    ),
}
"""Key -> why it cannot be set, and what to set in its place."""
