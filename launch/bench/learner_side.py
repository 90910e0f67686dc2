"""The two sides of `azr bench learner`: azr's learner, and transformers with torch.optim.

Both take the same optimizer step: minus the mean log-probability of the batch's response tokens, clipped to a gradient
norm of 1, AdamW on float32 masters of bfloat16 weights. As a program this file is one side in a process of its own: it
answers a JSON line with a JSON line: `load`, then any of `step`, `layers`, `peak`, `memory`. Shapes: B sequences, S
longest of them, V vocabulary.
"""

from __future__ import annotations

import gzip
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from learner.model.architecture import Architecture

if TYPE_CHECKING:
    from learner.batching.packing import MicroBatch, TokenSequence
    from learner.settings import KernelSettings

SHIPPED = Path(__file__).parent / "batch.jsonl.gz"
"""The token ids of one whole batch of a run of `smollm2-cpu`: a header, then [prompt_ids, response_ids] a line."""
LR = 1e-6
PEAK_SHAPES = ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 4096, 4096))
"""Rows, inner size and columns of the products that the machine's peak is looked for with, besides the model's own."""
PEAK_SECONDS = 0.3
"""Spent on one shape."""


def load_batch(path: Path = SHIPPED, sequences: int = 0) -> list[TokenSequence]:
    """(prompt_ids, response_ids) of each sequence, or of the first `sequences`; ValueError for what is no such
    file."""
    with gzip.open(path, "rt") as file:
        header, *lines = file.read().splitlines()
    if json.loads(header).get("format") != "azr-batch-1":
        raise ValueError(f"{path} is no recorded batch")
    chosen = map(json.loads, lines[:sequences] if sequences else lines)
    return [(np.array(prompt, dtype=np.int64), np.array(ids, dtype=np.int64)) for prompt, ids in chosen]


def num_pairs(micro: MicroBatch) -> int:
    """(row, row it attends to) pairs of one layer and head."""
    pairs = 0
    for segment in micro.segments:
        pairs += segment.prompt_len * (segment.prompt_len + 1) // 2
        for rows in (length - 1 for length in segment.response_lens):
            pairs += rows * segment.prompt_len + rows * (rows + 1) // 2
    return pairs


def layer_flops(shape: Architecture, rows: int, pairs: int) -> int:
    """Floating-point operations of the transformer layers' matrix products, forward and backward.

    Forward, a layer has E D (2 H + 2 G) + 3 E F weights, each multiplied and added once a row, and two products of D
    for each pair and query head; backward is twice that. What is computed again in the backward pass is not counted.
    """
    weights = shape.hidden_size * (
        2 * shape.head_dim * (shape.num_heads + shape.num_query_groups) + 3 * shape.ffn_hidden_size
    )
    return 3 * shape.num_layers * (2 * weights * rows + 4 * shape.num_heads * shape.head_dim * pairs)


def padded_batches(sequences: Sequence[TokenSequence], token_budget: int) -> list[list[int]]:
    """Indices of sequences by length, in micro-batches of at most `token_budget` tokens with their padding."""
    lengths = [len(prompt) + len(response) for prompt, response in sequences]
    batches: list[list[int]] = []
    for index in sorted(range(len(sequences)), key=lambda index: (-lengths[index], index)):
        # The first is the longest.
        if not batches or lengths[batches[-1][0]] * (len(batches[-1]) + 1) > token_budget:
            batches.append([])
        batches[-1].append(index)
    return batches


def packed_batches(sequences: Sequence[TokenSequence], token_budget: int) -> list[list[int]]:
    """Indices of sequences in micro-batches of at most `token_budget` tokens: the longest first, each into the first
    that has room. A single one may be longer."""
    lengths = [len(prompt) + len(response) for prompt, response in sequences]
    batches: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(sequences)), key=lambda index: (-lengths[index], index)):
        place = next((place for place, left in enumerate(room) if lengths[index] <= left), len(room))
        if place == len(room):
            batches.append([])
            room.append(token_budget)
        batches[place].append(index)
        room[place] -= lengths[index]
    return batches


