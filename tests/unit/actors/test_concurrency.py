"""The concurrency controller against its rules, and against a simulated cache."""

from hypothesis import given
from hypothesis import strategies as st

from actors.concurrency import ConcurrencyController, Load
from actors.settings import ConcurrencySettings

SETTINGS = ConcurrencySettings(minimum=4, increase=8, decrease=0.5, cooldown=3, kv_high=0.9, kv_low=0.7)


def load(in_flight: int, kv_usage: float, waiting: float = 0, preempted: float = 0) -> Load:
    return Load(in_flight, kv_usage, waiting, preempted)


def test_it_rises_by_a_constant_while_the_limit_binds_and_there_is_room() -> None:
    controller = ConcurrencyController(100, SETTINGS.model_copy(update={"start": 10}))
    assert [controller.observe(load(controller.limit, 0.5)) for _ in range(3)] == [18, 26, 34]
    assert controller.observe(load(34, 0.5, waiting=1)) == 34
    assert controller.observe(load(34, 0.8)) == 34
    for _ in range(20):
        controller.observe(load(controller.limit, 0.1))
    assert controller.limit == 100


def test_it_does_not_rise_while_the_gate_is_what_holds_rollouts_back() -> None:
    controller = ConcurrencyController(100, SETTINGS.model_copy(update={"start": 10}))
    assert [controller.observe(load(9, 0.1)) for _ in range(10)] == [10] * 10


def test_a_full_cache_halves_what_is_in_use_and_then_waits() -> None:
    controller = ConcurrencyController(100, SETTINGS)
    assert controller.observe(load(60, 0.95)) == 30
    assert [controller.observe(load(60, 0.95)) for _ in range(3)] == [30, 30, 15]


def test_preemption_counts_once_for_each_time_it_happens() -> None:
    controller = ConcurrencyController(100, SETTINGS)
    assert controller.observe(load(100, 0.8, preempted=2)) == 50
    assert [controller.observe(load(50, 0.8, preempted=2)) for _ in range(5)] == [50] * 5


@given(st.lists(st.tuples(st.integers(0, 300), st.floats(0, 1), st.integers(0, 9), st.integers(0, 50)), max_size=60))
def test_the_limit_stays_between_its_bounds(observations: list[tuple[int, float, int, int]]) -> None:
    controller = ConcurrencyController(120, SETTINGS)
    for observation in observations:
        assert 4 <= controller.observe(Load(*observation)) <= 120


@given(st.integers(20, 400), st.integers(1, 400))
def test_it_settles_where_a_cache_of_any_size_is_used_but_not_over_full(fits: int, start: int) -> None:
    """A cache that `fits` so many rollouts, and a gate that always grants."""
    controller = ConcurrencyController(400, SETTINGS.model_copy(update={"start": start}))
    preempted = 0.0
    held: list[int] = []
    for _ in range(300):
        in_flight = controller.limit
        preempted += max(0, in_flight - fits)
        controller.observe(load(in_flight, min(1.0, in_flight / fits), preempted=preempted))
        held.append(in_flight)
    settled = held[100:]
    assert max(settled) <= fits + SETTINGS.increase
    assert min(settled) >= min(0.4 * fits, 400)
