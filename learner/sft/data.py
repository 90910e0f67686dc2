"""Examples of supervised fine-tuning: read from JSON Lines, checked line by line, tokenised, split, put in order.

A line is {"prompt": text, "response": text} or {"messages": [{"role", "content"}, ...]}, whose last turn is the
assistant's and becomes the response; either may have a "weight". A prompt may also be a list of texts that are
tokenised one by one, as self-play does it (`azr sft-data` writes these), so that both see the same tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from executor.user_error import UserError
from learner.sft.settings import SftSettings


class DataError(UserError):
    """Examples that cannot be used; the message names the file, the line and what to do."""


class Example(NamedTuple):
    """One tokenised example."""

    prompt_ids: np.ndarray
    """[P], int64"""
    response_ids: np.ndarray
    """[N], int64"""
    weight: float
    """The weight of each token of the response in the loss."""


@dataclass(frozen=True)
class Examples:
    """The examples of a file."""

    examples: list[Example]
    num_skipped: int
    """Examples that were longer than `sft.max_tokens`."""


@dataclass(frozen=True)
class Data:
    """The examples that a run trains on, and those that it only measures."""

    train: list[Example]
    validation: list[Example]
    num_skipped: int

    @property
    def digest(self) -> str:
        """Names the examples to learn, in their order."""
        state = sha256()
        for example in self.train:
            state.update(np.array([len(example.prompt_ids), len(example.response_ids)], dtype=np.int64).tobytes())
            state.update(example.prompt_ids.tobytes() + example.response_ids.tobytes())
            state.update(np.float64(example.weight).tobytes())
        return state.hexdigest()


def load_data(data: Path, validation_data: Path | None, tokenizer: Any, settings: SftSettings, seed: int) -> Data:
    """Both sets, from two files or split from one; raises DataError."""
    found = read_examples(data, tokenizer, settings)
    if validation_data is not None:
        held_out = read_examples(validation_data, tokenizer, settings)
        return Data(found.examples, held_out.examples, found.num_skipped + held_out.num_skipped)
    train, validation = split(found.examples, settings.validation_share, seed)
    if not train:
        raise DataError(
            f"{data}: sft.validation_share = {settings.validation_share:g} leaves nothing to learn; lower it"
        )
    return Data(train, validation, found.num_skipped)


def read_examples(file: Path, tokenizer: Any, settings: SftSettings) -> Examples:
    """The examples of a file, in its order; raises DataError at the first line that is none."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}") from None
    examples: list[Example] = []
    num_skipped = 0
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            example = _tokenised(_parsed(line, tokenizer), tokenizer, settings.append_eos)
        except DataError as error:
            raise DataError(f"{file}, line {number}: {error}") from None
        num_tokens = len(example.prompt_ids) + len(example.response_ids)
        if num_tokens <= settings.max_tokens:
            examples.append(example)
        elif settings.too_long == "skip":
            num_skipped += 1
        else:
            raise DataError(
                f"{file}, line {number}: {num_tokens} tokens, but sft.max_tokens is {settings.max_tokens}; raise it, "
                "shorten the example, or set sft.too_long=skip"
            )
    if not examples:
        why = (
            f"all {num_skipped} examples are longer than sft.max_tokens = {settings.max_tokens}"
            if num_skipped
            else "it is empty"
        )
        raise DataError(f"{file} has nothing to learn: {why}")
    return Examples(examples, num_skipped)


