"""Resampling by a windowed sinc: a band-limited interpolation of the samples at the new times.

The filter is the one that resampy and torchaudio call `kaiser_best`: 64 zero crossings of the sinc on both sides, a
Kaiser window of beta 14.77, and a cut-off at 0.9476 of the lower of the two Nyquist frequencies.
https://ccrma.stanford.edu/~jos/resample/
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

ZERO_CROSSINGS = 64
ROLLOFF = 0.9475937167399596
BETA = 14.769656459379492

MAX_PHASES = 1024
"""Rates in a ratio with more phases interpolate the filter between as many: an error of -110 dB."""

_AT_ONCE = 4096  # new samples of interpolated filters


def resample(samples: NDArray[np.float64], rate: int, new_rate: int) -> NDArray[np.float64]:
    """Return (n,) samples taken at `rate` Hz at `new_rate` Hz: (m,) with m = ceil(n * new_rate / rate).

    Sample 0 stays at time 0; beyond both ends is silence.
    """
    if rate == new_rate:
        return samples
    ratio = Fraction(new_rate, rate)
    up, down = ratio.numerator, ratio.denominator
    filters = _filters(up, down)  # (phases + 1, 2 * half)
    phases, half = len(filters) - 1, filters.shape[1] // 2
    padded = np.pad(samples, (half - 1, half + 1 + down // up))
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half)
    resampled = np.empty(-(-len(samples) * up // down))
    if phases == up:
        for phase in range(min(up, len(resampled))):  # new samples of one phase lie at the same place between old ones
            own = resampled[phase::up]
            own[:] = windows[phase * down // up :: down][: len(own)] @ filters[phase * down % up]
        return resampled
    for start in range(0, len(resampled), _AT_ONCE):
        times = np.arange(start, min(start + _AT_ONCE, len(resampled))) * down
        place, offset = np.divmod(times, up)
        before, share = np.divmod(offset * phases / up, 1)
        lower = before.astype(np.intp)
        taps = filters[lower] * (1 - share)[:, None] + filters[lower + 1] * share[:, None]
        resampled[start : start + len(place)] = np.einsum("nt,nt->n", windows[place], taps)
    return resampled


@lru_cache(maxsize=16)
def _filters(up: int, down: int) -> NDArray[np.float64]:
    """Return the filter for new samples at 0, 1, ... of `phases` parts of the step from one old sample to the next.

    (phases + 1, 2 * half): its coefficients for the old samples from half - 1 before to half after.
    """
    phases = min(up, MAX_PHASES)
    cutoff = ROLLOFF * min(1.0, up / down)  # of the old Nyquist frequency
    half = int(np.ceil(ZERO_CROSSINGS / cutoff))
    steps = np.arange(1 - half, half + 1) - np.arange(phases + 1)[:, None] / phases
    inside = np.clip(1 - (steps * cutoff / ZERO_CROSSINGS) ** 2, 0, None)
    window = np.where(inside > 0, np.i0(BETA * np.sqrt(inside)) / np.i0(BETA), 0)
    filters: NDArray[np.float64] = cutoff * np.sinc(cutoff * steps) * window
    filters.flags.writeable = False
    return filters
