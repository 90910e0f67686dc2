import pytest

from launch.tune.advice import Limit, Waits
from launch.tune.live import Live


def live(learner, actors, staleness, learn_s=10.0, generate_s=5.0, num_actors=4.0, cores_s=None):
    waits = Waits(learner, actors, staleness)
    return Live(waits, learn_s, generate_s, max(learn_s, generate_s), 0.9, 8, num_actors, cores_s)


@pytest.mark.parametrize(
    ("learner", "actors", "limit"),
    [
        (0.0, 0.4, Limit.TRAINER),
        (0.4, 0.0, Limit.ROLLOUT),
        (0.3, 0.3, Limit.UNEVEN),
        (0.01, 0.02, Limit.BALANCED),
    ],
)
def test_the_side_that_is_waited_for_is_the_limit(learner, actors, limit):
    assert Waits(learner, actors, 1).limit is limit


def test_a_synchronous_run_is_told_what_asynchrony_would_bring():
    text = " ".join(live(0.3, 0.6, 0).sentences)
    assert "about 10 s (+50% steps an hour)" in text and "is worth one version of age" in text


def test_what_shared_cores_have_to_do_bounds_what_asynchrony_would_bring():
    assert "about 12 s (+25% steps an hour): that" in " ".join(live(0.3, 0.6, 0, cores_s=12.0).sentences)
    assert "+50% steps an hour): that" in " ".join(live(0.3, 0.6, 0, cores_s=0.0).sentences)


def test_a_trainer_bound_run_with_old_data_is_told_to_lower_the_bound_and_the_actors():
    text = " ".join(live(0.0, 0.6, 4).sentences)
    assert "max_staleness = 3 would be as fast" in text
    assert "4 actors do the work of 1.6: `azr scale RUN --actors 2`" in text


def test_a_rollout_bound_run_is_told_how_many_actors_the_learner_could_use():
    assert "As fast as the learner would be 8.0 actors" in " ".join(
        live(0.5, 0.0, 1, learn_s=5.0, generate_s=10.0).sentences
    )
