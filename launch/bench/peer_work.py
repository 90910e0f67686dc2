"""The work of `azr bench peer`: which prompts, how many responses of how many tokens, and the check that it was done.

One step is: new weights into the engine, P prompts with G responses of exactly R tokens each, a reward for each of
them, one optimizer step on all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.bench.learner_side import load_batch


@dataclass(frozen=True)
class Work:
    """The work of one step."""

    prompts: tuple[tuple[int, ...], ...]
    """Token ids of the P prompts, all different."""
    responses: int
    """G: responses to each prompt."""
    tokens: int
    """R: tokens of each response."""

    @property
    def response_tokens(self) -> int:
        """P G R."""
        return len(self.prompts) * self.responses * self.tokens

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its response."""
        return max(map(len, self.prompts)) + self.tokens

    @property
    def shared(self) -> float:
        """Tokens with each prompt once, over those with each response's own copy of its prompt."""
        once = sum(len(prompt) + self.responses * self.tokens for prompt in self.prompts)
        return once / sum(self.responses * (len(prompt) + self.tokens) for prompt in self.prompts)

    def to_json(self) -> dict[str, Any]:
        """`prompts`, `responses`, `tokens`."""
        return {"prompts": self.prompts, "responses": self.responses, "tokens": self.tokens}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Work:
        """The inverse of `to_json`."""
        return cls(tuple(map(tuple, data["prompts"])), int(data["responses"]), int(data["tokens"]))


def recorded(path: Path, prompts: int, responses: int, tokens: int, tokenizer: Any = None) -> Work:
    """The first `prompts` different prompts of a recorded batch. ValueError where it has fewer.

    `tokenizer`: tokenises their text anew. TRL takes text, and azr joins a prompt of parts that it has tokenised one by
    one, which gives other tokens where two parts meet.
    """
    found = dict.fromkeys(tuple(map(int, prompt)) for prompt, _ in load_batch(path))
    if len(found) < prompts:
        raise ValueError(f"{path} has {len(found)} different prompts, not {prompts}")
    chosen = tuple(found)[:prompts]
    if tokenizer is not None:
        chosen = tuple(tuple(tokenizer(tokenizer.decode(prompt))["input_ids"]) for prompt in chosen)
    return Work(chosen, responses, tokens)


def missing_work(work: Work, done: Sequence[tuple[Sequence[int], int]]) -> str:
    """What a step did other than `work`, in words; nothing if it did all of it and no more.

    `done`: the prompt's token ids and the number of tokens of each response that was trained on.
    """
    found = Counter(tuple(prompt) for prompt, _ in done)
    wanted = Counter(dict.fromkeys(work.prompts, work.responses))
    absent, others = (wanted - found).total(), (found - wanted).total()
    if absent or others:
        return f"{absent} responses to its prompts are missing, {others} are to others"
    if wrong := [length for _, length in done if length != work.tokens]:
        return f"{len(wrong)} responses have other lengths than {work.tokens} tokens: {sorted(set(wrong))[:5]}"
    return ""


def not_trained(step: Mapping[str, Any]) -> str:
    """Why a step did not train, in words: a loss or gradient that is not finite, no tensor that changed; else nothing.

    `step`: `loss`, `grad_norm` (None where they are not finite), `changed` and `tensors`, their number.
    """
    for name in ("loss", "grad_norm"):
        if step[name] is None:
            return f"its {name} is not finite"
    if not step["grad_norm"]:
        return "its gradient is 0"
    if not step["changed"]:
        return f"none of its {step['tensors']} tensors changed"
    return ""
