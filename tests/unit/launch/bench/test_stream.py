"""`azr bench stream` over real sockets and processes, for a moment; without Ray."""

import pytest

from launch.bench import stream


@pytest.mark.slow
def test_the_stream_is_measured_beside_bare_sockets_and_a_queue() -> None:
    options = stream.Options(runs=1, seconds=0.05, tokens=(200, 8000), peers=("multiprocessing",))
    report = stream.run(options).to_json()
    rows = {row["path"]: row for row in report["rows"]}
    assert len(rows) == 6
    for row in rows.values():
        assert row["rate"] > 0
        assert 0 < row["p50_ms"] < 5000
    assert report["ratios"]["bytes_over_raw_zmq_8k"]["median"] > 0
    assert "rate_over_ray_queue_200" not in report["ratios"]
    assert "Ray queue" in report["notes"]["rate_over_ray_queue_200"]
