"""Every prompt, word for word, as it was when the paper's experiments were run: a prompt that changes makes runs
incomparable.

`prompts_golden.json` holds them. After a wanted change of words: `python tests/unit/actors/test_prompts_golden.py`
writes it anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from actors.composite import definitions
from actors.prompt_builder import Prompt, PromptBuilder
from executor.tasks import Task

GOLDEN = Path(__file__).with_name("prompts_golden.json")
FORMATS: tuple[Literal["completion", "r1"], ...] = ("completion", "r1")
PAIRS = ("1", "'é`'", "[1, 2]", "(3, {})", "None"), ("2", "'é`é`'", "[1, 2, 1, 2]", "(3, {}, 3, {})", "''")
TASKS = {
    "deduction": Task("deduction", "def f(x):\n    return x * 2", ("21",), ("42",)),
    "abduction": Task("abduction", "def f(s, n):\n    return s[:n]", ("'a```b', 3",), ("'a``'",)),
    "induction": Task("induction", "def f(x):\n    return x + x", *PAIRS, "f doubles ```.\nIn two lines."),
}
REFERENCES = [
    Task("deduction", f"import math\ndef f(x):\n    return math.gcd(x, {number})", (str(number),), (str(number),))
    for number in (4, 5, 6)
]
EARLIER = [
    "def f(x):\n    return x + 1",
    "def h(y):\n    return 2 * y\n\ndef f(x):\n    return h(x)",
    "def f(s): return '```'",
]


class Characters:
    """A token is a character."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [ord(character) for character in text]


def prompts() -> Iterator[tuple[str, Prompt]]:
    """Every kind and format, both roles, with and without references and earlier functions, with several N, and cut to
    fit."""
    for prompt_format in FORMATS:
        for kind, task in TASKS.items():
            whole = PromptBuilder(Characters(), prompt_format, 1 << 20, 10)
            yield f"{prompt_format} {kind} solve", whole.solve(task)
            if kind == "induction":
                for count in (2, 10, 14):
                    asked = PromptBuilder(Characters(), prompt_format, 1 << 20, count).propose(kind, REFERENCES[:1])
                    yield f"{prompt_format} {kind} propose, {count} inputs", asked
                continue
            for count in range(4):
                yield f"{prompt_format} {kind} propose, {count} references", whole.propose(kind, REFERENCES[:count])
            for count in (1, 3):
                text = definitions(EARLIER[:count])
                yield (
                    f"{prompt_format} {kind} propose, {count} earlier functions",
                    whole.propose(kind, REFERENCES[:1], text),
                )
            size = len(whole.propose(kind, REFERENCES[1:]).token_ids)
            cut = PromptBuilder(Characters(), prompt_format, size, 10).propose(kind, REFERENCES)
            yield f"{prompt_format} {kind} propose, cut to fit", cut


def readable(prompt: Prompt) -> dict[str, Any]:
    """Pieces by the part they belong to, and what else a prompt says."""
    pieces = [[part.value, "".join(map(chr, prompt.token_ids[start:end]))] for part, start, end in prompt.spans]
    return {
        "pieces": pieces,
        "reply_start": prompt.reply_start,
        "stop": list(prompt.stop),
        "num_references": prompt.num_references,
    }


def test_prompts_are_the_same_word_for_word() -> None:
    golden = json.loads(GOLDEN.read_text())
    found = {name: readable(prompt) for name, prompt in prompts()}
    assert list(found) == list(golden)
    for name, prompt in found.items():
        assert prompt == golden[name], name


if __name__ == "__main__":
    GOLDEN.write_text(
        json.dumps({name: readable(prompt) for name, prompt in prompts()}, indent=1, ensure_ascii=False) + "\n"
    )
