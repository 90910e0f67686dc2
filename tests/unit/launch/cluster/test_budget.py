from launch.cluster.budget import FailureBudget


def test_each_start_waits_longer_until_the_budget_is_spent() -> None:
    budget = FailureBudget(3, window_s=100)
    assert [budget.failed(now) for now in (0, 1, 2, 3)] == [2, 4, 8, None]
    assert budget.total == 4


def test_old_failures_are_forgiven() -> None:
    budget = FailureBudget(2, window_s=100)
    assert [budget.failed(now) for now in (0, 60, 120, 180, 240)] == [2, 4, 4, 4, 4]
    assert budget.failed(245) is None


def test_the_wait_has_a_bound_and_no_budget_means_none() -> None:
    assert FailureBudget(20, 1e9, longest_s=5).failed(0) == 2
    budget = FailureBudget(20, 1e9, longest_s=5)
    assert [budget.failed(0) for _ in range(4)] == [2, 4, 5, 5]
    assert FailureBudget(0, 10).failed(0) is None
