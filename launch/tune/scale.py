"""Scale on paper: one recipe on more and more devices, and which part of the control plane becomes the limit.

The batch grows with the devices, as does the number of trajectories a second; the devices are split by the harmonic
rule. For each size:

    socket       busy share of the learner's socket thread: trajectories and heartbeats, one after the other
    buffer       busy share of the task buffer's process: draws of references and replays, new tasks, results
    broadcast    share of a step in which weights are published and all engines stand still

A queue with one server at the busy share u waits u / (1 - u) times its service, so above `BUSY` it counts as the limit;
above `PUBLISH` the publications do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launch.tune.calibration import Calibration, CalibrationError
from launch.tune.closed_form import estimate_closed, harmonic_split
from launch.tune.scenario import Scenario
from launch.tune.simulation import simulate
from learner.stream.wire import HEARTBEAT_S
from learner.trajectory import Role

BUSY = 0.7
PUBLISH = 0.2
SIMULATED = 64
"""Devices up to which a size is simulated. Beyond, the closed form has to do, times what the simulation took over it at
the largest simulated size."""
ADVICE = {
    "socket": "one thread takes every trajectory and heartbeat: send longer episodes in one message, or give each "
    "group of actors a process that receives and checks for them",
    "buffer": "one process answers every request of the task buffer: give each kind of task a buffer of its own",
    "broadcast": "engines stand still while weights are published: publish to groups of engines one after the other, "
    "every second version, or larger batches",
}


@dataclass(frozen=True)
class Size:
    """One number of devices."""

    devices: int
    actors: int
    training: int
    """Devices that train."""
    batch: int
    """Trajectories of a batch."""
    step_s: float
    simulated: bool
    trajectories_per_s: float
    tokens_per_s: float
    """Response tokens trained a second."""
    socket: float
    buffer: float
    broadcast: float

    @property
    def limit(self) -> str | None:
        """The part of the control plane that limits this size, if any."""
        shares = {"socket": self.socket / BUSY, "buffer": self.buffer / BUSY, "broadcast": self.broadcast / PUBLISH}
        worst = max(shares, key=lambda name: shares[name])
        return worst if shares[worst] >= 1 else None


def sizes(text: str) -> list[int]:
    """The numbers of devices of `8..1024`: from the first one on, doubled. Raises CalibrationError."""
    first, _, last = text.partition("..")
    try:
        low, high = int(first), int(last or first)
    except ValueError:
        raise CalibrationError(f"--scale {text}: give two numbers of devices, such as 8..1024") from None
    if not 2 <= low <= high <= 1 << 20:
        raise CalibrationError(f"--scale {text}: from 2 devices on, and the first number is not above the second")
    found = [low]
    while found[-1] * 2 <= high:
        found.append(found[-1] * 2)
    return found


def scale(scenario: Scenario, calibration: Calibration, devices: Sequence[int]) -> list[Size]:
    """The recipe at each number of devices. Raises CalibrationError for a calibration of a CPU."""
    if not scenario.on_gpu:
        raise CalibrationError(
            f"--scale needs a calibration of GPUs; {calibration.name!r} is of a CPU. One that ships: "
            "--calibration h100-7b"
        )
    found: list[Size] = []
    over_closed = 1.0
    for number in devices:
        size, over_closed = _size(scenario, calibration, number, over_closed)
        found.append(size)
    return found


def _size(scenario: Scenario, calibration: Calibration, devices: int, over_closed: float) -> tuple[Size, float]:
    """One size. `over_closed`: seconds a step of the simulation over those of the closed form, at the largest size that
    was simulated; returned with this size's, if it is simulated."""
    factor = devices / scenario.devices
    batch = scenario.batch.model_copy(
        update={
            role: {kind: max(1, round(number * factor)) for kind, number in quotas.items()}
            for role, quotas in (("propose", scenario.batch.propose), ("solve", scenario.batch.solve))
        }
    )
    grown = _split(scenario.with_changes(batch=batch), calibration, devices)
    simulated = devices <= SIMULATED
    closed = estimate_closed(grown, calibration)
    if simulated:
        found = simulate(grown, calibration, counted=4 * (grown.max_staleness + 1))
        step_s, tokens = found.step_s, found.trained_per_s
        over_closed = step_s / closed.step_s
    else:
        step_s = closed.step_s * over_closed
        tokens = closed.trained_per_step / step_s
    stream, weights = calibration.stream, calibration.weights
    rate = grown.quota / step_s
    publish_s = (
        weights.ready_s.value
        + weights.send_s.value
        + weights.actor_s.value * (grown.num_actors - 1)
        + weights.load_s.value
    )
    size = Size(
        devices=devices,
        actors=grown.num_actors,
        training=grown.training_devices,
        batch=grown.quota,
        step_s=step_s,
        simulated=simulated,
        trajectories_per_s=rate,
        tokens_per_s=tokens,
        socket=rate * stream.trajectory_s.value + grown.num_actors * stream.beat_s.value / HEARTBEAT_S,
        buffer=_requests(grown, calibration) / step_s * stream.buffer_s.value,
        broadcast=publish_s / step_s,
    )
    return size, over_closed


def _split(scenario: Scenario, calibration: Calibration, devices: int) -> Scenario:
    """The scenario on `devices`, split by the harmonic rule and in whole engines and replicas of the learner."""
    closed = estimate_closed(scenario, calibration)
    weights = calibration.weights
    fixed_s = weights.ready_s.value + weights.send_s.value + weights.load_s.value + calibration.learner.between_s.value
    split = harmonic_split(
        closed.generate_s * scenario.rollout_devices,
        max(0.0, closed.learn_s - fixed_s) * scenario.training_devices,
        devices,
    )
    replica = scenario.model_ranks
    replicas = max(1, min(round(split.training / replica), (devices - scenario.engine_threads) // replica))
    return scenario.with_changes(
        data_ranks=replicas, num_actors=max(1, (devices - replicas * replica) // scenario.engine_threads)
    )


def _requests(scenario: Scenario, calibration: Calibration) -> float:
    """Requests to the task buffer for one batch: a draw of references for each prompt; for a valid proposal its entry,
    its results and its reward; for an invalid one a replay and its results."""
    requests = 0.0
    for cell in scenario.batch.cells:
        if cell.role is not Role.PROPOSE or not (proposals := scenario.batch.quota(cell)):
            continue
        verdicts = [valid for group in calibration.workload[cell.name] for valid in group.valid]
        valid = sum(verdicts) / len(verdicts)
        requests += proposals / scenario.selfplay.proposals_per_prompt + proposals * (3 * valid + 2 * (1 - valid))
    return requests
