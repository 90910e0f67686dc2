"""Fine-tuning's examples: what a line may be, how mistakes are told, the split and the order."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner.sft.data import DataError, Example, Order, load_data, read_examples, split
from learner.sft.settings import SftSettings

EOS = 0


class Letters:
    """A tokenizer of one token a letter, and one for its end-of-sequence text."""

    eos_token = "<end>"
    eos_token_id: int | None = EOS
    chat_template: str | None = "yes"

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [EOS if letter == "\0" else ord(letter) for letter in text.replace(self.eos_token, "\0")]

    def apply_chat_template(self, turns: Any, tokenize: bool, add_generation_prompt: bool = False) -> str:
        if turns[0]["role"] == "alien":
            raise ValueError("no such role")
        text = "".join(f"{turn['role'][0]}:{turn['content']}<end>\n" for turn in turns)
        return text + ("a:" if add_generation_prompt else "")


def settings(**changes: Any) -> SftSettings:
    return SftSettings.model_validate({"data": "unused", **changes})


def write(folder: Path, *lines: Any) -> Path:
    file = folder / "data.jsonl"
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return file


def text(tokens: np.ndarray) -> str:
    return "".join("<end>" if token == EOS else chr(token) for token in tokens)


def read(folder: Path, *lines: Any, tokenizer: Any = None, **changes: Any) -> list[tuple[str, str, float]]:
    found = read_examples(write(folder, *lines), tokenizer or Letters(), settings(**changes))
    return [(text(e.prompt_ids), text(e.response_ids), e.weight) for e in found.examples]


def test_every_form_of_a_line(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    lines = [
        {"prompt": "p", "response": "r"},
        "",
        {"prompt": ["p", "q"], "response": "r<end>", "weight": 2},
        {"messages": turns},
        {
            "messages": [*turns, {"role": "user", "content": "more"}, {"role": "assistant", "content": "no"}],
            "weight": 0.5,
        },
    ]
    assert read(tmp_path, *lines) == [
        ("p", "r<end>", 1.0),
        ("pq", "r<end>", 2.0),
        ("u:hi<end>\na:", "ho<end>", 1.0),
        ("u:hi<end>\na:ho<end>\nu:more<end>\na:", "no<end>", 0.5),
    ]
    assert read(tmp_path, lines[0], append_eos=False) == [("p", "r", 1.0)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON"),
        ("3", "not an object"),
        ({"prompt": "p"}, "has the keys prompt; an example has"),
        ({"prompt": "p", "response": "r", "extra": 1}, "extra"),
        ({"prompt": "", "response": "r"}, "prompt is empty"),
        ({"prompt": 3, "response": "r"}, "prompt is neither"),
        ({"prompt": ["p", 3], "response": "r"}, "prompt is neither"),
        ({"prompt": "p", "response": ""}, "response is not a text"),
        ({"prompt": "p", "response": "r", "weight": 0}, "weight = 0"),
        ({"prompt": "p", "response": "r", "weight": True}, "weight = True"),
        ('{"prompt": "p", "response": "r", "weight": NaN}', "weight = nan"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "at least two"),
        ({"messages": [{"role": "user"}, {"role": "assistant", "content": "x"}]}, "at least two"),
        ({"messages": [{"role": "user", "content": "x"}] * 2}, "the last message is not the assistant's"),
        ({"messages": [{"role": "alien", "content": "x"}, {"role": "assistant", "content": "y"}]}, "no such role"),
    ],
)
def test_a_mistake_names_file_line_and_mend(tmp_path: Path, line: Any, words: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, {"prompt": "p", "response": "r"}, "", line)
    assert str(caught.value).startswith(f"{tmp_path / 'data.jsonl'}, line 3: ")
    assert words in str(caught.value)


def test_what_a_tokenizer_lacks_is_said(tmp_path: Path) -> None:
    bare = Letters()
    bare.chat_template, bare.eos_token_id = None, None
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    with pytest.raises(DataError, match="no chat template"):
        read(tmp_path, {"messages": turns}, tokenizer=bare)
    with pytest.raises(DataError, match="append_eos=false"):
        read(tmp_path, {"prompt": "p", "response": "r"}, tokenizer=bare)


def test_too_long_ones_are_counted_or_refused(tmp_path: Path) -> None:
    file = write(tmp_path, {"prompt": "p" * 8, "response": "r"}, {"prompt": "p" * 9, "response": "r"})
    found = read_examples(file, Letters(), settings(max_tokens=10))
    assert (len(found.examples), found.num_skipped) == (1, 1)
    with pytest.raises(DataError, match="line 2: 11 tokens, but sft.max_tokens is 10"):
        read_examples(file, Letters(), settings(max_tokens=10, too_long="refuse"))
    with pytest.raises(DataError, match="all 2 examples are longer"):
        read_examples(file, Letters(), settings(max_tokens=5))
    with pytest.raises(DataError, match="it is empty"):
        read_examples(write(tmp_path), Letters(), settings())
    with pytest.raises(DataError, match="cannot be read"):
        read_examples(tmp_path / "none", Letters(), settings())


def numbered(prompts: list[int]) -> list[Example]:
    return [Example(np.array([p]), np.array([i]), 1.0) for i, p in enumerate(prompts)]


def test_the_split_keeps_prompts_apart_and_depends_on_the_seed_alone() -> None:
    examples = numbered([i // 3 for i in range(60)])
    learned, held_out = split(examples, 0.1, seed=4)
    assert len(held_out) == 6 and len(learned) == 54
    assert not {e.prompt_ids[0] for e in learned} & {e.prompt_ids[0] for e in held_out}
    assert split(examples, 0.1, seed=4) == (learned, held_out)
    assert split(examples, 0.1, seed=5)[1] != held_out
    assert split(examples, 0.0, seed=4) == (examples, [])


def test_two_files_are_not_split(tmp_path: Path) -> None:
    file = write(tmp_path, *[{"prompt": f"p{i}", "response": "r"} for i in range(10)])
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"prompt": "p", "response": "q"}))
    data = load_data(file, other, Letters(), settings(validation_share=0.5), seed=0)
    assert (len(data.train), len(data.validation)) == (10, 1)
    halves = load_data(file, None, Letters(), settings(validation_share=0.5), seed=0)
    assert (len(halves.train), len(halves.validation)) == (5, 5)
    assert halves.digest != data.digest
    with pytest.raises(DataError, match="leaves nothing to learn"):
        load_data(other, None, Letters(), settings(validation_share=0.5), seed=0)


def test_each_epoch_has_every_example_once_in_an_order_of_its_own() -> None:
    order = Order(num_examples=10, batch_size=4, epochs=2.5, seed=1)
    assert order.num_steps == 7
    steps = [order.batch(step) for step in range(7)]
    assert [len(batch) for batch in steps] == [4] * 6 + [1]
    places = [index for batch in steps for index in batch]
    assert sorted(places[:10]) == sorted(places[10:20]) == list(range(10))
    assert places[:10] != places[10:20] != list(range(10))
    assert Counter(places[20:]).most_common(1)[0][1] == 1
    assert [order.epochs_done(step) for step in (0, 5, 7)] == [0.0, 2.0, 2.5]


def test_a_step_needs_no_history() -> None:
    order = Order(10, 4, 3, seed=1)
    forward = [order.batch(step) for step in range(order.num_steps)]
    backward = [Order(10, 4, 3, seed=1).batch(step) for step in reversed(range(order.num_steps))]
    assert forward == backward[::-1]
    assert forward != [Order(10, 4, 3, seed=2).batch(step) for step in range(order.num_steps)]
