"""Sounds of any form to mono samples. Files are read by libsndfile: WAV, FLAC, OGG, MP3, AIFF and others."""

from __future__ import annotations

import importlib
import io
import re
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, TypeAlias

from twinspire._dependencies import import_failure
from twinspire._media import Origin, begin_encoded, opened_path, origin_of
from twinspire.audio.items import AudioItem, AudioLimits, Sound, check_sound, frames_of, mono, sound_of_pair
from twinspire.errors import AudioError

DEFAULT_LIMITS = AudioLimits()
Pending: TypeAlias = Sound | bytes | Path
"""A sound that any thread may finish loading: samples in memory, an encoded file, or the path of one."""

# libsndfile shortens a file that ends early without a word, but notes it in its log: "data : 192000 (should be 99956)".
_CUT_OFF = re.compile(r"^ *(?:data|SSND) *: *(\d+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN_SIZE = 0x7FFFFF00
"""Programs that write to a pipe do not know the size, and put a number from here up into the header."""


def load_audio(
    item: AudioItem, *, position: int = 0, limits: AudioLimits = DEFAULT_LIMITS, seconds: float | None = None
) -> Sound:
    """Load a sound as mono samples, (n,) float64 with full scale at 1, at its own rate.

    Channels are averaged. With `seconds` no more than its beginning is read, and what resampling needs beyond it.

    Raises AudioError, with `position` and the cause, for anything but a whole sound within the limits,
    MissingDependencyError without the package soundfile (extra `audio`).
    """
    origin = origin_of(item, position, AudioError)
    return finish(begin(item, limits, origin, seconds=seconds), limits, origin, seconds=seconds)


def begin(item: AudioItem, limits: AudioLimits, origin: Origin, *, seconds: float | None) -> Pending:
    """Do the part of loading that must run in the caller's thread: read file objects. Raises AudioError."""
    value: Any = item
    if isinstance(value, tuple):
        return sound_of_pair(value, limits, origin, seconds=seconds)
    soundfile()  # missing: fail before anything is read
    if (encoded := begin_encoded(value, limits, origin)) is not None:
        return encoded
    raise origin.error(
        f"type {type(value).__name__}: expected a path, bytes, a binary file, or a pair of samples and their rate"
    )


def finish(pending: Pending, limits: AudioLimits, origin: Origin, *, seconds: float | None) -> Sound:
    """Finish loading, in any thread. Raises AudioError."""
    if isinstance(pending, Sound):
        return pending
    if isinstance(pending, Path):
        with opened_path(pending, limits, origin) as file:
            return _decoded(file, limits, origin, seconds)
    return _decoded(io.BytesIO(pending), limits, origin, seconds)


def audio_header(source: BinaryIO | Path) -> dict[str, float | int | str]:
    """Return what a sound file's header says: `duration_s`, `sample_rate` (Hz), `channels` and `format`.

    Raises any exception of the reader, and `soundfile`'s.
    """
    if isinstance(source, Path):
        with source.open("rb") as file:
            return audio_header(file)
    with soundfile().SoundFile(_Unnamed(source)) as opened:
        rate = int(opened.samplerate)
        return {
            "duration_s": round(opened.frames / rate, 3),
            "sample_rate": rate,
            "channels": int(opened.channels),
            "format": str(opened.format),
        }


def soundfile() -> ModuleType:
    """Import soundfile. Raises MissingDependencyError, or BrokenDependencyError where libsndfile is missing."""
    try:
        return importlib.import_module("soundfile")
    except (ImportError, OSError) as error:
        raise import_failure(error, "soundfile", {"soundfile": "audio"}, "Reading sound files") from error


def _decoded(file: BinaryIO, limits: AudioLimits, origin: Origin, seconds: float | None) -> Sound:
    library = soundfile()
    try:
        with library.SoundFile(_Unnamed(file)) as opened:
            rate, frames = int(opened.samplerate), int(opened.frames)
            check_sound(frames / max(1, rate), rate, int(opened.channels), limits, origin)
            wanted = frames if seconds is None else min(frames, frames_of(seconds, rate))
            samples = opened.read(wanted, dtype="float64", always_2d=True)  # (n, channels)
            log = str(opened.extra_info)
    except (AudioError, MemoryError):
        raise
    except library.SoundFileError as error:
        cause = str(getattr(error, "error_string", error)).strip().rstrip(".")
        raise origin.error(f"not a whole sound of a known format (WAV, FLAC, OGG, MP3 ...): {cause}") from error
    except Exception as error:  # soundfile raises any exception on odd files
        raise origin.error(f"cannot be decoded: {error}") from error
    cut = _CUT_OFF.search(log)
    is_cut = cut is not None and int(cut[2]) < int(cut[1]) < _UNKNOWN_SIZE
    if len(samples) < wanted or (is_cut and (seconds is None or frames < frames_of(seconds, rate))):
        raise origin.error(f"truncated or damaged: it ends after {len(samples) / rate:.2f} s")
    return Sound(mono(samples, origin), rate)


class _Unnamed:
    """A binary file without its name, from whose end soundfile would guess the format where the content says none."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.readinto, self.seek, self.tell = file.read, getattr(file, "readinto"), file.seek, file.tell  # noqa: B009