def split(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(to learn, to measure), each in the given order; the second has at least `share` of all, and no prompt of the
    first."""
    by_prompt: dict[bytes, list[int]] = {}
    for index, example in enumerate(examples):
        by_prompt.setdefault(example.prompt_ids.tobytes(), []).append(index)
    groups = list(by_prompt.values())
    held_out: set[int] = set()
    for place in np.random.default_rng([seed, 1]).permutation(len(groups)):
        if len(held_out) >= share * len(examples):
            break
        held_out.update(groups[place])
    learned = [example for index, example in enumerate(examples) if index not in held_out]
    return learned, [examples[index] for index in sorted(held_out)]


class Order:
    """Which examples each step learns. A pure function of the seed and the step, so that a resumed run goes on
    exactly."""

    def __init__(self, num_examples: int, batch_size: int, epochs: float, seed: int) -> None:
        self._num_examples = num_examples
        self._batch_size = batch_size
        self._seed = seed
        self._total = max(1, round(num_examples * epochs))
        self._shuffled: tuple[int, np.ndarray] = (-1, np.zeros(0, dtype=np.int64))

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run; the last one may be smaller."""
        return math.ceil(self._total / self._batch_size)

    def batch(self, step: int) -> list[int]:
        """Indices of the examples of step `step`, which counts from 0. Epochs follow each other without a gap."""
        first = step * self._batch_size
        return [self._at(place) for place in range(first, min(first + self._batch_size, self._total))]

    def epochs_done(self, step: int) -> float:
        """Epochs after `step` steps."""
        return min(step * self._batch_size, self._total) / self._num_examples

    def _at(self, place: int) -> int:
        epoch, index = divmod(place, self._num_examples)
        if self._shuffled[0] != epoch:
            self._shuffled = epoch, np.random.default_rng([self._seed, 2, epoch]).permutation(self._num_examples)
        return int(self._shuffled[1][index])


def weights_of(examples: Sequence[Example]) -> np.ndarray:
    """The weight of a response token of each example, float32 [B]; over all response tokens they add up to 1."""
    weights = np.array([example.weight for example in examples], dtype=np.float64)
    lengths = np.array([len(example.response_ids) for example in examples], dtype=np.float64)
    result: np.ndarray = (weights / (weights * lengths).sum()).astype(np.float32)
    return result


class _Texts(NamedTuple):
    prompt: list[str]
    response: str
    weight: float


def _parsed(line: str, tokenizer: Any) -> _Texts:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON ({error}); write one object a line") from None
    if not isinstance(item, dict):
        raise DataError('not an object; write {"prompt": ..., "response": ...} or {"messages": [...]}')
    weight = item.pop("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise DataError(f"weight = {weight!r} is no number above 0; leave out examples that are not to count")
    if set(item) == {"messages"}:
        prompt, response = _chat(item["messages"], tokenizer)
        return _Texts([prompt], response, float(weight))
    if set(item) != {"prompt", "response"}:
        raise DataError(
            f'has the keys {", ".join(sorted(item)) or "(none)"}; an example has "prompt" and "response", or '
            '"messages", and perhaps "weight"'
        )
    pieces = [item["prompt"]] if isinstance(item["prompt"], str) else item["prompt"]
    if not isinstance(pieces, list) or not all(isinstance(piece, str) for piece in pieces):
        raise DataError("prompt is neither a text nor a list of texts")
    if not isinstance(item["response"], str) or not item["response"]:
        raise DataError("response is not a text with something in it")
    return _Texts(pieces, item["response"], float(weight))


def _chat(messages: Any, tokenizer: Any) -> tuple[str, str]:
    """Prompt and response of a conversation, as the tokenizer's chat template writes them."""
    turns = messages if isinstance(messages, list) else []
    fine = [isinstance(t, dict) and isinstance(t.get("role"), str) and isinstance(t.get("content"), str) for t in turns]
    if len(turns) < 2 or not all(fine):
        raise DataError('messages is not a list of at least two {"role": text, "content": text}')
    if turns[-1]["role"] != "assistant" or not turns[-1]["content"]:
        raise DataError("the last message is not the assistant's, with something in it: it is what is learned")
    if not tokenizer.chat_template:
        raise DataError('the model\'s tokenizer has no chat template; write "prompt" and "response" instead')
    try:
        prompt: str = tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
        whole: str = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception as error:  # whatever a template raises over these messages
        raise DataError(f"the tokenizer's chat template refuses the messages: {error}") from None
    if not whole.startswith(prompt):
        raise DataError(
            "the tokenizer's chat template writes the conversation otherwise with its last turn than without; write "
            '"prompt" and "response" instead'
        )
    response = whole[len(prompt) :]
    # A model is stopped at the end-of-sequence token: what a template writes after it is never sampled.
    before, eos, after = response.rpartition(tokenizer.eos_token or "\0")
    return prompt, before + eos if eos and not after.strip() else response


def _tokenised(texts: _Texts, tokenizer: Any, append_eos: bool) -> Example:
    prompt = [token for piece in texts.prompt for token in tokenizer.encode(piece, add_special_tokens=False)]
    if not prompt:
        raise DataError("prompt is empty; a response needs at least one token to follow")
    response = tokenizer.encode(texts.response, add_special_tokens=False)
    if append_eos:
        if tokenizer.eos_token_id is None:
            raise DataError("the model's tokenizer has no end-of-sequence token; set sft.append_eos=false")
        if response[-1:] != [tokenizer.eos_token_id]:
            response = [*response, tokenizer.eos_token_id]
    return Example(np.array(prompt, dtype=np.int64), np.array(response, dtype=np.int64), texts.weight)
