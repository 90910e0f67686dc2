"""The reference that a policy is compared with: transformers with every sequence run by itself, and torch's AdamW.

Shapes: N tokens of a response.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learner.batching.packing import MicroBatch, TokenSequence, pack
from learner.model.policy import PolicyModel
from learner.settings import OptimizerSettings

Values = list[tuple[Tensor, Tensor]]
"""Log-probabilities [N] and entropies [N] of each sequence's response, float32, on the CPU."""


def write_folder(folder: Path, config: Any, device: torch.device | str = "cpu") -> Path:
    """Write a random model of transformers' `config` as a Hugging Face folder, float32; on one device always the
    same."""
    import transformers as tf

    torch.manual_seed(1)
    with torch.device(device), torch.no_grad():
        model = tf.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases start at one and zero, which hide mistakes
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    return folder


def token_loss(sequence: Any, token: Any, logprobs: Tensor, num_tokens: int) -> Tensor:
    """Return a loss that treats every response token differently: a weighted sum, divided by `num_tokens`.

    `sequence`, `token`: index of each log-probability's sequence, and of the token in its response.
    """
    weights = np.sin(1.0 + 3.0 * sequence + token)
    return -(logprobs * torch.from_numpy(weights).float().to(logprobs.device)).sum() / num_tokens


def num_response_tokens(sequences: Sequence[TokenSequence]) -> int:
    """Return the number of response tokens of `sequences`."""
    return sum(len(response) for _, response in sequences)


def transformers_values(
    model: torch.nn.Module, sequences: Sequence[TokenSequence], temperature: float = 1.0
) -> list[tuple[Tensor, Tensor]]:
    """Return log-probabilities and entropies as transformers' `model` has them, on its device and with gradients."""
    values = []
    place = next(model.parameters()).device
    for prompt, response in sequences:
        ids = torch.from_numpy(np.concatenate((prompt, response))).to(place)
        logits = model(ids[None], logits_to_keep=len(response) + 1).logits[0, :-1].float()
        table = torch.log_softmax(logits / temperature, dim=-1)
        logprobs = table.gather(1, ids[len(prompt) :, None])[:, 0]
        values.append((logprobs, -(table.exp() * table).sum(-1)))
    return values


def transformers_loss(values: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the sum of `token_loss` over what `transformers_values` returned, with its gradient."""
    num_tokens = sum(len(logprobs) for logprobs, _ in values)
    terms = [token_loss(i, np.arange(len(ours)), ours, num_tokens) for i, (ours, _) in enumerate(values)]
    return torch.stack(terms).sum()


def in_order(micros: Sequence[MicroBatch], values: Sequence[Tensor]) -> list[Tensor]:
    """Return the values of packed response tokens, one tensor [N] a sequence, in the order of the sequences.

    Empty on a pipeline stage without logits, which has no values.
    """
    if not values:
        return []
    owners = np.concatenate([micro.sequence_index for micro in micros])
    places = np.concatenate([micro.token_index for micro in micros])
    flat = torch.cat([value.detach().float().cpu() for value in values])
    return list(flat[torch.from_numpy(np.lexsort((places, owners)))].split(np.bincount(owners).tolist()))


def apart(sequences: Sequence[TokenSequence]) -> list[MicroBatch]:
    """Return a micro-batch for every sequence, which so shares nothing with the others."""
    return [pack(sequences, 1, members=[index])[0] for index in range(len(sequences))]


def policy_values(policy: PolicyModel, micros: Sequence[MicroBatch]) -> Values:
    """Return log-probabilities and entropies as `policy` has them; none on a pipeline stage without logits."""
    found = policy.logprobs(micros)
    parts = [part for part, _, _ in found]
    logprobs, entropies = in_order(parts, [one for _, one, _ in found]), in_order(parts, [one for _, _, one in found])
    return list(zip(logprobs, entropies, strict=True))


def differences(first: Sequence[tuple[Tensor, Tensor]], second: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the absolute differences of all values, log-probabilities and entropies, end to end."""
    pairs = [(a, b) for ours, theirs in zip(first, second, strict=True) for a, b in zip(ours, theirs, strict=True)]
    return torch.cat([(a.detach().cpu().float() - b.detach().cpu().float()).abs() for a, b in pairs])


def torch_adam(model: torch.nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """Return the optimizer that transformers' `model` would be trained with: norms and biases do not decay."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
    )


def gradients(policy: PolicyModel, micros: Sequence[MicroBatch], num_tokens: int) -> tuple[Values, dict[str, Tensor]]:
    """Return values by sequence, and gradients by Megatron's names, of one forward and backward pass with
    `token_loss`."""
    policy.zero_grad()
    found: list[tuple[Tensor, Tensor]] = []

    def loss(_: int, micro: MicroBatch, logprobs: Tensor, entropy: Tensor) -> Tensor:
        found.append((logprobs, entropy))
        return token_loss(micro.sequence_index, micro.token_index, logprobs, num_tokens)

    policy.forward_backward(micros, loss)
    filled = [micro for micro in micros if micro.num_tokens]
    columns = (in_order(filled, [pair[column] for pair in found]) for column in (0, 1))
    return list(zip(*columns, strict=True)), {name: p.main_grad.clone() for name, p in policy.gpt.named_parameters()}
