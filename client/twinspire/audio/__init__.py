"""Loading and preprocessing of sounds: files and samples in, log-mel spectrograms of the audio tower's size out."""

from __future__ import annotations

from twinspire.audio.decode import load_audio
from twinspire.audio.items import AudioItem, AudioLimits
from twinspire.audio.preprocess import AudioPreprocessor

__all__ = ["AudioItem", "AudioLimits", "AudioPreprocessor", "load_audio"]
