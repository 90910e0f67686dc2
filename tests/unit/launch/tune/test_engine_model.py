import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st

from launch.tune.engine_model import EngineModel, StepCost
from launch.tune.machine import Machine

COST = StepCost(step_s=0.01, sequence_s=0.002, context_s=1e-6, prompt_s=1e-4, cached_share=0.0, block_tokens=16)


def engine(env, cost=COST, max_num_seqs=64, kv_tokens=1e6, max_num_batched_tokens=10_000):
    return EngineModel(
        env, Machine(env, {"engine": 1}), "engine", cost, max_num_seqs, max_num_batched_tokens, kv_tokens
    )


def play(requests, updates=(), **options):
    """Play requests (comes at, key, prompt, tokens); `updates`: (at, seconds still). Returns (end, spans) of each, and
    the engine."""
    env = simpy.Environment()
    made = engine(env, **options)
    found = [None] * len(requests)

    def submit(index, at, key, prompt, tokens):
        yield env.timeout(at)
        spans = yield made.generate(key, prompt, tokens)
        found[index] = (env.now, spans)

    def update():
        for version, (at, seconds) in enumerate(updates, 1):
            yield env.timeout(max(0.0, at - env.now))
            yield made.pause()
            yield env.timeout(seconds)
            made.resume(version)

    for index, request in enumerate(requests):
        env.process(submit(index, *request))
    env.process(update())
    env.run()
    return found, made


def one_step_at_a_time(prompt, tokens, cost=COST):
    seconds = cost.decode(1, prompt, 1) + cost.prompt_s * prompt
    return seconds + sum(cost.decode(1, prompt + done, 1) for done in range(1, tokens))


def test_a_request_by_itself_takes_the_sum_of_its_steps():
    (found,), _ = play([(0.0, "a", 100, 50)])
    assert found[0] == pytest.approx(one_step_at_a_time(100, 50))


def test_requests_that_come_together_share_their_steps():
    found, made = play([(0.0, "a", 20, 30), (0.0, "b", 20, 30)])
    together = max(end for end, _ in found)
    assert together < 2 * one_step_at_a_time(20, 30)
    assert together > one_step_at_a_time(20, 30)
    assert made.tokens == 60


def test_a_prompt_that_was_seen_is_cached_in_whole_blocks():
    slow = StepCost(step_s=0.0, sequence_s=0.0, context_s=0.0, prompt_s=1.0, cached_share=0.0, block_tokens=16)
    found, _ = play([(0.0, "a", 40, 1), (100.0, "a", 40, 1), (200.0, "b", 40, 1)], cost=slow)
    assert [end - at for (end, _), at in zip(found, (0, 100, 200), strict=True)] == pytest.approx([40, 8, 40])


def test_new_weights_make_the_prefix_cache_forget():
    slow = StepCost(step_s=0.0, sequence_s=0.0, context_s=0.0, prompt_s=1.0, cached_share=0.0, block_tokens=16)
    found, _ = play([(0.0, "a", 40, 1), (200.0, "a", 40, 1)], updates=[(100.0, 1.0)], cost=slow)
    assert found[1][0] == pytest.approx(240)


def test_versions_are_those_of_the_first_and_the_last_token():
    found, made = play([(0.0, "a", 10, 100), (5.0, "b", 10, 5)], updates=[(0.5, 0.25)])
    assert [spans for _, spans in found] == [(0, 1), (1, 1)]
    assert made.still_s == pytest.approx(0.25)
    assert found[0][0] == pytest.approx(one_step_at_a_time(10, 100) + 0.25)


def test_a_full_cache_preempts_and_everything_ends_all_the_same():
    found, made = play([(0.0, index, 20, 100) for index in range(4)], kv_tokens=200)
    assert made.preempted > 0
    assert all(found)
    assert made.kv_usage == 0.0


@given(
    st.lists(st.tuples(st.floats(0, 3), st.integers(0, 3), st.integers(1, 60), st.integers(1, 80)), max_size=12),
    st.lists(st.tuples(st.floats(0, 5), st.floats(0, 0.5)), max_size=3),
    st.integers(1, 6),
    st.integers(150, 1000),
)
def test_whatever_comes_every_token_is_sampled_once_and_versions_only_rise(requests, updates, seqs, kv_tokens):
    found, made = play(requests, sorted(updates), max_num_seqs=seqs, kv_tokens=kv_tokens)
    assert made.tokens == sum(tokens for *_, tokens in requests)
    assert made.finished_tokens == made.tokens
    assert all(0 <= spans.oldest <= spans.newest <= len(updates) for _, spans in found)
    alone = [at + one_step_at_a_time(1, tokens) - COST.prompt_s for at, _, _, tokens in requests]
    assert all(end >= least - 1e-6 for (end, _), least in zip(found, alone, strict=True))


@given(st.integers(1, 64), st.integers(0, 10_000), st.integers(1, 200))
def test_steps_within_is_the_inverse_of_the_time_of_steps(sequences, context, steps):
    seconds = COST.decode(sequences, context, steps)
    assert COST.steps_within(sequences, context, seconds * (1 - 1e-6)) == steps
