"""Preprocessing of many sounds: files and samples in, log-mel spectrograms of the audio tower's size out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire._arguments import require_list
from twinspire._batched import BatchPreprocessor
from twinspire._media import Origin
from twinspire.audio.decode import DEFAULT_LIMITS, Pending, begin, finish
from twinspire.audio.items import AudioItem, AudioLimits
from twinspire.audio.mel import log_mel
from twinspire.audio.resample import resample
from twinspire.bundle import AudioSettings
from twinspire.errors import AudioError, InputError


class AudioPreprocessor(BatchPreprocessor[AudioError]):
    """Turns sounds into the audio tower's input: (N, frames, mels) float32 log-mel spectrograms in decibels.

    A sound is mixed to mono, resampled to the model's rate, and cut after `max_length_s` or padded; see
    `AudioSettings`. The same sound gives the same spectrogram every time.
    """

    error_class = AudioError
    thread_name = "twinspire-audio"

    def __init__(
        self, settings: AudioSettings, *, limits: AudioLimits = DEFAULT_LIMITS, threads: int | None = None
    ) -> None:
        super().__init__(threads=threads)
        self.settings = settings
        self.limits = limits

    def _checked(self, items: Any) -> Iterable[AudioItem]:  # noqa: ANN401 - whatever the caller gave
        """Return `items`. Raises InputError for a single sound, which would be read letter by letter or by samples."""
        is_pair = isinstance(items, tuple) and len(items) == 2 and isinstance(items[0], np.ndarray)
        is_pair = is_pair and not isinstance(items[1], tuple | np.ndarray | str)
        if is_pair or isinstance(items, np.ndarray) or hasattr(items, "read"):
            raise InputError(
                f"expected a list of sounds, got one {type(items).__name__}. Put it in a list", option="sounds"
            )
        return require_list(items, "sounds")

    def _begin(self, item: AudioItem, origin: Origin) -> Pending:
        return begin(item, self.limits, origin, seconds=self.settings.max_length_s)

    def _finish(self, begun: Pending, origin: Origin) -> NDArray[np.float32]:
        sound = finish(begun, self.limits, origin, seconds=self.settings.max_length_s)
        return log_mel(resample(sound.samples, sound.rate, self.settings.sample_rate), self.settings)

    def _empty(self, count: int) -> NDArray[np.float32]:
        return np.empty((count, self.settings.frames, self.settings.mels), np.float32)
