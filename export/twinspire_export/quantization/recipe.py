"""Int8 recipes: all that decides how an fp32 graph becomes an int8 one, as a value with a digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum

from twinspire._arguments import as_finite, as_member
from twinspire.errors import InputError
from twinspire_export.quantization.node_roles import NodeRole


class QuantizationTarget(StrEnum):
    """The runtimes that an int8 graph is made for.

    Runtimes on processors accept uint8 activations of any zero point. TensorRT accepts only int8 with zero point 0, for
    weights and activations: https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html
    """

    CPU = "cpu"
    TENSORRT = "tensorrt"


class Ranges(StrEnum):
    """Whether the ranges of activations are symmetric around 0. Those of weights always are."""

    SYMMETRIC = "symmetric"
    ASYMMETRIC = "asymmetric"


class RangeEstimator(StrEnum):
    """How the range of an activation is estimated from the samples; NNCF's sets of that name.

    `minmax`: minimum and maximum of all samples; `mean_minmax`, `median_minmax`, `mean_no_outliers_minmax`: those of
    each sample, averaged; `mean_quantile`: quantiles 0.0001 and 0.9999 of each sample, averaged; `histogram`: the range
    with the smallest squared quantization error.
    """

    MINMAX = "minmax"
    MEAN_MINMAX = "mean_minmax"
    MEDIAN_MINMAX = "median_minmax"
    MEAN_NO_OUTLIERS_MINMAX = "mean_no_outliers_minmax"
    MEAN_QUANTILE = "mean_quantile"
    HISTOGRAM = "histogram"


class BiasCorrection(StrEnum):
    """Whether biases compensate the mean quantization error; measured layer by layer (fast) or in the graph."""

    NONE = "none"
    FAST = "fast"
    ACCURATE = "accurate"


@dataclass(frozen=True, kw_only=True)
class Int8Recipe:
    """How a graph is quantized to int8.

    `smooth_alpha` is SmoothQuant's share of the activations' range that moves into the weights (0 to 1,
    https://arxiv.org/abs/2211.10438), None for no smoothing; post-norm blocks (BERT) are never smoothed. `keep_float`
    names what stays in float32: labels of `RoleInBlock` (`mlp-down`, `mlp-down:11`), or nodes. `per_channel` gives each
    output channel of a weight a scale of its own. `outlier_factor` computes channels whose largest value is above so
    many times the usual one in float beside the int8 multiplication of the others (`outlier_channels`); None for none.

    Raises InputError where a value is out of range or impossible for the target.
    """

    smooth_alpha: float | None = 0.5
    ranges: Ranges = Ranges.SYMMETRIC
    estimator: RangeEstimator = RangeEstimator.MINMAX
    bias_correction: BiasCorrection = BiasCorrection.FAST
    per_channel: bool = True
    keep_float: tuple[str, ...] = ()
    outlier_factor: float | None = None
    target: QuantizationTarget = QuantizationTarget.CPU

    def __post_init__(self) -> None:
        if self.smooth_alpha is not None and not 0 <= self.smooth_alpha <= 1:
            raise InputError(f"smooth_alpha {self.smooth_alpha}: expected a number from 0 to 1, or None")
        if self.outlier_factor is not None:
            as_finite(self.outlier_factor, "outlier_factor", minimum=1)
        for name, members in _ENUMS.items():
            object.__setattr__(self, name, as_member(getattr(self, name), members, name))
        if isinstance(self.keep_float, str) or not all(isinstance(label, str) and label for label in self.keep_float):
            raise InputError(f"keep_float {self.keep_float!r}: expected a list of labels or names of nodes")
        # Sorted, so that the digest does not depend on the order.
        object.__setattr__(self, "keep_float", tuple(sorted({str(label) for label in self.keep_float})))
        if self.target is QuantizationTarget.TENSORRT and self.ranges is not Ranges.SYMMETRIC:
            raise InputError("ranges asymmetric: TensorRT accepts no zero points but 0. Use symmetric ranges")

    def digest(self) -> str:
        """Return 64 hexadecimal digits, equal for equal recipes."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


_ENUMS: Mapping[str, type[StrEnum]] = {
    "ranges": Ranges,
    "estimator": RangeEstimator,
    "bias_correction": BiasCorrection,
    "target": QuantizationTarget,
}

DEFAULT_RECIPE = Int8Recipe(keep_float=(NodeRole.ATTENTION_SCORES, NodeRole.PROJECTION))
"""Keeps the smallest matrix multiplications in float32. Ranges from minimum to maximum cut nothing off, so they
also hold for images unlike those calibrated on. Where it is not accurate enough, `quantize` splits outlier channels off
and keeps layers in float (`quantization.float_fallback`). `twinspire precision` compares it with other recipes."""
