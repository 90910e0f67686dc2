"""The metrics of self-play: what a batch says about its tasks (`actors/metrics.py`), and the task buffer."""

from __future__ import annotations

from learner.metrics.catalogue import Entries, Section, Whose

_OF_ACTORS = Entries(Whose.ACTORS)
_OF_BUFFER = Entries(Whose.BUFFER)
_share, _gauge = _OF_ACTORS.share, _OF_ACTORS.gauge

SELF_PLAY = Section(
    "Self-play",
    "Of the trajectories of this step's batch.",
    (
        _gauge("batch_size", "trajectories", "trajectories of the batch"),
        _gauge("reward_mean", "", "their mean reward"),
        _share("valid_rate/{kind}", "proposals that became tasks", "rises; near 0 for many steps: see `outcome/...`"),
        _share("solve_rate/{kind}", "solutions that are correct", "0.2 to 0.8; near 1: tasks have become trivial"),
        _share("solve_rate_fresh/{kind}", "the same, of this batch's own tasks"),
        _share("solve_rate_replayed/{kind}", "the same, of tasks of the buffer"),
        _share("replayed/{kind}", "solutions spent on tasks of the buffer: how much the cell lacks valid proposals"),
        _share("estimates/{kind}", "solutions that estimated a fresh proposal's difficulty"),
        _share("outcome/{cell}/{reason}", "the cell's trajectories with this outcome: `valid`, `correct`, or why not"),
        _share("format_errors/{cell}", "replies that could not be read", "falls"),
        _share("truncated/{cell}", "responses that ended at the token limit", "below 0.1"),
        _gauge("reward/{cell}", "", "mean reward"),
        _gauge("reward/{cell}/{term}", "", "mean of one term, over all of the cell: the terms add up to the reward"),
        _gauge("response_tokens/{cell}", "tokens", "mean length of the responses"),
        _gauge("prompt_tokens/{cell}", "tokens", "mean length of the prompts"),
        _gauge("trajectories/{cell}", "trajectories", "those of the batch; below the quota where slots were returned"),
        _share(
            "learnability/{kind}/{bin}",
            "fresh tasks whose solve rate is 0 (`0`), in (0, .25], (.25, .5], (.5, .75], (.75, 1) (`0_25` to "
            "`75_100`), or 1 (`100`). At either end a task teaches nothing",
        ),
        _share("answer_diversity/{kind}", "0 where all answers to one task are the same, 1 where all differ; mean over "
               "tasks tried more than once"),
        _share(
            "distinct_answers/{kind}",
            "different answers / readable answers, over all tasks of the batch",
            "falls slowly; near 0: one answer to every task",
        ),
        _share("copies/{kind}", "readable answers that repeat what the prompt shows: of deduction, the input",
               "below 0.3"),
        _share(
            "distinct_programs/{kind}",
            "different normalised programs / valid proposals of the batch, of kinds that write programs",
            "above 0.5",
        ),
        _share("output_diversity/{kind}", "1 - how common a proposal's outputs are among the last 1,000"),
        _share("duplicates/{kind}", "valid proposals that the buffer had", "below 0.5"),
        _share(
            "ignores_input/{kind}",
            "of the proposals that ran: give one value for their input and for variants of it (a refused one counts, "
            "too). For induction: one value for all inputs",
            "below 0.5",
        ),
        _share("distance/{kind}", "distance of a program's syntax tree to those of its references: 0 equal, 1 nothing "
               "in common"),
        _gauge("nodes/{kind}", "", "syntax tree nodes of valid proposals"),
        _gauge("complexity/{kind}", "", "cognitive complexity of valid proposals"),
        _gauge("halstead/{kind}", "", "Halstead effort of valid proposals"),
        _share("constructs/{kind}", "constructs that a prompt named and its valid program uses"),
        _share("composite/{kind}", "of the valid proposals that were given earlier functions: those that call one"),
        _gauge(
            "fact/{name}/{kind}",
            "",
            "mean of a number that a kind counts of its valid proposals by itself (`TaskKind.facts`); none of the "
            "three kinds has one",
        ),
    ),
)  # fmt: skip

BUFFER = Section(
    "The task buffer",
    "",
    (
        _OF_BUFFER.counter("buffer/evicted", "tasks of all kinds that left the draw", "tasks"),
        _OF_BUFFER.counter("buffer/duplicates", "tasks of all kinds that came again", "tasks"),
        _OF_BUFFER.gauge("buffer/{kind}", "tasks", "tasks in the draw"),
    ),
)

ACTOR_SECTIONS = (SELF_PLAY, BUFFER)
