"""What `auto` stands for in a bundle whose engines were measured: the engine and the runtime that won."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import datetime

from twinspire._arguments import as_list, as_member
from twinspire.bundle.settings import Precision
from twinspire.errors import InputError

_WORD = re.compile(r"[a-z][a-z0-9]{0,31}")


@dataclass(frozen=True, kw_only=True)
class RecommendedRuntime:
    """The fastest engine that keeps recall, the runtime in which it was so, and what it was measured on.

    `provider` and `inference_precision` are words of `twinspire.towers` (`cpu`, `openvino`; `f32`, `bf16`), `streams`
    is into how many parts a call is cut. `speed` is how many times as fast as the fp32 engines on the CPU provider in
    one stream: the geometric mean of images a second and texts a second, both with `threads` threads on `cpu_model`.
    `instruction_sets` are those of that processor which matrix products are computed with, `gpu` is None without one.

    `recall_drop` is what is lost of fp32's R@1 over `data`, pooled over languages and directions: 0.005 is half a
    point, below 0 it is a gain. `recall_drop_high` is the upper end of its 95% interval. At most `max_recall_drop` was
    allowed; the engines of the precisions in `rejected` lost more in every runtime, and `auto` takes them nowhere.
    `measured` is when, in ISO 8601.

    Raises InputError where a value is out of range.
    """

    precision: Precision
    provider: str
    inference_precision: str
    streams: int
    threads: int
    speed: float
    cpu_model: str
    instruction_sets: tuple[str, ...]
    gpu: str | None
    data: str
    max_recall_drop: float
    recall_drop: float
    recall_drop_high: float
    rejected: tuple[Precision, ...]
    measured: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "precision", as_member(self.precision, Precision, "precision"))
        rejected = tuple(as_member(each, Precision, "rejected") for each in as_list(self.rejected, "precisions"))
        object.__setattr__(self, "rejected", rejected)
        for name in ("provider", "inference_precision"):
            if not _WORD.fullmatch(getattr(self, name)):
                raise InputError(f"{name} {getattr(self, name)!r}: expected a word such as 'cpu' or 'f32'")
        if not 1 <= self.streams <= self.threads:
            raise InputError(f"streams {self.streams} of {self.threads} threads: expected 1 to as many as threads")
        if not (math.isfinite(self.speed) and self.speed > 0):
            raise InputError(f"speed {self.speed}: expected a positive number")
        for name in ("recall_drop", "recall_drop_high"):
            if not -1 <= getattr(self, name) <= 1:
                raise InputError(f"{name} {getattr(self, name)}: expected a number from -1 to 1")
        if not 0 <= self.max_recall_drop <= 1:
            raise InputError(f"max_recall_drop {self.max_recall_drop}: expected a number from 0 to 1")
        if self.precision in self.rejected or Precision.FP32 in self.rejected:
            raise InputError(
                f"rejected {', '.join(self.rejected)}: expected neither {self.precision} nor fp32 among it"
            )
        try:
            datetime.fromisoformat(self.measured)
        except ValueError:
            raise InputError(f"measured {self.measured!r}: expected a date and time in ISO 8601") from None

    def __str__(self) -> str:
        computed = "" if self.inference_precision == "f32" else f" in {self.inference_precision}"
        return f"{self.precision} on {self.provider}{computed}, streams: {self.streams}"
