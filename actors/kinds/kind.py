"""The interface of a kind of task: everything that the rest of self-play asks of one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from actors.parsing import FormatError
from actors.prompts import PromptFormat, PromptText
from executor.judge import Judge
from executor.tasks import Proposal, Rejection, Task, Verdict


@dataclass(frozen=True)
class ProposalRequest:
    """The material of a proposer's prompt."""

    prompt_format: PromptFormat
    references: Sequence[Task]
    """Past tasks, oldest first: exactly one for a kind that writes about a given program."""
    num_inputs: int
    """N: number of inputs to ask for, where a kind takes several (`selfplay.induction_inputs`)."""
    definitions: str = ""
    """Source of earlier functions g_0, g_1, ... for the new one to call (`actors.composite`), or nothing."""
    constructs: Sequence[str] = ()
    """Python constructs that the new function is to use (`actors.constructs`); none for a kind that writes no
    program."""


class TaskKind(ABC):
    """One kind of task. Stateless: one object serves all episodes of a process."""

    name: ClassVar[str]
    """Its name in settings, metrics, files and on the wire: a lower-case letter, then at most 39 letters, digits, `_`,
    `-`."""
    position: ClassVar[int] = 100
    """Its position in lists of all kinds, lowest first; equal ones are in the order of their names."""
    writes_program: ClassVar[bool] = True
    """Whether its proposer writes the task's program. It is then shown up to `selfplay.references` past tasks to differ
    from, may be given earlier functions to call, and is paid what `selfplay.intrinsic` pays for a program. Otherwise it
    is given one past task and writes about the program of that; where the buffer has none, it can't be asked."""

    @property
    def reference_kinds(self) -> tuple[str, ...]:
        """Kinds whose past tasks its proposer is shown; its own, by default."""
        return (self.name,)

    # -- the proposer ------------------------------------------------------------------------------------------------

    @abstractmethod
    def proposal_prompt(self, request: ProposalRequest) -> PromptText:
        """The prompt of a proposer: the text that it is shown, and the request."""

    @abstractmethod
    def read_proposal(self, text: str, references: Sequence[Task], num_inputs: int) -> Proposal | FormatError:
        """The proposal in a reply, or what is missing from it.

        `text`: the answer's part of the reply, with the start that the prompt gave; `references`, `num_inputs`: as in
        the request. Nothing in it may be evaluated here.
        """

    # -- the solver --------------------------------------------------------------------------------------------------

    @abstractmethod
    def solution_prompt(self, task: Task, prompt_format: PromptFormat, examples: Sequence[Task] = ()) -> PromptText:
        """The prompt of a solver. It must not contain the answer.

        `examples`: tasks of this kind with other programs, to be shown solved in `completion`; none: one that is known
        without a buffer, such as the zero triplet.
        """

    @abstractmethod
    def read_answer(self, text: str) -> str | FormatError:
        """The answer in a reply, for `verify`, or what is missing from it. `text`: as for `read_proposal`."""

    def is_copy(self, task: Task, answer: str) -> bool | None:
        """Whether an answer that `read_answer` gave repeats what the prompt shows; None for a kind where no such answer
        is wrong as a rule. For a metric alone: a policy that copies has stopped reading the program."""
        return None

    # -- what is true ------------------------------------------------------------------------------------------------

    @abstractmethod
    async def validate(self, judge: Judge, proposal: Proposal) -> Task | Rejection:
        """The task that `proposal` defines, or why it defines none. Raises InfrastructureError.

        A rejection's reason is a `RejectionReason` or a member of an enum of the kind's own.
        """

    @abstractmethod
    async def verify(self, judge: Judge, task: Task, answers: Sequence[str]) -> list[Verdict]:
        """Judge whether each of `answers` solves `task`, aligned. Raises InfrastructureError."""

    # -- what is counted and stored ----------------------------------------------------------------------------------

    def facts(self, task: Task) -> dict[str, float]:
        """Numbers of a valid proposal, by name, beyond those that every kind has. Each becomes the metric
        `fact/<name>/<kind>`, its mean over the batch's valid proposals."""
        return {}

    def identity(self, task: Task) -> tuple[str, ...]:
        """Texts that tell `task` from others of the same normalised program and inputs: the buffer takes each task
        once."""
        return ()

    def from_triplet(self, triplet: Task) -> Task | None:
        """The task of this kind that a bare triplet of program, input and output gives; None if it gives none.

        The zero triplet and the triplets of the seeding phase enter the buffer in this form.
        """
        return None

    def from_pairs(self, program: str, pairs: Sequence[tuple[str, str]], message: str, num_inputs: int) -> list[Task]:
        """The tasks of this kind that a program with pairs of input and output gives: by default the triplet of each.

        `message`: a hint at what the program does, or nothing; `num_inputs`: as in `ProposalRequest`.
        """
        triplets = (Task("deduction", program, (given,), (output,)) for given, output in pairs)
        return [task for task in map(self.from_triplet, triplets) if task is not None]

    # -- replies as data, for fine-tuning (`azr sft-data`) -----------------------------------------------------------

    @abstractmethod
    def proposal_reply(self, task: Task) -> str:
        """The blocks of a reply that proposes `task`, such that `read_proposal` reads them."""

    @abstractmethod
    def answer_reply(self, task: Task) -> str:
        """The blocks of a reply that solves `task`, such that `read_answer` reads them."""
