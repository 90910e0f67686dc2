"""Checks, before anything starts, that a run can work with its model on this machine.

Each fault would otherwise show minutes later, in the words of another library and in the log of a process.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from launch.cluster.placement import engine_memory, kept_memory, learner_memory
from launch.config import Config
from launch.recipe import ConfigError
from learner.model.architecture import Architecture

_GIB = 1 << 30
BLOCK_TOKENS = 32
"""Tokens of one block of the key/value cache on a CPU."""


def check_model(config: Config, model_dir: Path, on_gpus: bool | None = None) -> None:
    """Raise ConfigError if this configuration can never work with the model in `model_dir`; it names the settings.

    `on_gpus`: whether the run's processes have GPUs; None: as this machine has them.
    """
    on_gpus = Path("/dev/nvidia0").exists() if on_gpus is None else on_gpus
    try:
        model = Architecture.read(model_dir)
    except (ValueError, KeyError, OSError) as error:
        raise ConfigError(f"model.path = {config.model.path}: its config.json cannot be used: {error}") from None
    faults = [*_files(model_dir), *_parallel(config, model), *_lengths(config, model_dir)]
    if not on_gpus:
        faults += [*_cache(config, model)]
        if config.ray.address is None:
            faults += [*_memory(config, model)]
    if faults:
        raise ConfigError("\n".join(faults))


def cache_bytes_per_token(config: Config, model: Architecture) -> int:
    """Bytes of keys and values of one token in one engine: 2 x layers x key/value heads x head size x element size.

    Where the engine has more workers than the model has key/value heads, each worker keeps one head.
    """
    element = 2 if config.engine.dtype == "bfloat16" else 4
    heads = max(model.num_query_groups, config.engine.tensor_parallel)
    return 2 * model.num_layers * heads * model.head_dim * element


def num_parameters(model: Architecture) -> int:
    """The number of parameters, without norms and biases: a lower bound within a per cent."""
    heads = model.hidden_size * model.head_dim * 2 * (model.num_heads + model.num_query_groups)
    plain = 3 * model.hidden_size * model.ffn_hidden_size
    experts = model.experts
    mixed = 3 * model.hidden_size * experts.hidden_size * experts.number if experts else 0
    num_mixed = sum(experts.layers) if experts else 0
    embeddings = (1 if model.tied else 2) * model.vocab_size * model.hidden_size
    return embeddings + model.num_layers * heads + (model.num_layers - num_mixed) * plain + num_mixed * mixed


def total_memory() -> int:
    """Bytes of main memory that this process may use: the machine's, or the limit of its control group."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        text = Path("/sys/fs/cgroup", name)
        if text.is_file() and (found := text.read_text().strip()).isdecimal():
            limits.append(int(found))
    return min(limits)


def _files(model_dir: Path) -> list[str]:
    index = model_dir / "model.safetensors.index.json"
    if not index.is_file():
        return []
    try:
        named = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, AttributeError) as error:
        return [f"model.path = {model_dir}: {index.name} cannot be read: {error!r}"]
    missing = sorted(name for name in named if not (model_dir / name).is_file())
    return [f"model.path = {model_dir} lacks {', '.join(missing)}, which {index.name} names"] if missing else []


def _parallel(config: Config, model: Architecture) -> list[str]:
    learner, workers = config.learner.parallel, config.engine.tensor_parallel
    heads = model.num_query_groups
    columns = {model.ffn_hidden_size} if not model.experts or not all(model.experts.layers) else set()
    columns |= {model.experts.hidden_size} if model.experts else set()
    sizes = (
        ("engine.tensor_parallel", workers, "attention heads", model.num_heads),
        *(("engine.tensor_parallel", workers, "feed-forward columns", count) for count in sorted(columns)),
        ("learner.parallel.tensor", learner.tensor, "attention heads", model.num_heads),
        ("learner.parallel.tensor", learner.tensor, "key/value heads", model.num_query_groups),
        ("learner.parallel.tensor x context", learner.tensor * learner.context, "attention heads", model.num_heads),
    )
    faults = []
    if learner.pipeline > model.num_layers:
        faults.append(
            f"learner.parallel.pipeline = {learner.pipeline} is more than the model's {model.num_layers} layers"
        )
    if heads % workers and workers % heads:
        faults.append(
            f"engine.tensor_parallel = {workers} neither divides the model's {heads} key/value heads nor is a multiple "
            "of them: set it to a divisor or a multiple"
        )
    return faults + [
        f"{key} = {size} does not divide the model's {count} {what}: set it to a divisor of {count}"
        for key, size, what, count in sizes
        if count % size
    ]


def _lengths(config: Config, model_dir: Path) -> list[str]:
    written = json.loads((model_dir / "config.json").read_text())
    longest = written.get("max_position_embeddings")
    scaled = written.get("rope_scaling") or written.get("rope_parameters", {}).get("rope_type", "default") != "default"
    if longest is None or scaled or config.engine.max_model_len <= longest:
        return []
    return [
        f"engine.max_model_len = {config.engine.max_model_len} is more than the {longest} positions of the model: "
        "lower it, and selfplay.max_prompt_tokens and the response limits with it"
    ]


def _cache(config: Config, model: Architecture) -> list[str]:
    blocks = -(-config.engine.max_model_len // BLOCK_TOKENS)
    needed = blocks * BLOCK_TOKENS * cache_bytes_per_token(config, model)
    if config.engine.kv_cache_gib * _GIB >= needed:
        return []
    return [
        f"engine.kv_cache_gib = {config.engine.kv_cache_gib:g} is too small for one sequence of engine.max_model_len = "
        f"{config.engine.max_model_len} tokens, which takes {needed / _GIB:.4f} GiB: raise it (many sequences are "
        "decoded at once, so to a multiple of that), or lower engine.max_model_len"
    ]


def _memory(config: Config, model: Architecture) -> list[str]:
    count = num_parameters(model)
    copy = kept_memory(config, count)
    learner = config.learner.parallel.world_size * learner_memory(config, count) + copy
    engines = config.actors.num_actors * engine_memory(config, count, on_gpu=False)
    total = total_memory()
    if learner + engines <= total:
        return []
    kept = ", with copies for learner.weights_delta" if copy else ""
    off = "set learner.weights_delta to off, " if copy else ""
    return [
        f"this machine has {total / _GIB:.1f} GiB of memory, and the run needs more: the learner at least "
        f"{learner / _GIB:.1f} GiB, the engines {engines / _GIB:.1f} GiB ({config.actors.num_actors} with "
        f"engine.kv_cache_gib = {config.engine.kv_cache_gib:g} each{kept}). Lower engine.kv_cache_gib, "
        f"actors.num_actors or learner.parallel, {off}or take a smaller model"
    ]