class Ours:
    """azr's learner on one rank. `take` a batch before the first step."""

    def __init__(self, model_dir: Path, kernels: KernelSettings | None = None) -> None:
        from learner.model.policy import PolicyModel
        from learner.model.process_groups import init_parallel
        from learner.settings import ModelSettings, OptimizerSettings, ParallelSettings

        parallel = ParallelSettings()
        init_parallel(parallel, rank=0, world_size=1)
        optimizer = OptimizerSettings(lr=LR, weight_decay=0.0)
        self._policy = PolicyModel(model_dir, ModelSettings(), optimizer, parallel, kernels=kernels)
        self._batch: Sequence[TokenSequence] = ()
        self.micros: list[MicroBatch] = []
        self.rows = self._count = 0

    def take(self, batch: Sequence[TokenSequence], token_budget: int) -> None:
        """Train on `batch` from now on."""
        from learner.batching.packing import pack_ranks

        self._batch = batch
        (self.micros,) = pack_ranks(batch, token_budget, 1, self._policy.cost)
        self._count = sum(len(response) for _, response in batch)
        self.rows = sum(micro.num_tokens for micro in self.micros)

    def step(self) -> float:
        """One optimizer step; returns the loss before it."""
        losses: list[Any] = []

        def loss(_: int, micro: MicroBatch, logprobs: Any, entropy: Any) -> Any:
            value = -logprobs.sum() / self._count
            losses.append(value.detach())
            return value

        self._policy.zero_grad()
        self._policy.forward_backward(self.micros, loss)
        self._policy.step(LR)
        return float(sum(losses))

    def warm_up(self) -> None:
        """Compile and allocate what a step needs."""
        self.step()

    def layers(self, rows: int) -> tuple[float, int, int]:
        """Seconds of the layers' forward and backward pass over about `rows` packed rows of the batch, and what these
        rows are: their number and their pairs."""
        import torch

        from learner.batching.packing import pack
        from learner.model.megatron_on_cpu import megatron_calls

        policy = self._policy
        # Whole micro-batches of the right budget; the fullest comes closest.
        micro = max(pack(self._batch, rows), key=lambda micro: (micro.num_tokens <= rows, micro.num_tokens))
        plan = policy.plan(micro)
        size = (micro.num_tokens, 1, policy.architecture.hidden_size)
        hidden = torch.randn(size, dtype=policy.dtype, device=policy.device, requires_grad=True)
        grad = torch.randn_like(hidden)
        policy.zero_grad()
        started = time.perf_counter()
        with megatron_calls():
            out = policy.gpt.decoder(hidden_states=hidden, attention_mask=None, packed_seq_params=plan)
        out.backward(grad)
        return time.perf_counter() - started, micro.num_tokens, num_pairs(micro)


class Transformers:
    """transformers' model with its own attention (torch's `scaled_dot_product_attention`), and torch's fused AdamW.

    `take` a batch before the first step: in padded micro-batches of sequences of similar length or, `packed`, in single
    rows of sequences one after another, whose positions tell the model where each starts; then the logits of response
    tokens alone are computed.
    """

    def __init__(self, model_dir: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        from learner.device import device

        logging.disable_progress_bar()
        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16, attn_implementation="sdpa")
        self._model = model.to(device()).train()
        self._device = device()
        self._parameters = list(self._model.parameters())
        self._masters = [parameter.detach().float() for parameter in self._parameters]
        self._optimizer = torch.optim.AdamW(self._masters, lr=LR, weight_decay=0.0, fused=True)
        self._micros: list[dict[str, Any]] = []
        self._labels: list[Any] = []
        self.rows = self._count = 0

    def take(self, batch: Sequence[TokenSequence], token_budget: int, packed: bool = False) -> None:
        """Train on `batch` from now on."""
        self._count = sum(len(response) for _, response in batch)
        chosen = packed_batches(batch, token_budget) if packed else padded_batches(batch, token_budget)
        made = [(_packed if packed else _padded)([batch[i] for i in indices]) for indices in chosen]
        self._micros = [{name: one.to(self._device) for name, one in inputs.items()} for inputs, _ in made]
        self._labels = [labels.to(self._device) for _, labels in made]
        self.rows = sum(micro["input_ids"].numel() for micro in self._micros)

    def warm_up(self) -> None:
        """Allocate what a step needs, with the largest micro-batch."""
        self._step(1)

    def step(self) -> float:
        """One optimizer step; returns the loss before it."""
        return self._step(len(self._micros))

    def _step(self, num_micros: int) -> float:
        import torch
        from torch.nn.functional import cross_entropy

        total = torch.zeros((), device=self._device)
        for inputs, labels in zip(self._micros[:num_micros], self._labels, strict=False):
            logits = self._model(**inputs, use_cache=False).logits
            loss = cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")
            del logits
            (loss / self._count).backward()
            total += loss.detach() / self._count
        for master, parameter in zip(self._masters, self._parameters, strict=True):
            master.grad, parameter.grad = parameter.grad.float(), None
        torch.nn.utils.clip_grad_norm_(self._masters, 1.0)
        self._optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(self._parameters, self._masters)
        self._optimizer.zero_grad()
        return float(total)


