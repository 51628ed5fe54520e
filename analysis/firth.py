"""Logistic regression with Firth's penalty: finite estimates and intervals also where a threshold separates the data.

The penalised log-likelihood is l(β) + ½ log det I(β), I the Fisher information (D. Firth, "Bias reduction of maximum
likelihood estimates", Biometrika 80, 1993); the intervals are those of its profile (G. Heinze and M. Schemper, "A
solution to the problem of separation in logistic regression", Statistics in Medicine 21, 2002).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from analysis.contrasts import Estimate
from analysis.scales import FloatArray

_MOST_STEPS = 200
_FARTHEST = 5.0  # no step changes a logit by more
_CONVERGED = 1e-10  # largest change of a logit by the last step
_IMPOSSIBLE = 1e6  # stands for an infinite deviance


@dataclass(frozen=True)
class Counts:
    """How often something happened, by row of a design.

    Attributes:
        design: of full column rank, shape (rows, k).
        events: shape (rows,).
        trials: shape (rows,).
    """

    design: FloatArray
    events: FloatArray
    trials: FloatArray

    def value(self, beta: FloatArray) -> float:
        """The penalised log-likelihood l(β) + ½ log det I(β)."""
        logit = self.design @ beta
        likelihood = self.events @ special.log_expit(logit) + (self.trials - self.events) @ special.log_expit(-logit)
        sign, size = np.linalg.slogdet(self._root(beta).T @ self._root(beta))
        return float(likelihood + size / 2) if sign > 0 else -math.inf

    def covariance(self, beta: FloatArray) -> FloatArray:
        """Inverse of the Fisher information, shape (k, k)."""
        root = self._root(beta)
        return np.asarray(np.linalg.inv(root.T @ root))

    def maximise(self, beta: FloatArray, free: FloatArray) -> FloatArray:
        """Where the penalised likelihood is largest among β + free @ anything.

        Fisher scoring along the modified score X'(events - trials p + h (½ - p)), h the leverages; steps are halved
        until the penalised likelihood rises.

        Args:
            beta: where to start, shape (k,).
            free: directions, shape (k, any number).

        Raises:
            ArithmeticError: when it does not converge.
        """
        for _ in range(_MOST_STEPS):
            step = self._rising(beta, self._step(beta, free))
            beta = beta + step
            if np.abs(self.design @ step).max() < _CONVERGED:
                return beta
        raise ArithmeticError("Firth's logistic regression has not converged")

    def _step(self, beta: FloatArray, free: FloatArray) -> FloatArray:
        p, root = special.expit(self.design @ beta), self._root(beta)
        leverage = (np.linalg.qr(root)[0] ** 2).sum(axis=1)
        score = self.design.T @ (self.events - self.trials * p + leverage * (0.5 - p))
        step = free @ np.linalg.lstsq(free.T @ root.T @ root @ free, free.T @ score, rcond=None)[0]
        return np.asarray(step / max(1.0, np.abs(self.design @ step).max() / _FARTHEST))

    def _rising(self, beta: FloatArray, step: FloatArray) -> FloatArray:
        """The step, halved until it does not lead down; no step where none leads up."""
        now = self.value(beta)
        halves = (step / 2**k for k in range(30))
        return next((part for part in halves if self.value(beta + part) >= now), np.zeros_like(step))

    def _root(self, beta: FloatArray) -> FloatArray:
        """Its product with itself is the Fisher information, shape (rows, k)."""
        logit = self.design @ beta
        weight = self.trials * special.expit(logit) * special.expit(-logit)
        return np.asarray(np.sqrt(weight)[:, None] * self.design)


@dataclass(frozen=True)
class Fit:
    """Estimates, and profile intervals of linear functions of β and of quotients of such.

    Attributes:
        counts: the data.
        beta: the estimate, shape (k,).
        confidence: of the intervals.
    """

    counts: Counts
    beta: FloatArray
    confidence: float = 0.95

    @classmethod
    def of(cls, counts: Counts, confidence: float = 0.95) -> Fit:
        """Fits; the estimate is finite whenever the design has full rank."""
        k = counts.design.shape[1]
        return cls(counts, counts.maximise(np.zeros(k), np.eye(k)), confidence)

    def coefficient(self, k: int) -> Estimate:
        """β_k with its profile interval."""
        c = np.eye(len(self.beta))[k]
        return self._interval(float(self.beta[k]), self._se(c), lambda value: self.deviance(c, value))

    def root(self, at: FloatArray, along: FloatArray) -> Estimate:
        """The θ with (at + θ along)'β = 0, and the set of all θ that the data do not reject.

        Where along'β cannot be told from 0, θ is NaN and the set holds all numbers.
        """
        if self.deviance(along, 0.0) <= self._limit:
            return Estimate(math.nan, -math.inf, math.inf)
        slope = float(along @ self.beta)
        theta = -float(at @ self.beta) / slope
        se = self._se(at + theta * along) / abs(slope)
        return self._interval(theta, se, lambda value: self.deviance(at + value * along, 0.0))

    def deviance(self, c: FloatArray, value: float) -> float:
        """Twice what the penalised log-likelihood loses when c'β must be ``value``: about χ² with 1 df if it is."""
        lean = self.counts.covariance(self.beta) @ c
        start = self.beta - lean * (c @ self.beta - value) / (c @ lean)
        highest = self.counts.value(self.beta)
        if self.counts.value(start) < highest - _IMPOSSIBLE:
            return _IMPOSSIBLE
        free = np.linalg.svd(c[None])[2][1:].T
        return min(2 * (highest - self.counts.value(self.counts.maximise(start, free))), _IMPOSSIBLE)

    @property
    def _limit(self) -> float:
        return float(special.chdtri(1, 1 - self.confidence))

    def _se(self, c: FloatArray) -> float:
        return math.sqrt(c @ self.counts.covariance(self.beta) @ c)

    def _interval(self, value: float, se: float, deviance: Callable[[float], float]) -> Estimate:
        def end(step: float) -> float:
            while deviance(value + step) <= self._limit:
                step *= 2
                if not math.isfinite(value + step):
                    return step
            return float(optimize.brentq(lambda x: deviance(x) - self._limit, value, value + step, xtol=1e-6 * se))

        return Estimate(value, end(-2 * se), end(2 * se))
