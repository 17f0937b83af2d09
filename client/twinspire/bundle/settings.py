"""What a model asks of its inputs: how images are cut to size and how texts become tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from twinspire._arguments import as_member
from twinspire.errors import InputError


class Tower(StrEnum):
    """One half of a two-tower model."""

    IMAGE = "image"
    TEXT = "text"


class Precision(StrEnum):
    """The arithmetic of an engine.

    `int8` is for processors; `int8-tensorrt` is what TensorRT accepts: int8 with zero points 0, the rest in fp16.
    """

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    INT8_TENSORRT = "int8-tensorrt"


class Padding(StrEnum):
    """Whether the padding may be left out (`trim`) or must always be there (`max_length`)."""

    TRIM = "trim"
    MAX_LENGTH = "max_length"


class Interpolation(StrEnum):
    """Pillow's filters that `ImageSettings.interpolation` may name."""

    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """How an image becomes the image tower's input of (S, S, 3) uint8.

    `size` is S. With `crop`, the shorter side is brought to `resize` pixels, the aspect ratio kept, and the
    centre cut out (black where the image is smaller than S). Without it the image is stretched to (S, S),
    and `resize` must equal `size`. `mean` and `std` are of RGB in [0, 1]; they are applied inside the graph,
    never here.

    Raises InputError where a value is out of range.
    """

    size: int
    resize: int
    interpolation: str
    crop: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        for name in ("mean", "std"):  # 0 and 0.0 would be equal, but not in JSON, of which the space is made
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        if self.size < 1 or self.resize < 1:
            raise InputError(f"size {self.size} and resize {self.resize}: expected at least 1 pixel")
        as_member(self.interpolation, Interpolation, "interpolation")
        if not self.crop and self.resize != self.size:
            raise InputError(f"resize {self.resize} without crop: expected the size, {self.size}")
        if not all(math.isfinite(value) for value in self.mean):
            raise InputError(f"mean {self.mean}: expected finite numbers")
        if not all(math.isfinite(value) and value > 0 for value in self.std):
            raise InputError(f"std {self.std}: expected positive numbers")


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """How token ids become the text tower's input.

    `context_length` counts start and end token; `eos_id` is the end token, which a cut keeps; `pad_id` fills
    what stands right of it. The start token, where the family has one, is written by tokenizer.json's
    post-processor. `padding` may be given by name: "trim".

    Raises InputError where a value is out of range.
    """

    context_length: int
    pad_id: int
    eos_id: int
    padding: Padding

    def __post_init__(self) -> None:
        object.__setattr__(self, "padding", as_member(self.padding, Padding, "padding"))
        if self.context_length < 2:
            raise InputError(f"context_length {self.context_length}: expected at least 2, start and end token")
        if self.pad_id < 0 or self.eos_id < 0:
            raise InputError(f"pad_id {self.pad_id} and eos_id {self.eos_id}: expected at least 0")
