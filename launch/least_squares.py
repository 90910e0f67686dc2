"""Least squares with standard errors: lines with coefficients that are not negative, and positive parameters of a model
that can only be evaluated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

ROUNDS = 30
"""Most rounds of `fit_positive`, and rounds of `fit_line_robustly`."""
CONVERGED = 1e-4
"""Relative change of the parameters at which it ends."""


@dataclass(frozen=True)
class Fit:
    """Fitted parameters and their standard errors."""

    values: tuple[float, ...]
    errors: tuple[float, ...]
    residual: float
    """Root of the mean squared residual."""


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error; of one value, that error is unknown and half of the value is given."""
    array = np.asarray(values, dtype=float)
    if len(array) == 1:
        return float(array[0]), abs(float(array[0])) / 2
    return float(array.mean()), float(array.std(ddof=1) / np.sqrt(len(array)))


def fit_line(columns: Sequence[Sequence[float]], values: Sequence[float]) -> Fit:
    """Coefficients c >= 0 with `values` = sum of c x `columns`. A coefficient that would be negative is 0 (active set:
    the most negative one leaves first), with an error as if it had stayed."""
    matrix, target = np.asarray(columns, dtype=float).T, np.asarray(values, dtype=float)
    active = list(range(matrix.shape[1]))
    while True:
        found = np.linalg.lstsq(matrix[:, active], target, rcond=None)[0]
        if len(active) == 1 or found.min() >= 0:
            break
        active.pop(int(found.argmin()))
    coefficients = np.zeros(matrix.shape[1])
    coefficients[active] = np.maximum(found, 0.0)
    rest = target - matrix @ coefficients
    freedom = max(1, len(target) - len(active))
    variance = float(rest @ rest) / freedom
    covariance = np.linalg.pinv(matrix.T @ matrix) * variance
    errors = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    return Fit(tuple(coefficients.tolist()), tuple(errors.tolist()), float(np.sqrt(np.mean(rest**2))))


def fit_line_robustly(columns: Sequence[Sequence[float]], values: Sequence[float]) -> Fit:
    """`fit_line` where a few of `values` are far off, as steps are during which something else ran on the machine.

    Huber's estimator by reweighted least squares: residuals beyond their scale (1.48 x the median of their absolute
    values) count by their size, not by its square.
    """
    matrix, target = np.asarray(columns, dtype=float), np.asarray(values, dtype=float)
    weights = np.ones(len(target))
    for _ in range(ROUNDS):
        found = fit_line((matrix * weights).tolist(), (target * weights).tolist())
        off = np.abs(target - np.asarray(found.values) @ matrix)
        scale = max(1.48 * float(np.median(off)), 1e-12)
        weights = np.sqrt(np.minimum(1.0, scale / np.maximum(off, 1e-12)))
    return found


def fit_positive(model: Callable[[Sequence[float]], np.ndarray], start: Sequence[float]) -> Fit:
    """Positive parameters that make `model(parameters)`, an array of residuals, small in the sense of least squares.

    Levenberg's and Marquardt's method on the logarithms of the parameters, with differences for derivatives.
    """
    logs = np.log(np.asarray(start, dtype=float))
    damping = 1e-2
    residuals = model(np.exp(logs))
    jacobian = _jacobian(model, logs, residuals)
    for _ in range(ROUNDS):
        normal = jacobian.T @ jacobian
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-9), -jacobian.T @ residuals)
        step = np.clip(step, -1.0, 1.0)  # no parameter changes by more than a factor e in one round
        trial = model(np.exp(logs + step))
        if trial @ trial < residuals @ residuals:
            logs, residuals, damping = logs + step, trial, damping / 3
            if np.abs(step).max() < CONVERGED:
                break
            jacobian = _jacobian(model, logs, residuals)
        else:
            damping *= 4
            if damping > 1e6:
                break
    values = np.exp(logs)
    freedom = max(1, len(residuals) - len(values))
    covariance = np.linalg.pinv(jacobian.T @ jacobian) * float(residuals @ residuals) / freedom
    relative = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    return Fit(tuple(values.tolist()), tuple((values * relative).tolist()), float(np.sqrt(np.mean(residuals**2))))


def _jacobian(model: Callable[[Sequence[float]], np.ndarray], logs: np.ndarray, residuals: np.ndarray) -> np.ndarray:
    """Derivatives by the logarithms of the parameters. A wide difference: the model counts whole engine steps, so it
    is not smooth."""
    width = 0.02
    columns = []
    for index in range(len(logs)):
        moved = logs.copy()
        moved[index] += width
        columns.append((model(np.exp(moved)) - residuals) / width)
    return np.stack(columns, axis=1)
