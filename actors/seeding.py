"""The seeding phase: before the first batch, the initial model proposes until the buffer holds enough triplets.

From the zero triplet on, each proposal sees what the buffer has by then, as in an episode. What is proposed are
deduction tasks, which are plain triplets; a valid one enters for every kind that starts from triplets
(`TaskKind.from_triplet`): deduction and abduction. Induction starts from the programs. Nothing is solved, nothing is
trained on, no slot is used. Several actors seed together, each until the buffer has enough.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from actors.buffer.task_buffer import Buffer, NewTask
from actors.kinds.deduction import Deduction
from actors.kinds.registry import forms_of
from actors.propose import Draft, Proposer
from actors.roles import MakeRoles
from actors.sampler import Identity, together
from actors.settings import SelfPlaySettings
from executor.user_error import UserError

SEED_KIND = Deduction.name
"""The kind of the tasks that are proposed in this phase."""
ROUND = 64
"""Proposals that one actor samples at once; they do not see each other."""
PATIENCE = 200
"""Proposals for each triplet that is wanted, before the model counts as unable to write them."""

Progress = Callable[[int, int], None]


class SeedingFailed(UserError):
    """The model does not write valid tasks often enough to start from."""

    exit_code = 1


async def seed_buffer(
    roles: MakeRoles,
    buffer: Buffer,
    settings: SelfPlaySettings,
    identity: Identity,
    seed: int | None,
    progress: Progress = lambda have, target: None,
) -> int:
    """Propose until the buffer holds `settings.seed_tasks_target` triplets; returns how many proposals that took.

    `seed`: as for `MakeRoles`. `progress` is called with (triplets so far, target) after every round. Raises
    SeedingFailed after 200 proposals for each triplet that is wanted.
    """
    target = settings.seed_tasks_target
    proposer = roles(identity, seed).proposer
    count = 0
    while (have := await _holds(buffer, target)) < target:
        progress(have, target)
        if count >= PATIENCE * target:
            raise SeedingFailed(
                f"after {count} proposals {identity.actor_id} sees {have} of selfplay.seed_tasks_target = {target} "
                "triplets: ask for fewer, give it tasks to start with (selfplay.seed_tasks), or try another "
                "prompt_format"
            )
        await propose_seeds(proposer, buffer, SEED_KIND, identity, range(count, count + ROUND))
        count += ROUND
    if count:
        progress(have, target)
    return count


async def _holds(buffer: Buffer, target: int) -> int:
    """Number of tasks of `SEED_KIND` in the buffer, counted up to `target`."""
    return len(await buffer.references((SEED_KIND,), target, "seeding")) if target else 0


async def propose_seeds(
    proposer: Proposer, buffer: Buffer, kind: str, identity: Identity, numbers: Sequence[int]
) -> list[Draft]:
    """Make a proposal of `kind` for each of `numbers`, which are unlike those of other calls, and add what is valid.

    The proposals do not see each other. Returns what was written, without those that nothing could be asked for.
    """
    drafts = await together(_propose(proposer, kind, f"seed{number}") for number in numbers)
    # In the order of their numbers, not of their coming: a seeded run repeats.
    for number, draft in zip(numbers, drafts, strict=True):
        if draft is not None:
            await _add(buffer, draft, f"seed/{identity.actor_id}/{number}")
    return [draft for draft in drafts if draft is not None]


async def _propose(proposer: Proposer, kind: str, name: str) -> Draft | None:
    brief = await proposer.brief(kind, name)
    return await proposer.draft(brief, name) if brief is not None else None


async def _add(buffer: Buffer, draft: Draft, episode_id: str) -> None:
    task, normal = draft.task, draft.normal
    if task is None and draft.completed is not None:
        task, normal = draft.completed.task, draft.completed.normal
    if task is not None:
        version = min(span.version for span in draft.completion.versions)
        for one in forms_of(task):
            await buffer.add(NewTask(one, normal, version, episode_id))
