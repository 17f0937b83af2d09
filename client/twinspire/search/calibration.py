"""Probabilities of similarities: the logistic function of scale * similarity + bias, as in SigLIP's loss.

Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023. A model without a bias (CLIP) was trained to rank only:
its scale alone gives no probability of a match, so that a bias has to be given or fitted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from twinspire._arguments import is_finite, shown
from twinspire.errors import InputError

_STEPS = 100
_RIDGE = 1e-6  # keeps the scale finite where one threshold separates the two classes perfectly


@dataclass(frozen=True, slots=True)
class Calibration:
    """Turns a similarity (an inner product) into the probability that query and item match."""

    scale: float
    bias: float

    def __post_init__(self) -> None:
        if not (is_finite(self.scale) and self.scale > 0 and is_finite(self.bias)):
            raise InputError(
                f"a calibration: expected a scale above 0 and a bias, both finite, got {shown(self.scale)} and "
                f"{shown(self.bias)}"
            )

    @classmethod
    def of(cls, scale: float, bias: float | None) -> Calibration | None:
        """Return the calibration by a bundle's logit scale and bias; None without a bias."""
        return cls(scale, bias) if bias is not None else None

    @classmethod
    def fit(cls, scores: ArrayLike, relevant: ArrayLike) -> Calibration:
        """Fit to similarities (N,) and whether each is of a matching pair (N,), by logistic regression.

        Raises `InputError` where all pairs match or none does, or where the larger similarities do not match more.
        """
        try:
            x, y = np.asarray(scores, np.float64), np.asarray(relevant, np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(f"a calibration needs a list of numbers and one of booleans: {error}") from None
        if x.shape != y.shape or x.ndim != 1 or not np.isfinite(x).all() or set(np.unique(y)) != {0.0, 1.0}:
            raise InputError(
                "a calibration needs as many booleans as scores, some true, some false, and finite scores; got "
                f"{x.shape} scores, {y.shape} booleans"
            )
        centre, width = x.mean(), x.std() or 1.0
        columns = np.stack([(x - centre) / width, np.ones_like(x)], axis=1)  # (N, 2)
        weights = np.zeros(2)
        for _ in range(_STEPS):  # Newton's method
            p = 1 / (1 + np.exp(-np.clip(columns @ weights, -30, 30)))
            gradient = columns.T @ (p - y) + _RIDGE * len(x) * weights
            hessian = (columns * (p * (1 - p))[:, None]).T @ columns + _RIDGE * len(x) * np.eye(2)
            step = np.linalg.solve(hessian, gradient)
            weights = weights - step
            if np.abs(step).max() < 1e-10:
                break
        scale = float(weights[0] / width)
        if not scale > 0:
            raise InputError("these scores cannot be calibrated: larger ones are not more relevant")
        return cls(scale, float(weights[1] - scale * centre))

    def probability(self, score: float) -> float:
        """Return the probability, 0 to 1, of an inner product."""
        logit = self.scale * score + self.bias
        return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))
