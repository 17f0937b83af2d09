"""A recipe: everything that decides how an fp32 graph becomes an int8 one, as a value that can be named and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from twinspire.errors import InputError


class Variant(StrEnum):
    """For whom an int8 graph is made.

    The processors' runtimes take activations as uint8 of any zero point. TensorRT takes int8 with zero point 0 alone,
    for weights and activations: https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html
    """

    CPU = "cpu"
    TENSORRT = "tensorrt"


class Ranges(StrEnum):
    """Whether the ranges of activations lie symmetrically around 0. Those of weights always do."""

    SYMMETRIC = "symmetric"
    ASYMMETRIC = "asymmetric"


class RangeEstimator(StrEnum):
    """How the range of an activation is found in what the samples show; NNCF's sets of that name.

    `minmax`: the least and the greatest value of all; `mean_minmax`, `median_minmax`, `mean_no_outliers_minmax`: those
    of each sample, averaged; `mean_quantile`: quantiles 0.0001 and 0.9999 of each sample, averaged; `histogram`: the
    range with the least squared error of quantization.
    """

    MINMAX = "minmax"
    MEAN_MINMAX = "mean_minmax"
    MEDIAN_MINMAX = "median_minmax"
    MEAN_NO_OUTLIERS_MINMAX = "mean_no_outliers_minmax"
    MEAN_QUANTILE = "mean_quantile"
    HISTOGRAM = "histogram"


class BiasCorrection(StrEnum):
    """Whether biases make up for the mean error of quantization; measured layer by layer (fast) or in the graph."""

    NONE = "none"
    FAST = "fast"
    ACCURATE = "accurate"


@dataclass(frozen=True, kw_only=True)
class Int8Recipe:
    """How a graph is quantized to int8.

    `smooth_alpha` is SmoothQuant's share of the activations' range that moves into the weights (0 to 1,
    https://arxiv.org/abs/2211.10438), None where nothing is moved. `left_out` names what stays in float32: labels of
    `parts.Part` (`mlp-down`, `mlp-down:11`), or nodes. `per_channel` gives each output channel of a weight a scale of
    its own.

    Raises InputError where a value is out of range or does not go with the variant.
    """

    smooth_alpha: float | None = 0.5
    ranges: Ranges = Ranges.SYMMETRIC
    estimator: RangeEstimator = RangeEstimator.MINMAX
    bias_correction: BiasCorrection = BiasCorrection.FAST
    per_channel: bool = True
    left_out: tuple[str, ...] = ()
    variant: Variant = Variant.CPU

    def __post_init__(self) -> None:
        if self.smooth_alpha is not None and not 0 <= self.smooth_alpha <= 1:
            raise InputError(f"smooth_alpha {self.smooth_alpha}: expected a number from 0 to 1, or None")
        for name, kind in _ENUMS.items():
            if getattr(self, name) not in tuple(kind):
                raise InputError(f"{name} {getattr(self, name)!r}: expected one of {', '.join(kind)}")
            object.__setattr__(self, name, kind(getattr(self, name)))
        if isinstance(self.left_out, str) or not all(isinstance(label, str) and label for label in self.left_out):
            raise InputError(f"left_out {self.left_out!r}: expected labels or names of nodes")
        # Equal recipes are to have equal digests, whatever the order in which their parts were found.
        object.__setattr__(self, "left_out", tuple(sorted({str(label) for label in self.left_out})))
        if self.variant is Variant.TENSORRT and self.ranges is not Ranges.SYMMETRIC:
            raise InputError("TensorRT refuses the zero points of asymmetric ranges: take symmetric ones")

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON data; the inverse of `from_json`."""
        return {**asdict(self), "left_out": list(self.left_out)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Int8Recipe:
        """Make a recipe of JSON data, whose every field must be there. Raises InputError where it is no recipe."""
        names = {field.name for field in fields(cls)}
        if not isinstance(document, Mapping) or document.keys() != names:
            raise InputError(f"a recipe has the fields {', '.join(sorted(names))}; this one has {document!r:.200}")
        try:
            return cls(**{**document, "left_out": tuple(document["left_out"])})
        except TypeError as error:
            raise InputError(f"{document!r:.200} is no recipe: {error}") from error

    def digest(self) -> str:
        """Name the recipe: 64 hexadecimal digits, equal for equal recipes."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def __str__(self) -> str:
        smooth = "no smoothing" if self.smooth_alpha is None else f"alpha {self.smooth_alpha:g}"
        parts = [smooth, self.ranges, self.estimator, f"bias correction {self.bias_correction}"]
        if not self.per_channel:
            parts.append("weights per tensor")
        if self.left_out:
            parts.append(f"without {', '.join(self.left_out)}")
        return ", ".join(parts) + ("" if self.variant is Variant.CPU else f" ({self.variant})")


_ENUMS: Mapping[str, type[StrEnum]] = {
    "ranges": Ranges,
    "estimator": RangeEstimator,
    "bias_correction": BiasCorrection,
    "variant": Variant,
}
