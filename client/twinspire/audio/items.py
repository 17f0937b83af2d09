"""Sound arguments: accepted types, their limits, and samples in arrays."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from twinspire._media import Origin
from twinspire.errors import InputError

AudioItem: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | tuple[NDArray[Any], int]
"""A path, an encoded file's bytes, a binary file object, or a pair of samples and their rate in Hz. Samples are (n,) or
(n, channels), float32 or float64 with full scale at 1, or int16 or int32."""

RATES = range(1_000, 768_001)
"""The sample rates in Hz that are resampled: telephones have 8,000, studios at most 768,000."""

_LOUDEST = 1e3
"""Largest absolute value of a float sample. Full scale is 1, which recordings exceed by tens of decibels at most."""

_FULL_SCALE = {np.dtype(np.int16): 2.0**15, np.dtype(np.int32): 2.0**31}
_SAMPLES = "float32, float64, int16 or int32 of shape (n,) or (n, channels)"


@dataclass(frozen=True, kw_only=True)
class AudioLimits:
    """The largest sound that is read: its length by its header, its channels, and encoded bytes.

    Only the part that the model hears is decoded: the limit of seconds refuses recordings of which that would be a
    small part.
    """

    max_seconds: float = 3600.0
    max_channels: int = 32
    max_bytes: int = 2**30

    def __post_init__(self) -> None:
        if not self.max_seconds > 0 or self.max_channels < 1 or self.max_bytes < 1:
            raise InputError(f"{self}: expected limits above 0")


@dataclass(frozen=True, eq=False)
class Sound:
    """The beginning of a sound: `samples` (n,) float64, mono, at `rate` Hz."""

    samples: NDArray[np.float64]
    rate: int


def check_sound(seconds: float, rate: int, channels: int, limits: AudioLimits, origin: Origin) -> None:
    """Raise AudioError for a sound above the limits or of a rate that nobody records at."""
    if rate not in RATES:
        raise origin.error(f"{rate} samples/s: expected {RATES.start} to {RATES.stop - 1}")
    if not 1 <= channels <= limits.max_channels:
        raise origin.error(
            f"{channels} channels: expected 1 to {limits.max_channels}. If you trust the file, raise the limit with "
            "AudioLimits(max_channels=...)"
        )
    if seconds > limits.max_seconds:
        raise origin.error(
            f"{seconds:,.0f} s long, above the limit of {limits.max_seconds:,g}: only the beginning would be encoded. "
            "Cut it into parts, or raise the limit with AudioLimits(max_seconds=...)"
        )


def mono(samples: NDArray[np.float64], origin: Origin) -> NDArray[np.float64]:
    """Return the mean of the channels of (n, channels), (n,). Raises AudioError for no samples and what is no audio."""
    if not len(samples):
        raise origin.error("no samples: expected at least one")
    mixed: NDArray[np.float64] = samples.mean(axis=1)
    if not np.isfinite(mixed).all():
        raise origin.error("samples that are NaN or infinite: expected finite numbers")
    if (peak := float(np.abs(mixed).max())) > _LOUDEST:
        raise origin.error(f"samples of up to {peak:.3g}: expected full scale at 1. Divide whole numbers by theirs")
    return mixed


def sound_of_pair(pair: tuple[Any, ...], limits: AudioLimits, origin: Origin, *, seconds: float | None) -> Sound:
    """Return samples and rate, given as a pair, as a sound of at most `seconds`. Raises AudioError."""
    if len(pair) != 2 or not isinstance(pair[0], np.ndarray):
        raise origin.error(f"a tuple of {len(pair)}: expected a pair of samples, an array, and their rate in Hz")
    samples, rate = pair
    if isinstance(rate, bool) or not isinstance(rate, int | np.integer):
        raise origin.error(f"the rate {rate!r}: expected a whole number of samples per second")
    found = f"an array of {samples.dtype} {samples.shape}"
    scale = 1.0 if samples.dtype in (np.float32, np.float64) else _FULL_SCALE.get(samples.dtype)
    if scale is None or samples.ndim not in (1, 2):
        raise origin.error(f"{found}: expected {_SAMPLES}")
    columns = samples.reshape(len(samples), -1) if samples.size else samples.reshape(0, 1)
    if columns.shape[1] > limits.max_channels >= len(columns):
        raise origin.error(f"{found}: expected {_SAMPLES}. The channels come first: pass samples.T")
    check_sound(len(columns) / max(1, int(rate)), int(rate), columns.shape[1], limits, origin)
    wanted = len(columns) if seconds is None else frames_of(seconds, int(rate))
    with np.errstate(over="ignore", invalid="ignore"):  # such samples are found below
        return Sound(mono(columns[:wanted].astype(np.float64) / scale, origin), int(rate))


def frames_of(seconds: float, rate: int) -> int:
    """Return how many samples of a sound are needed for its first `seconds`, with what resampling reads beyond them."""
    return int(np.ceil(seconds * rate)) + rate // 4
