"""Builds the prompts of both roles: tokens, piece by piece, within a budget.

Each piece's place is kept (`Prompt.spans`): nothing is ever split out of a prompt again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from actors.kinds.kind import ProposalRequest
from actors.kinds.registry import kind_of
from actors.prompts import Part, Piece, PromptFormat, PromptText
from executor.tasks import Task


class PromptTooLong(ValueError):
    """The prompt does not fit, even without references."""


class Span(NamedTuple):
    """Prompt tokens `start:end` are `part`."""

    part: Part
    start: int
    end: int


@dataclass(frozen=True)
class Prompt:
    """A prompt for the engine, with the data needed to read the reply."""

    token_ids: tuple[int, ...]
    reply_start: str
    """Text that the reply goes on from; put it before the reply to parse it."""
    stop: tuple[str, ...]
    spans: tuple[Span, ...] = ()
    """The places of the prompt's pieces; together they cover all tokens."""
    num_references: int = 0
    """References of a proposer's prompt that fitted: the newest ones."""


class PromptBuilder:
    """Builds prompts with one tokenizer, in one format, within a token budget."""

    def __init__(self, tokenizer: Any, prompt_format: PromptFormat, max_tokens: int, num_inputs: int) -> None:
        """`num_inputs`: N, how many inputs a proposer is asked for whose kind takes several."""
        self._encode: Callable[[str], list[int]] = lambda text: tokenizer.encode(text, add_special_tokens=False)
        self._format = prompt_format
        self._max_tokens = max_tokens
        self._num_inputs = num_inputs

    def propose(
        self, kind: str, references: Sequence[Task], definitions: str = "", constructs: Sequence[str] = ()
    ) -> Prompt:
        """Ask for a task of `kind`, in view of `references`, oldest first. They are left out, oldest first, until the
        prompt fits, but for the one that a kind writes about (`TaskKind.writes_program`); PromptTooLong if none helps.

        `definitions`: source of g_0, g_1, ..., for a new f to call (`actors.composite`). `constructs`: what it is to
        use (`actors.constructs`).
        """
        asked = kind_of(kind)
        least = 0 if asked.writes_program else 1
        for dropped in range(max(1, len(references) - least + 1)):
            kept = references[dropped:]
            request = ProposalRequest(self._format, kept, self._num_inputs, definitions, constructs)
            prompt = self._prompt(asked.proposal_prompt(request), len(kept))
            if len(prompt.token_ids) <= self._max_tokens:
                return prompt
        raise PromptTooLong(
            f"a {kind} proposal prompt of {len(prompt.token_ids)} tokens; "
            f"selfplay.max_prompt_tokens is {self._max_tokens}"
        )

    def solve(self, task: Task, examples: Sequence[Task] = ()) -> Prompt:
        """Ask for the missing part of `task`, after solved `examples` of its kind. They are left out, the last first,
        until the prompt fits; PromptTooLong if it does not even without."""
        kind = kind_of(task.kind)
        for kept in range(len(examples), 0, -1):
            prompt = self._prompt(kind.solution_prompt(task, self._format, examples[:kept]))
            if len(prompt.token_ids) <= self._max_tokens:
                return prompt
        prompt = self._prompt(kind.solution_prompt(task, self._format))
        if len(prompt.token_ids) > self._max_tokens:
            raise PromptTooLong(
                f"a {task.kind} task of {len(prompt.token_ids)} tokens; "
                f"selfplay.max_prompt_tokens is {self._max_tokens}"
            )
        return prompt

    def _prompt(self, text: PromptText, num_references: int = 0) -> Prompt:
        tokens: list[int] = []
        spans = []
        for part, piece in (*text.pieces, Piece(Part.REPLY, text.reply_start)):
            start = len(tokens)
            tokens += self._encode(piece)
            spans.append(Span(part, start, len(tokens)))
        return Prompt(tuple(tokens), text.reply_start, text.stop, tuple(spans), num_references)
