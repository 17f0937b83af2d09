"""Generated sounds: inputs of audio towers where nobody gives recordings, to probe, calibrate and measure on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from twinspire.audio.mel import log_mel
from twinspire.bundle import AudioSettings

_SEED = 20240229
PROBES = 8


def generated_sounds(count: int, settings: AudioSettings, *, seed: int = _SEED) -> NDArray[np.float32]:
    """Generate `count` sounds, the same on every machine, as spectrograms: (count, F, M) float32.

    In turn a tone with harmonics, a chirp, noise, clicks, vowels with pauses, and a mixture; between a tenth and the
    whole of the model's length, at levels from full scale to -40 dB; after each round one that is silent.
    """
    generator = np.random.default_rng(seed)
    kinds = (_tone, _chirp, _noise, _clicks, _vowels, _mixture, _silence)
    sounds = []
    for number in range(count):
        samples = int(settings.samples * generator.uniform(0.1, 1))
        times = np.arange(samples) / settings.sample_rate  # seconds
        sound = kinds[number % len(kinds)](times, generator)
        level = 10 ** (-2 * generator.uniform())
        sounds.append(log_mel(sound / max(1e-9, np.abs(sound).max()) * level, settings))
    return np.stack(sounds)


def _tone(times: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    pitch, partials = generator.uniform(60, 2000), np.arange(1, 6)
    phases = 2 * np.pi * pitch * partials[:, None] * times
    tone: NDArray[np.float64] = (np.sin(phases) / partials[:, None]).sum(axis=0)
    return tone


def _chirp(times: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    low, high = np.sort(generator.uniform(50, 8000, 2))
    chirp: NDArray[np.float64] = np.sin(2 * np.pi * (low * times + (high - low) * times**2 / (2 * times[-1] + 1e-9)))
    return chirp


def _noise(times: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    white = generator.normal(size=len(times))
    width = int(generator.integers(1, 40))  # a moving average: darker noise
    return np.convolve(white, np.ones(width) / width, mode="same")


def _clicks(times: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    clicks = np.zeros(len(times))
    clicks[generator.integers(0, len(times), 40)] = generator.uniform(-1, 1, 40)
    return np.convolve(clicks, np.exp(-np.arange(400) / 60.0))[: len(times)]


def _vowels(times: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    pitch = generator.uniform(90, 260) * (1 + 0.05 * np.sin(2 * np.pi * 3 * times))
    phase = 2 * np.pi * np.cumsum(pitch) * times[-1] / len(times)
    voiced = np.sin(2 * np.pi * generator.uniform(2, 5) * times) > 0
    vowels: NDArray[np.float64] = sum((np.sin(n * phase) / n for n in range(1, 12)), np.zeros(len(times))) * voiced
    return vowels


def _mixture(times: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    return _tone(times, generator) + 0.3 * _noise(times, generator) + _clicks(times, generator)


def _silence(times: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:  # noqa: ARG001
    return np.zeros(len(times))
