import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st

from launch.tune.machine import Machine, Role


def ends(cores, jobs, interference=None):
    """End of each job; `jobs`: (begins at, role, seconds, threads)."""
    env = simpy.Environment()
    machine = Machine(env, {"all": cores}, interference or {})
    found = [0.0] * len(jobs)

    def run(index, begins, role, seconds, threads):
        yield env.timeout(begins)
        yield machine.run("all", role, seconds, threads)
        found[index] = env.now

    for index, job in enumerate(jobs):
        env.process(run(index, *job))
    env.run()
    return found


def test_jobs_on_cores_of_their_own_run_at_full_speed():
    assert ends(2, [(0, Role.ENGINE, 3.0, 1), (0, Role.LEARNER, 5.0, 1)]) == pytest.approx([3.0, 5.0])


def test_threads_beyond_the_cores_share_them():
    # Both at half speed until 2 s, when one second of each is done; the second job begins at 0 as well.
    assert ends(1, [(0, Role.ENGINE, 1.0, 1), (0, Role.ENGINE, 3.0, 1)]) == pytest.approx([2.0, 4.0])


def test_a_job_that_comes_later_slows_down_what_runs():
    # Alone until 1 s, then 1 s of work is left, at two thirds of the speed.
    first, second = ends(2, [(0, Role.ENGINE, 2.0, 1), (1, Role.LEARNER, 10.0, 2)])
    assert first == pytest.approx(2.5)
    assert second == pytest.approx(1 + 1.5 + 9.0)


def test_interference_is_a_factor_on_time_while_the_other_runs():
    found = ends(2, [(0, Role.ENGINE, 2.0, 1), (0, Role.LEARNER, 1.0, 1)], {(Role.ENGINE, Role.LEARNER): 2.0})
    assert found == pytest.approx([2.5, 1.0])


@given(
    st.lists(
        st.tuples(st.floats(0, 10), st.sampled_from(Role), st.floats(0.1, 5), st.integers(1, 4)),
        min_size=1,
        max_size=8,
    ),
    st.integers(1, 4),
)
def test_no_more_is_computed_than_the_cores_can_and_none_is_lost(jobs, cores):
    found = ends(cores, jobs)
    assert all(end >= begins + seconds - 1e-6 for end, (begins, _, seconds, _) in zip(found, jobs, strict=True))
    work = sum(seconds * min(threads, cores) for _, _, seconds, threads in jobs)
    busy_until, waited = 0.0, 0.0
    for begins, end in sorted((job[0], end) for job, end in zip(jobs, found, strict=True)):
        waited += max(0.0, begins - busy_until)
        busy_until = max(busy_until, end)
    assert work <= cores * (busy_until - waited) + 1e-6