def _padded(sequences: Sequence[TokenSequence]) -> tuple[dict[str, Any], Any]:
    """Inputs [B, S] padded on the right, and the label of each logit, -100 where it is no response token."""
    import torch

    longest = max(len(prompt) + len(response) for prompt, response in sequences)
    ids = torch.zeros(len(sequences), longest, dtype=torch.int64)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, (prompt, response) in enumerate(sequences):
        stop = len(prompt) + len(response)
        ids[row, :stop] = torch.from_numpy(np.concatenate((prompt, response)))
        mask[row, :stop] = 1
        labels[row, len(prompt) - 1 : stop - 1] = torch.from_numpy(response)
    return {"input_ids": ids} | ({} if mask.all() else {"attention_mask": mask}), labels


def _packed(sequences: Sequence[TokenSequence]) -> tuple[dict[str, Any], Any]:
    """Inputs [1, S] with the positions of each sequence, the indices of the logits, and their labels."""
    import torch

    ids = [np.concatenate(sequence) for sequence in sequences]
    starts = np.cumsum([0, *map(len, ids)])
    kept = [
        np.arange(start + len(prompt) - 1, start + len(prompt) + len(response) - 1)
        for start, (prompt, response) in zip(starts, sequences, strict=False)
    ]
    inputs = {
        "input_ids": np.concatenate(ids)[None],
        "position_ids": np.concatenate([np.arange(len(one)) for one in ids])[None],
        "logits_to_keep": np.concatenate(kept),
    }
    labels = np.concatenate([response for _, response in sequences])
    return {name: torch.from_numpy(one) for name, one in inputs.items()}, torch.from_numpy(labels)


def peak_gflops(shape: Architecture, rows: int) -> tuple[float, float]:
    """10^9 operations a second of bfloat16 matrix products: the best of any shape, and of the layers' own taken
    together."""
    heads = shape.head_dim * shape.num_heads
    own: list[tuple[int, int, int]] = []
    for inner, columns in (
        (shape.hidden_size, heads + 2 * shape.head_dim * shape.num_query_groups),
        (heads, shape.hidden_size),
        (shape.hidden_size, 2 * shape.ffn_hidden_size),
        (shape.ffn_hidden_size, shape.hidden_size),
    ):
        own += [(rows, inner, columns), (rows, columns, inner), (columns, rows, inner)]
    seconds = {product: _best_seconds(*product) for product in (*PEAK_SHAPES, *own)}
    best = max(2 * m * k * n / seconds[m, k, n] for m, k, n in seconds)
    together = sum(2 * m * k * n for m, k, n in own) / sum(seconds[product] for product in own)
    return best / 1e9, together / 1e9


def _best_seconds(rows: int, inner: int, columns: int) -> float:
    """The least time of a product [rows, inner] x [inner, columns], over the layouts that a layer has it in."""
    import torch

    left, right = (torch.randn(size, dtype=torch.bfloat16) for size in ((rows, inner), (inner, columns)))
    layouts = [(left, right), (left, right.t().contiguous().t()), (left.t().contiguous().t(), right)]
    out = torch.empty(rows, columns, dtype=torch.bfloat16)
    best = float("inf")
    deadline = time.perf_counter() + PEAK_SECONDS
    while time.perf_counter() < deadline:
        for a, b in layouts:
            started = time.perf_counter()
            torch.mm(a, b, out=out)
            best = min(best, time.perf_counter() - started)
    return best


def peak_memory_mib() -> float:
    """The most memory that this process has had resident (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no VmHWM")


SIDES: dict[str, Callable[..., Ours | Transformers]] = {"azr": Ours, "transformers": Transformers}


def main() -> None:
    """Serve the parent's requests until it closes its end."""
    print("{}", flush=True)
    side: Ours | Transformers | None = None
    shape: Architecture | None = None
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any]
        try:
            if request["op"] == "load":
                import torch

                from learner.device import keep_memory

                torch.set_num_threads(request["threads"])
                if request["keep_memory"]:
                    keep_memory()
                model_dir = Path(request["model_dir"])
                shape = Architecture.read(model_dir)
                batch = load_batch(Path(request["batch"]), request["sequences"])
                side = SIDES[request["side"]](model_dir)
                side.take(batch, request["token_budget"])
                answer = {"rows": side.rows}
            elif request["op"] == "step":
                assert side
                started = time.perf_counter()
                loss = side.step()
                answer = {"seconds": time.perf_counter() - started, "loss": loss}
            elif request["op"] == "layers":
                assert isinstance(side, Ours) and shape
                seconds, rows, pairs = side.layers(request["rows"])
                answer = {"seconds": seconds, "rows": rows, "flops": layer_flops(shape, rows, pairs)}
            elif request["op"] == "peak":
                assert shape
                best, own = peak_gflops(shape, request["rows"])
                answer = {"best": best, "own": own}
            else:
                answer = {"mib": peak_memory_mib()}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer, allow_nan=False), flush=True)
