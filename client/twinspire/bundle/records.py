"""Records of files and engines in bundle.json: fingerprints, certificates, the runtime measured to be best."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from twinspire._arguments import as_finite, as_list, as_member, as_whole
from twinspire._codec import OPTIONAL
from twinspire._decode_mode import DecodeMode
from twinspire.bundle.settings import Precision
from twinspire.errors import InputError

# Plain names only: a manifest must not reach outside its folder, and Triton names models after bundles.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_WORD = re.compile(r"[a-z][a-z0-9]{0,31}")
_COSINE_SLACK = 1e-4  # a float32 cosine of equal vectors may come out a little above 1


def check_plain_name(name: str, what: str) -> None:
    """Raise InputError unless `name` is letters, digits, dots, dashes and underscores, without a path."""
    if not _PLAIN_NAME.fullmatch(name):
        raise InputError(
            f"{what} {name!r}: expected a plain name of letters, digits, '.', '-' and '_' "
            "that starts with a letter or digit"
        )


def check_sha256(value: str, what: str) -> None:
    """Raise InputError unless `value` is a sha256 in lower-case hexadecimal digits."""
    if not _SHA256.fullmatch(value):
        raise InputError(f"{what} {value!r}: expected 64 lower-case hexadecimal digits")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the weights came from: a hub id or folder name, its revision and its licence where known."""

    checkpoint: str
    revision: str | None = None
    licence: str | None = None


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """The accuracy of an engine, measured when it was made.

    `reference` is what it was compared with ("torch fp32" or "fp32 engine"), `data` and `samples` are the inputs.
    The cosines are between the engine's embeddings and the reference's, in [-1, 1]. `recall` holds both
    directions, None where it was not evaluated. `speed` holds the items/s in each runtime, None where nobody measured
    (`twinspire precision` does). `versions` are those of the packages that took part. `split_layers` are the layers of
    an int8 engine that compute outlier channels in float, `float_layers` those that stayed in float altogether beyond
    what its recipe names: labels such as `mlp-down:3`; None where the recipe alone sufficed. `merged_tokens` is the
    number of an image's tokens that each block merges, None for engines that merge none.
    """

    reference: str
    data: str
    samples: int
    min_cosine: float
    mean_cosine: float
    recall: Mapping[str, Any] | None
    versions: Mapping[str, str]
    speed: Mapping[str, Any] | None = field(default=None, metadata=OPTIONAL)
    split_layers: tuple[str, ...] | None = field(default=None, metadata=OPTIONAL)
    float_layers: tuple[str, ...] | None = field(default=None, metadata=OPTIONAL)
    merged_tokens: int | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        as_whole(self.samples, "samples", minimum=1)
        if self.merged_tokens is not None:
            as_whole(self.merged_tokens, "merged_tokens", minimum=1)
        for cosine in (self.min_cosine, self.mean_cosine):
            if not -1 - _COSINE_SLACK <= cosine <= 1 + _COSINE_SLACK:
                raise InputError(f"cosine {cosine}: expected a number from -1 to 1")
        if self.min_cosine > self.mean_cosine + _COSINE_SLACK:
            raise InputError(f"min_cosine {self.min_cosine} is above mean_cosine {self.mean_cosine}")


@dataclass(frozen=True, kw_only=True)
class DecodeCertificate:
    """What scaled decoding changes, measured on the images of `data` in the runtime that `auto` is.

    `reduced` of the `images` were large enough and came out different: of those are the mean and largest difference of
    a pixel of the image tower's input, from 0 to 255, and the cosines between both embeddings. `recall_drop` is the
    loss of R@1 against fp32 and exact decoding over all of `data`, as of `RecommendedRuntime`, `decode_drop` the
    part of it that decoding has: the loss against the same engines with exact decoding. `speed` is how many times
    as many files a second are decoded and resized. `versions` are those of the packages that decoded.

    Raises InputError where a value is out of range.
    """

    data: str
    images: int
    reduced: int
    mean_difference: float
    max_difference: int
    min_cosine: float
    mean_cosine: float
    recall_drop: float
    recall_drop_high: float
    decode_drop: float
    decode_drop_high: float
    speed: float
    versions: Mapping[str, str]

    def __post_init__(self) -> None:
        as_whole(self.images, "images", minimum=1)
        as_whole(self.reduced, "reduced", minimum=1, maximum=self.images)
        as_whole(self.max_difference, "max_difference", minimum=0, maximum=255)
        as_finite(self.mean_difference, "mean_difference", minimum=0, maximum=255)
        for name in ("min_cosine", "mean_cosine"):
            as_finite(getattr(self, name), name, minimum=-1 - _COSINE_SLACK, maximum=1 + _COSINE_SLACK)
        for name in ("recall_drop", "recall_drop_high", "decode_drop", "decode_drop_high"):
            as_finite(getattr(self, name), name, minimum=-1, maximum=1)
        as_finite(self.speed, "speed", minimum=0)


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """The fingerprint of one file of the bundle."""

    sha256: str
    size_bytes: int

    def __post_init__(self) -> None:
        check_sha256(self.sha256, "sha256")
        as_whole(self.size_bytes, "size_bytes", minimum=0)


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """One tower's engine at one precision: its file, the file's fingerprint and its certificate."""

    file: str
    sha256: str
    size_bytes: int
    certificate: Certificate | None

    def __post_init__(self) -> None:
        check_plain_name(self.file, "engine file")
        check_sha256(self.sha256, "sha256")
        as_whole(self.size_bytes, "size_bytes", minimum=0)


@dataclass(frozen=True, kw_only=True)
class RecommendedRuntime:
    """The fastest engines that keep recall, in the runtime in which they were fastest, and the measurement behind it.

    `provider` and `inference_precision` are names of `twinspire.towers` (`cpu`, `openvino`; `f32`, `bf16`), `streams`
    is the number of parts that a call is split into. `speed` is the factor over the fp32 engines on the CPU provider in
    one stream: the geometric mean over images/s and texts/s, both with `threads` threads on `cpu_model`.
    `instruction_sets` are those of that processor that speed up matrix multiplications; `gpu` is None without one.

    `recall_drop` is the loss against fp32's R@1 over `data`, pooled over languages and directions: 0.005 is half a
    point, a gain is negative. `recall_drop_high` is the upper end of its 95% interval. At most `max_recall_drop`
    was allowed; the engines of the precisions in `rejected` lost more in every runtime, and `auto` never chooses
    them. `measured` is the time of the measurement in ISO 8601. `decode` is how images are decoded with
    `decode="auto"`: None, where nobody measured, is exactly. `scaled_decoding` is what was measured of scaled
    decoding.

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
    decode: DecodeMode | None = field(default=None, metadata=OPTIONAL)
    scaled_decoding: DecodeCertificate | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        object.__setattr__(self, "precision", as_member(self.precision, Precision, "precision"))
        if self.decode is not None:
            object.__setattr__(self, "decode", as_member(self.decode, DecodeMode, "decode"))
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
            as_finite(getattr(self, name), name, minimum=-1, maximum=1)
        as_finite(self.max_recall_drop, "max_recall_drop", minimum=0, maximum=1)
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
