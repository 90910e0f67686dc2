"""A batch through the trainer and a tiny model: the numbers and weights of every correction, however the work is cut.

The loss's formulas are held to a reference in test_losses.py, the model to transformers in test_model.py.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from launch.metric_catalogue import METRICS
from learner.batching.minibatches import split_batch
from learner.batching.packing import MicroBatch, pack
from learner.model.process_groups import init_parallel
from learner.protocols import StepGivenUp
from learner.ranks import Ranks
from learner.settings import LearnerSettings, ParallelSettings
from learner.skipped_updates import UpdatesSkipped
from learner.trainer import Trainer
from learner.trajectory import Cell, Role, Trajectory, VersionSpan, dumps, loads
from tests.ranks import run_ranks
from tests.unit.learner.training import (
    CELLS,
    CUT,
    LR,
    TIMES,
    VERSION,
    VOCAB,
    assert_same,
    batch_for,
    labelled,
    settings,
    train,
    trainer,
    trajectory,
    weights,
    write_llama,
)

CORRECTIONS = ("clip", "decoupled", "tis", "none")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def batch(folder: Path) -> list[Trajectory]:
    return batch_for(folder)


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("aggregation", ["token", "sequence", "fixed"])
def test_the_step_is_that_of_the_formulas(
    folder: Path, batch: list[Trajectory], correction: str, aggregation: str
) -> None:
    """Loss, gradient norm and diagnostics against transformers and formulas, every sequence run alone, on responses
    only."""
    import transformers as tf

    model = tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).double()
    chosen = settings(correction=correction, aggregation=aggregation, fixed_length=5)
    num_tokens = sum(len(t.response_ids) for t in batch)
    loss = torch.zeros((), dtype=torch.float64)
    ratios, gaps, clipped, truncated = [], [], [], []
    for t in batch:
        ids = torch.from_numpy(np.concatenate([t.prompt_ids, t.response_ids])).long()
        table = torch.log_softmax(model(ids[None]).logits[0, len(t.prompt_ids) - 1 : -1], -1)
        theta = table.gather(1, torch.from_numpy(t.response_ids).long()[:, None])[:, 0]
        behave = torch.from_numpy(t.logprobs).double()
        a, to_behave = float(np.float32(t.reward)), (theta - behave).exp()
        if correction == "clip":
            inside = to_behave.clamp(0.9, 1.15)
            tokens = -torch.minimum(to_behave * a, inside * a)
            if a < 0:
                tokens = tokens.clamp(max=-1.3 * a)
            clipped += ((to_behave < 0.9) if a < 0 else (to_behave > 1.15)).tolist()
        else:  # with one update, decoupled is tis
            weight = to_behave.detach().clamp(max=1.2) if correction != "none" else torch.ones_like(to_behave)
            # Its gradient is that of log pi_theta, its value -weight * A.
            tokens = -a * weight * (1 + theta - theta.detach())
            truncated += (to_behave > 1.2).tolist() if correction != "none" else []
        share = {"token": 1 / num_tokens, "sequence": 1 / len(batch) / len(theta), "fixed": 1 / len(batch) / 5}
        loss = loss + (tokens * share[aggregation]).sum()
        ratios += to_behave.tolist()
        if t.newest_version == VERSION:
            gaps += (theta - behave).abs().tolist()
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    numbers = trainer(folder, chosen).train(batch)
    w = np.array(ratios)
    expected = {
        "loss": loss.item(),
        "grad_norm": norm.item(),
        "tokens_trained": num_tokens,
        "clip_fraction": sum(clipped) / num_tokens,
        "truncated_weights": sum(truncated) / num_tokens,
        "ess": w.sum() ** 2 / (num_tokens * (w**2).sum()),
        "kl_behave": (w - 1 - np.log(w)).mean(),
        "max_ratio": w.max(),
        "logprob_mismatch": np.mean(gaps),
        "updates": 1,
        "skipped_update": 0,
    }
    assert {name: numbers[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert bool(clipped) == (correction == "clip")
    assert any(clipped) or any(truncated) or correction == "none"


@pytest.mark.parametrize(("correction", "share"), [("clip", 1.0), ("none", 1.0), ("clip", 0.4), ("clip", 0.0)])
def test_the_supervised_loss_is_added_to_the_policy_loss(
    folder: Path, batch: list[Trajectory], correction: str, share: float
) -> None:
    """The gradient is that of both losses, by autograd over transformers; the policy's own numbers are as without."""
    import transformers as tf

    model = tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).double()
    examples = labelled(batch)
    weight = sum(e.weight * len(e.response_ids) for e in examples)

    def logprobs(prompt: np.ndarray, response: np.ndarray) -> Tensor:
        ids = torch.from_numpy(np.concatenate([prompt, response])).long()
        table = torch.log_softmax(model(ids[None]).logits[0, len(prompt) - 1 : -1], -1)
        return table.gather(1, torch.from_numpy(response).long()[:, None])[:, 0]

    nll = -sum(e.weight * logprobs(e.prompt_ids, e.response_ids).sum() for e in examples) / weight
    policy = torch.zeros((), dtype=torch.float64)
    num_tokens = sum(len(t.response_ids) for t in batch)
    for t in batch:
        theta, a = logprobs(t.prompt_ids, t.response_ids), float(np.float32(t.reward))
        ratio = (theta - torch.from_numpy(t.logprobs).double()).exp()
        tokens = -a * (1 + theta - theta.detach())
        if correction == "clip":
            tokens = -torch.minimum(ratio * a, ratio.clamp(0.9, 1.15) * a)
            tokens = tokens.clamp(max=-1.3 * a) if a < 0 else tokens
        policy = policy + tokens.sum() / num_tokens
    (share * policy + 0.7 * nll).backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    one = trainer(folder, settings(supervised=0.7, policy=share, correction=correction))
    one.supervision = lambda step: examples if step == VERSION else []
    numbers = one.train(batch)
    expected = {"supervised_loss": nll.item(), "loss": policy.item(), "grad_norm": norm.item()}
    assert {name: numbers[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert numbers["labelled_examples"] == 5
    assert numbers["labelled_tokens"] == sum(len(e.response_ids) for e in examples)
    without = trainer(folder, settings(correction=correction)).train(batch)
    assert numbers["tokens_useful"] == (without["tokens_useful"] if share else 0)
    changed = TIMES | CUT | {"grad_norm", "grad_norm_max", "train_flops", *expected, "labelled_examples"}
    changed |= {"tokens_useful"}
    for name in set(without) - changed:
        assert numbers[name] == pytest.approx(without[name], rel=1e-5, abs=1e-6), name
    assert numbers["train_flops"] > without["train_flops"]


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("correction", ["clip", "decoupled"])
def test_micro_batches_do_not_change_the_supervised_loss(
    folder: Path, batch: list[Trajectory], correction: str, updates: int
) -> None:
    chosen = settings(supervised=0.7, correction=correction, updates_per_batch=updates)
    whole = train(folder, batch, chosen)
    parts = train(folder, batch, chosen.model_copy(update={"micro_batch_tokens": 16}))
    assert parts[0]["micro_batches"] > whole[0]["micro_batches"] == updates
    assert whole[0]["labelled_examples"] == 5
    assert_same(whole, parts)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_below_the_entropy_floor_the_step_rewards_entropy(
    folder: Path, batch: list[Trajectory], temperature: float
) -> None:
    """Loss and gradient norm against autograd over transformers; at or above the floor nothing changes."""
    import transformers as tf

    model = tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).double()
    num_tokens = sum(len(t.response_ids) for t in batch)
    behave = -sum(float(t.logprobs.sum()) for t in batch) / num_tokens
    bonus = 0.5 * (1 - behave / (2 * behave))
    loss = torch.zeros((), dtype=torch.float64)
    for t in batch:
        ids = torch.from_numpy(np.concatenate([t.prompt_ids, t.response_ids])).long()
        table = torch.log_softmax(model(ids[None]).logits[0, len(t.prompt_ids) - 1 : -1] / temperature, -1)
        theta = table.gather(1, torch.from_numpy(t.response_ids).long()[:, None])[:, 0]
        policy = -float(np.float32(t.reward)) * (1 + theta - theta.detach())
        loss = loss + (policy + bonus * (table.exp() * table).sum(-1)).sum() / num_tokens
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    chosen = settings(correction="none", entropy_floor=2 * behave, entropy_weight=0.5)
    one = trainer(folder, chosen)
    one.policy.temperature = temperature
    numbers = one.train(batch)
    expected = {"loss": loss.item(), "grad_norm": norm.item(), "entropy_bonus": bonus}
    assert {name: numbers[name] for name in expected} == pytest.approx(expected, rel=1e-4)

    half = settings(correction="none", entropy_floor=2 * behave, entropy_weight=0.5, policy=0.5)
    assert train(folder, batch, half)[0]["entropy_bonus"] == pytest.approx(bonus / 2)

    above = train(folder, batch, settings(correction="none", entropy_floor=0.9 * behave))
    assert above[0].pop("entropy_bonus") == 0
    assert_same(above, train(folder, batch, settings(correction="none")))


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("updates", [1, 2])
def test_micro_batches_change_nothing(folder: Path, batch: list[Trajectory], correction: str, updates: int) -> None:
    whole = train(folder, batch, settings(correction=correction, updates_per_batch=updates))
    assert whole[0]["micro_batches"] == updates
    cut = settings(correction=correction, updates_per_batch=updates).model_copy(update={"micro_batch_tokens": 16})
    parts = train(folder, batch, cut)
    assert parts[0]["micro_batches"] > 2 * updates
    assert_same(whole, parts)


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_two_updates_are_two_steps_by_hand(folder: Path, batch: list[Trajectory], correction: str) -> None:
    chosen = settings(correction=correction, updates_per_batch=2)
    numbers = (one := trainer(folder, chosen)).train(batch)
    assert one.version == VERSION + 1

    by_hand = trainer(folder, settings())
    prox = by_hand.logprobs(batch)
    norms, losses = [], []
    for members in split_batch(batch, 2):
        part = [batch[i] for i in members]
        size = sum(len(t.response_ids) for t in part)

        def loss(_: int, micro: MicroBatch, logprobs: Tensor, entropy: Tensor) -> Tensor:
            def column(values: Callable[[int], np.ndarray]) -> Tensor:
                found = [values(i)[j] for i, j in zip(micro.sequence_index, micro.token_index, strict=True)]
                return torch.tensor(np.array(found))

            behave = column(lambda i: part[i].logprobs)  # noqa: B023
            old = column(lambda i: prox[members[i]])  # noqa: B023
            a = column(lambda i: np.full(len(part[i].response_ids), part[i].reward, np.float32))  # noqa: B023
            now = logprobs.detach()
            anchor = {"clip": behave, "decoupled": old}.get(correction, now)
            weight = {"decoupled": old, "tis": now}.get(correction, behave) - behave
            ratio = (logprobs - anchor).exp()
            tokens = torch.maximum(-ratio * a, -ratio.clamp(0.9, 1.15) * a)
            tokens = torch.where(a < 0, torch.minimum(tokens, -1.3 * a), tokens)
            total = (tokens * weight.exp().clamp(max=1.2)).sum() / size  # noqa: B023
            losses.append(total.item())
            return total

        by_hand.policy.zero_grad()
        by_hand.policy.forward_backward(pack([(t.prompt_ids, t.response_ids) for t in part], 4096), loss)
        norms.append(by_hand.policy.step(LR)[0])
    expected = {
        "loss": sum(losses) / 2,
        "grad_norm": sum(norms) / 2,
        "grad_norm_max": max(norms),
        "skipped_update": 0,
        "updates": 2,
    }
    assert {name: numbers[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    ours, theirs = weights(one.policy), weights(by_hand.policy)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-3 * LR, rtol=1e-4)


def test_an_update_that_is_skipped_is_counted(
    folder: Path, batch: list[Trajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = trainer(folder, settings(updates_per_batch=2))
    outcomes = iter([(1.0, True), (3.0, False)])
    monkeypatch.setattr(one.policy, "step", lambda lr: next(outcomes))
    numbers = one.train(batch)
    assert (numbers["grad_norm"], numbers["grad_norm_max"], numbers["skipped_update"]) == (2.0, 3.0, 0.5)


def test_a_run_ends_at_the_third_skipped_update_in_a_row(folder: Path, batch: list[Trajectory]) -> None:
    """Rewards that overflow: real gradients, real steps."""
    one = trainer(folder, settings(max_skipped_updates=3))
    broken = [replace(t, reward=1e38) for t in batch]
    before = weights(one.policy)
    for _ in range(2):
        assert one.train(broken)["skipped_update"] == 1
        assert not math.isfinite(one.train(broken)["grad_norm"])
        one.train(batch)  # one that is taken: the count begins anew
    after = weights(one.policy)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    one.train(broken), one.train(broken)
    with pytest.raises(UpdatesSkipped, match=r"last 3 optimizer steps were skipped.*learner\.optimizer\.lr"):
        one.train(broken)
    assert all(torch.equal(weights(one.policy)[name], after[name]) for name in after)


def test_the_learning_rate_warms_up_by_version(
    folder: Path, batch: list[Trajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = trainer(folder, settings(updates_per_batch=2, optimizer={"lr": 0.5, "warmup_steps": 4}))
    rates: list[float] = []
    monkeypatch.setattr(one.policy, "step", lambda lr: (rates.append(lr), (1.0, True))[1])
    for one.version in (0, 1, 4, 9):
        one.train(batch)
    assert rates == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.5, 0.5, 0.5, 0.5])


def test_a_trajectory_without_advantage_has_no_say(folder: Path, batch: list[Trajectory]) -> None:
    """Its tokens, its prompt and its log-probabilities may be anything; only its length is in the mean."""
    for correction in CORRECTIONS:
        found = []
        for seed in (1, 2):
            rng = np.random.default_rng(seed)
            silent = replace(
                batch[4],
                reward=0.0,
                prompt_ids=rng.integers(0, VOCAB, 4 + seed).astype(np.int32),
                response_ids=rng.integers(0, VOCAB, 8).astype(np.int32),
                logprobs=-rng.random(8, dtype=np.float32),
                versions=(VersionSpan(VERSION, 0, 8),),
            )
            one = trainer(folder, settings(correction=correction))
            one.train([*batch, silent])
            found.append(weights(one.policy))
        for name, tensor in found[0].items():
            torch.testing.assert_close(tensor, found[1][name], atol=1e-4 * LR, rtol=1e-5)


def test_the_engine_is_compared_at_equal_versions(folder: Path, batch: list[Trajectory]) -> None:
    one = trainer(folder, settings(updates_per_batch=2))
    ours = one.logprobs(batch)
    old = [replace(t, versions=(VersionSpan(VERSION - 1, 0, len(t.response_ids)),)) for t in batch]
    off = [replace(t, logprobs=mine - np.float32(0.125)) for t, mine in zip(batch, ours, strict=True)]
    waiting = [replace(t, versions=(VersionSpan(VERSION, 0, len(t.response_ids)),)) for t in off]
    assert "logprob_mismatch" not in one.train(old)
    one = trainer(folder, settings(updates_per_batch=2))
    assert one.train(old, lambda: [*old, *waiting])["logprob_mismatch"] == pytest.approx(0.125, rel=1e-3)
    assert one.train(old, lambda: [])["mismatch_tokens"] == 0
    one = trainer(folder, settings(updates_per_batch=2))
    one.life = 1
    undone = one.train(waiting, lambda: waiting)
    assert undone["mismatch_tokens"] == 0, "a version of the same number, of a life of the learner that was undone"
    # After the first of two updates the weights are no longer those of the version: its part alone is compared.
    one = trainer(folder, settings(updates_per_batch=2))
    assert one.train(waiting)["logprob_mismatch"] == pytest.approx(0.125, rel=1e-3)


def test_the_first_part_meets_the_policy_of_the_batch_start(folder: Path, batch: list[Trajectory]) -> None:
    """With pi_behave = pi_theta, only `decoupled`'s later parts have a ratio that is not 1."""
    one = trainer(folder, settings(correction="decoupled"))
    equal = [replace(t, logprobs=mine) for t, mine in zip(batch, one.logprobs(batch), strict=True)]
    numbers = one.train(equal)
    assert numbers["kl_prox"] == numbers["kl_behave"] == pytest.approx(0, abs=1e-9)
    twice = trainer(folder, settings(correction="decoupled", updates_per_batch=2)).train(equal)
    assert twice["kl_prox"] == pytest.approx(0, abs=1e-9)
    assert twice["kl_behave"] > 1e-6


CELL = st.sampled_from(CELLS)


@given(st.lists(st.tuples(CELL, st.integers(0, 3)), min_size=1, max_size=40), st.integers(1, 6))
def test_parts_are_balanced_by_cell(rows: list[tuple[Cell, int]], num_parts: int) -> None:
    token = np.array([1])
    batch = [trajectory(cell, np.array([prompt]), token, 0.0) for cell, prompt in rows]
    parts = split_batch(batch, num_parts)
    assert sorted(index for part in parts for index in part) == list(range(len(batch)))
    assert all(part == sorted(part) and part for part in parts)
    assert len(parts) == min(num_parts, len(batch))
    assert parts == split_batch(batch, num_parts)
    for cell in (None, *CELLS):
        counts = [sum(cell in (None, rows[index][0]) for index in part) for part in parts]
        assert max(counts) - min(counts) <= 1
    for cell in CELLS:
        prompts = Counter(prompt for part in parts for prompt in {rows[i][1] for i in part if rows[i][0] == cell})
        assert sum(count - 1 for count in prompts.values()) < num_parts


def test_prompts_stay_together_where_the_cut_allows_it() -> None:
    cell = Cell("deduction", Role.SOLVE)
    batch = [trajectory(cell, np.array([index % 4]), np.array([1]), 0.0) for index in range(16)]
    assert [{i % 4 for i in part} for part in split_batch(batch, 2)] == [{0, 1}, {2, 3}]


LAYOUTS = [
    *(("data", correction, updates) for correction in CORRECTIONS for updates in (1, 2)),
    *((layout, correction, 2) for layout in ("tensor", "pipeline", "context") for correction in ("clip", "decoupled")),
]


def chosen_for(layout: str, correction: str, updates: int) -> LearnerSettings:
    return settings(
        correction=correction,
        updates_per_batch=updates,
        micro_batch_tokens=64,
        parallel={layout: 2},
        aggregation="sequence" if updates == 2 else "token",
        supervised=0.0 if correction in ("none", "tis") else 0.7,
    )


def compare(one: Trainer, batch: list[Trajectory]) -> list[float]:
    """Train on a batch that an older version sampled; the engine is compared on what waits, on rank 0."""
    old = [replace(t, versions=(VersionSpan(VERSION - 1, 0, len(t.response_ids)),)) for t in batch]
    numbers = one.train(old, lambda: batch if one.ranks.is_main else [])
    return [numbers[name] for name in ("logprob_mismatch", "mismatch_tokens", "grad_norm")]


def run_rank(rank: int, folder: Path, batch: bytes, out: Path) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(out / "store"), 2)
    found = {}
    for case in LAYOUTS:
        chosen = chosen_for(*case)
        init_parallel(chosen.parallel, rank, 2, store, timeout=60.0)
        ranks = Ranks(rank, 2)
        one = trainer(folder, chosen, ranks)
        logprobs = [torch.from_numpy(mine) for mine in one.logprobs(loads(batch))]
        compared = compare(one, loads(batch))
        found[case] = (logprobs, compared, train(folder, loads(batch), chosen, ranks))
    torch.save(found, out / f"{rank}.pt")


@pytest.fixture(scope="module")
def two_ranks(folder: Path, batch: list[Trajectory], tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    out = tmp_path_factory.mktemp("ranks")
    run_ranks(run_rank, (folder, dumps(batch), out), 2)
    return [torch.load(out / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", LAYOUTS, ids=lambda case: "-".join(map(str, case)))
def test_ranks_change_nothing(
    folder: Path, batch: list[Trajectory], two_ranks: list[dict[Any, Any]], case: Any
) -> None:
    alone = trainer(folder, settings())
    logprobs = alone.logprobs(batch)
    on_one = chosen_for(*case).model_copy(update={"parallel": ParallelSettings()})
    compared = compare(trainer(folder, on_one), batch)
    single = train(folder, batch, on_one)
    for found in two_ranks:
        rank_logprobs, rank_compared, result = found[case]
        for ours, theirs in zip(logprobs, rank_logprobs, strict=True):
            np.testing.assert_allclose(theirs.numpy(), ours, atol=1e-5)
        assert rank_compared == pytest.approx(compared, rel=1e-3)
        assert_same(single, result)


def test_the_engine_is_compared_on_what_comes_in_while_the_version_is_trained(
    folder: Path, batch: list[Trajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that was complete at once: its version's own rollouts come in during the backward pass, and are scored
    before the weights change."""
    one = trainer(folder, settings(updates_per_batch=2))
    ours = one.logprobs(batch)
    old = [replace(t, versions=(VersionSpan(VERSION - 1, 0, len(t.response_ids)),)) for t in batch]
    late = [
        replace(t, logprobs=mine - np.float32(0.125), versions=(VersionSpan(VERSION, 0, len(t.response_ids)),))
        for t, mine in zip(batch, ours, strict=True)
    ]
    spanning = [
        replace(
            t,
            logprobs=t.logprobs - np.float32(9),
            versions=(VersionSpan(VERSION - 1, 0, 1), VersionSpan(VERSION, 1, 9)),
        )
        for t in batch
        if len(t.response_ids) == 9
    ]
    queue: list[Trajectory] = list(old)
    forward_backward = one.policy.forward_backward

    def takes_time(*args: Any) -> None:
        forward_backward(*args)
        queue.extend([*spanning, *late])

    monkeypatch.setattr(one.policy, "forward_backward", takes_time)
    numbers = one.train(old, lambda: queue)
    assert spanning and numbers["logprob_mismatch"] == pytest.approx(0.125, rel=1e-3)
    assert 0 < numbers["mismatch_tokens"] < sum(len(t.response_ids) for t in late), "a few of them, to be cheap"
    assert METRICS.find("mismatch_s") and numbers["mismatch_s"] > 0
    METRICS.check(numbers)


@pytest.mark.parametrize("at", [0, 1, "the update"])
def test_a_step_that_is_given_up_leaves_no_trace(folder: Path, batch: list[Trajectory], at: int | str) -> None:
    chosen, batch = settings(micro_batch_tokens=64), batch * 3
    one, other = trainer(folder, chosen), trainer(folder, chosen)
    num_micros = one.train(batch)["micro_batches"]
    assert num_micros > 2 and other.train(batch)["loss"]
    before, asked = weights(one.policy), 0

    def gives_up() -> bool:
        nonlocal asked
        asked += 1
        return asked > (num_micros if at == "the update" else at)

    with pytest.raises(StepGivenUp):
        one.train(batch, gives_up=gives_up)
    assert asked == {0: 1, 1: 2, "the update": num_micros + 1}[at], "no micro-batch is computed after that"
    assert one.version == other.version
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(one.policy).items())
    first, second = ({k: v for k, v in each.train(batch).items() if k not in TIMES} for each in (one, other))
    assert first == second
    kept, same = weights(one.policy), weights(other.policy)
    assert all(torch.equal(tensor, same[name]) for name, tensor in kept.items())
