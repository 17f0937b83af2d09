"""Preprocessing settings of a model: how images are resized, texts tokenized, and sounds turned into spectrograms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from twinspire._arguments import as_finite, as_member, as_whole
from twinspire._codec import OPTIONAL, encode
from twinspire.errors import InputError


class Tower(StrEnum):
    """The part of a model that encodes one modality."""

    IMAGE = "image"
    TEXT = "text"
    AUDIO = "audio"


class Precision(StrEnum):
    """The arithmetic of an engine.

    `int8` is for processors; `int8-tensorrt` is what TensorRT accepts: int8 with zero points 0, the rest in fp16.
    `fp32-tome` and `int8-tome` merge similar tokens of an image (ToMe, https://arxiv.org/abs/2210.09461): their
    certificates say how many in each block.
    """

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    INT8_TENSORRT = "int8-tensorrt"
    FP32_TOME = "fp32-tome"
    INT8_TOME = "int8-tome"

    @property
    def is_int8_of_processors(self) -> bool:
        """Whether its products are of uint8 and int8, as processors compute them."""
        return self in (Precision.INT8, Precision.INT8_TOME)

    @property
    def with_merged_tokens(self) -> Precision | None:
        """The precision of engines made from those of this precision by merging tokens; None where none can be made."""
        return {Precision.FP32: Precision.FP32_TOME, Precision.INT8: Precision.INT8_TOME}.get(self)


class Padding(StrEnum):
    """Whether the padding may be left out (`trim`) or must always be there (`max_length`)."""

    TRIM = "trim"
    MAX_LENGTH = "max_length"


class Interpolation(StrEnum):
    """Pillow's filters that images may be resized with."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


class Resize(StrEnum):
    """How an image of any size becomes one of the tower's size.

    `shortest_side`: scale until the shorter side has a given length, then cut the centre out. `stretch`: scale both
    sides, whatever the aspect ratio. `stretch_and_crop`: scale both sides to a given length, then cut the centre out.
    `pad`: scale until the whole image fits, then pad it with black on both sides.
    """

    SHORTEST_SIDE = "shortest_side"
    STRETCH = "stretch"
    STRETCH_AND_CROP = "stretch_and_crop"
    PAD = "pad"


class CropRounding(StrEnum):
    """Where a centre crop of C of W pixels begins if (W - C) / 2 is not whole.

    `floor`: transformers. `round`: to the even neighbour, torchvision, and so OpenAI's and OpenCLIP's own code.
    """

    FLOOR = "floor"
    ROUND = "round"


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """How an image becomes the image tower's input of (`height`, `width`, 3) uint8.

    With `resize` `shortest_side`, `shortest_side` is the length in pixels that the shorter side is scaled to and
    `crop_rounding` where the centre crop begins; what is smaller than the crop is padded with black. With
    `stretch_and_crop` both sides are scaled to `shortest_side`. The other kinds of resizing have neither. `mean` and
    `std` are of RGB in [0, 1]; they are applied inside the graph, never here.

    Raises InputError where a value is out of range.
    """

    height: int
    width: int
    resize: Resize
    shortest_side: int | None = field(default=None, metadata=OPTIONAL)
    crop_rounding: CropRounding | None = field(default=None, metadata=OPTIONAL)
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        for name in ("mean", "std"):  # 0 and 0.0 would be equal, but not in JSON, of which the space is made
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        if self.height < 1 or self.width < 1:
            raise InputError(f"height {self.height} and width {self.width}: expected at least 1 pixel")
        as_member(self.interpolation, Interpolation, "interpolation")
        if as_member(self.resize, Resize, "resize") in (Resize.SHORTEST_SIDE, Resize.STRETCH_AND_CROP):
            if self.shortest_side is None or self.shortest_side < 1:
                raise InputError(f"shortest_side {self.shortest_side}: expected at least 1 pixel")
            if self.crop_rounding is None:
                raise InputError(f"no crop_rounding: expected {' or '.join(CropRounding)}")
            as_member(self.crop_rounding, CropRounding, "crop_rounding")
        elif self.shortest_side is not None or self.crop_rounding is not None:
            raise InputError(f"resize {self.resize} has no shortest_side and no crop_rounding: leave them out")
        if not all(math.isfinite(value) for value in self.mean):
            raise InputError(f"mean {self.mean}: expected finite numbers")
        if not all(math.isfinite(value) and value > 0 for value in self.std):
            raise InputError(f"std {self.std}: expected positive numbers")

    @classmethod
    def centre_crop(
        cls,
        size: int,
        *,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        shortest_side: int | None = None,
        rounding: CropRounding = CropRounding.FLOOR,
        interpolation: Interpolation = Interpolation.BICUBIC,
    ) -> ImageSettings:
        """Return the settings of a square crop, as CLIP has them. `shortest_side` None is `size`."""
        return cls(
            height=size,
            width=size,
            resize=Resize.SHORTEST_SIDE,
            shortest_side=size if shortest_side is None else shortest_side,
            crop_rounding=rounding,
            interpolation=interpolation,
            mean=mean,
            std=std,
        )

    @property
    def size(self) -> int:
        """The side of a square input. Raises InputError where it is not square."""
        if self.height != self.width:
            raise InputError(f"the image tower takes {self.height} x {self.width} pixels: expected a square")
        return self.height

    def canonical(self) -> Mapping[str, Any]:
        """Return the settings as `space_id` hashes them.

        What the first schema of bundles could express is hashed as it was then: spaces do not change with the schema.
        """
        plain: dict[str, Any] = encode(self)
        is_new = self.resize in (Resize.PAD, Resize.STRETCH_AND_CROP) or self.crop_rounding is CropRounding.ROUND
        if self.height != self.width or is_new:
            return plain
        crop = self.resize is Resize.SHORTEST_SIDE
        kept = {name: plain[name] for name in ("interpolation", "mean", "std")}
        return {"size": self.size, "resize": self.shortest_side if crop else self.size, "crop": crop, **kept}


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
        as_whole(self.context_length, "context_length", minimum=2)  # start and end token
        if self.pad_id < 0 or self.eos_id < 0:
            raise InputError(f"pad_id {self.pad_id} and eos_id {self.eos_id}: expected at least 0")


class MelScale(StrEnum):
    """The formula of the mel scale: HTK's, or that of Slaney's Auditory Toolbox, linear below 1 kHz, librosa's."""

    HTK = "htk"
    SLANEY = "slaney"


class MelNorm(StrEnum):
    """Whether mel filters have equal height (`none`), or equal area (`slaney`)."""

    NONE = "none"
    SLANEY = "slaney"


class AudioPadding(StrEnum):
    """How a sound becomes `max_length_s` long.

    `repeatpad`: repeat it as often as it fits whole, then append silence. `repeat`: repeat it and cut. `pad`: append
    silence.
    """

    REPEAT_PAD = "repeatpad"
    REPEAT = "repeat"
    PAD = "pad"


class AudioCut(StrEnum):
    """Which part of a longer sound is encoded: its beginning."""

    START = "start"


@dataclass(frozen=True, kw_only=True)
class AudioSettings:
    """How a sound becomes the audio tower's input of (`frames`, `mels`) float32, a log-mel spectrogram in decibels.

    The sound is mixed to mono, resampled to `sample_rate` (Hz), cut or padded to `max_length_s` seconds and transformed
    in frames of `fft_size` samples under a periodic Hann window, `hop` samples apart, centred and mirrored at the ends.
    Their power passes `mels` triangular filters from `min_hz` to `max_hz`, and is limited to `floor` and above.

    Raises InputError where a value is out of range.
    """

    sample_rate: int
    max_length_s: float
    fft_size: int
    hop: int
    mels: int
    min_hz: float
    max_hz: float
    mel_scale: MelScale
    mel_norm: MelNorm
    floor: float = 1e-10
    padding: AudioPadding
    cut: AudioCut = AudioCut.START

    def __post_init__(self) -> None:
        for name in ("max_length_s", "min_hz", "max_hz", "floor"):  # 0 and 0.0 would be equal, but not in JSON
            object.__setattr__(self, name, as_finite(getattr(self, name), name))
        for name in ("sample_rate", "hop", "mels"):
            as_whole(getattr(self, name), name, minimum=1)
        if as_whole(self.fft_size, "fft_size", minimum=2) % 2:
            raise InputError(f"fft_size {self.fft_size}: expected an even number of samples")
        if not 0 <= self.min_hz < self.max_hz <= self.sample_rate / 2:
            raise InputError(
                f"min_hz {self.min_hz:g} and max_hz {self.max_hz:g}: expected 0 <= min_hz < max_hz, at most half of "
                f"the sample rate {self.sample_rate}"
            )
        if not self.floor > 0:
            raise InputError(f"floor {self.floor:g}: expected a power above 0")
        if not self.fft_size // 2 < self.samples <= _MAX_AUDIO_SAMPLES:
            raise InputError(
                f"max_length_s {self.max_length_s:g} is {self.samples} samples: expected more than half of fft_size "
                f"{self.fft_size} and at most {_MAX_AUDIO_SAMPLES}"
            )
        for name, members in _AUDIO_ENUMS.items():
            object.__setattr__(self, name, as_member(getattr(self, name), members, name))

    @property
    def samples(self) -> int:
        """The number of samples that a sound is cut or padded to."""
        return round(self.max_length_s * self.sample_rate)

    @property
    def frames(self) -> int:
        """The number of frames of the spectrogram."""
        return 1 + self.samples // self.hop


_MAX_AUDIO_SAMPLES = 2**26
"""Most samples of the audio tower's input: six minutes at 192 kHz. Above it a manifest is taken to be wrong."""

_AUDIO_ENUMS: Mapping[str, type[StrEnum]] = {
    "mel_scale": MelScale,
    "mel_norm": MelNorm,
    "padding": AudioPadding,
    "cut": AudioCut,
}
