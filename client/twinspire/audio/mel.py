"""Log-mel spectrograms, as librosa and transformers' `ClapFeatureExtractor` compute them.

In NumPy: https://librosa.org/doc/latest/generated/librosa.feature.melspectrogram.html
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from twinspire.bundle import AudioPadding, AudioSettings, MelNorm, MelScale

_SLANEY_HZ, _SLANEY_MEL = 1000.0, 15.0  # where Slaney's scale goes from linear to logarithmic
_SLANEY_STEP = np.log(6.4) / 27.0
_FRAMES_AT_ONCE = 512  # 4 MB of spectra at 1,024 samples


def log_mel(samples: NDArray[np.float64], settings: AudioSettings) -> NDArray[np.float32]:
    """Return the log-mel spectrogram of mono samples at the model's rate, (n,), n at least 1: (frames, mels) float32.

    The samples are cut or padded to the length that the settings say.
    """
    fitted = fit_length(samples, settings)
    half = settings.fft_size // 2
    padded = np.pad(fitted, half, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, settings.fft_size)[:: settings.hop]
    window, filters = np.hanning(settings.fft_size + 1)[:-1], mel_filters(settings)  # periodic
    decibels = np.empty((settings.frames, settings.mels), np.float32)
    for start in range(0, settings.frames, _FRAMES_AT_ONCE):
        spectra = np.fft.rfft(windows[start : start + _FRAMES_AT_ONCE] * window)  # (f, bins)
        power = spectra.real**2 + spectra.imag**2
        energy = np.maximum(power @ filters, settings.floor)  # (f, mels)
        decibels[start : start + len(energy)] = 10.0 * np.log10(energy)
    return decibels


def fit_length(samples: NDArray[np.float64], settings: AudioSettings) -> NDArray[np.float64]:
    """Cut or pad samples to `settings.samples`; of longer sounds the beginning is kept."""
    length = settings.samples
    if len(samples) >= length:
        return samples[:length]
    if settings.padding is AudioPadding.REPEAT:
        return np.resize(samples, length)
    if settings.padding is AudioPadding.REPEAT_PAD:
        samples = np.tile(samples, length // len(samples))
    return np.pad(samples, (0, length - len(samples)))


@lru_cache(maxsize=8)
def mel_filters(settings: AudioSettings) -> NDArray[np.float64]:
    """Return the weights of the FFT's bins in each mel band: (fft_size // 2 + 1, mels), triangles in Hz."""
    lowest, highest = (_mel(hertz, settings.mel_scale) for hertz in (settings.min_hz, settings.max_hz))
    edges = _hertz(np.linspace(lowest, highest, settings.mels + 2), settings.mel_scale)  # (mels + 2,)
    bins = np.linspace(0, settings.sample_rate // 2, settings.fft_size // 2 + 1)
    distance = edges[None] - bins[:, None]  # (bins, mels + 2)
    rising, falling = -distance[:, :-2] / np.diff(edges)[:-1], distance[:, 2:] / np.diff(edges)[1:]
    filters: NDArray[np.float64] = np.maximum(0, np.minimum(rising, falling))
    if settings.mel_norm is MelNorm.SLANEY:
        filters *= 2.0 / (edges[2:] - edges[:-2])
    filters.flags.writeable = False
    return filters


def _mel(hertz: float, scale: MelScale) -> float:
    if scale is MelScale.HTK:
        return float(2595.0 * np.log10(1.0 + hertz / 700.0))
    if hertz < _SLANEY_HZ:
        return 3.0 * hertz / 200.0
    return float(_SLANEY_MEL + np.log(hertz / _SLANEY_HZ) / _SLANEY_STEP)


def _hertz(mels: NDArray[np.float64], scale: MelScale) -> NDArray[np.float64]:
    if scale is MelScale.HTK:
        return np.asarray(700.0 * (10.0 ** (mels / 2595.0) - 1.0))
    logarithmic = _SLANEY_HZ * np.exp(_SLANEY_STEP * (mels - _SLANEY_MEL))
    return np.where(mels < _SLANEY_MEL, 200.0 * mels / 3.0, logarithmic)
