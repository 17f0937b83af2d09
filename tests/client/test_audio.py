"""Sounds of every form become the spectrograms that transformers' feature extractor makes, or are refused."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from scipy import signal

from support.clap import encoded, sounds
from twinspire.audio import AudioLimits, AudioPreprocessor, load_audio
from twinspire.audio.mel import log_mel
from twinspire.audio.resample import BETA, ROLLOFF, ZERO_CROSSINGS, resample
from twinspire.bundle import AudioPadding, AudioSettings, MelNorm, MelScale
from twinspire.errors import AudioError, InputError, MissingDependencyError

CLAP = AudioSettings(
    sample_rate=48_000,
    max_length_s=10,
    fft_size=1024,
    hop=480,
    mels=64,
    min_hz=0,
    max_hz=14_000,
    mel_scale=MelScale.SLANEY,
    mel_norm=MelNorm.SLANEY,
    padding=AudioPadding.REPEAT_PAD,
)
"""The settings of LAION's unfused CLAP."""

DECIBELS = 2e-5
"""float32 has steps of 7.6e-6 at 100 dB."""

RATES = (8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 96_000, 192_000)


@pytest.fixture(scope="module")
def extractor() -> Any:
    """Return transformers' feature extractor with its defaults, which are CLAP's."""
    transformers = pytest.importorskip("transformers", reason="the reference is transformers")
    return transformers.ClapFeatureExtractor(truncation="rand_trunc")


def reference(extractor: Any, samples: np.ndarray, padding: str = "repeatpad") -> np.ndarray:
    """Return the spectrogram (F, M) that transformers makes of samples of at most 10 s."""
    features = extractor(samples, sampling_rate=48_000, padding=padding, return_tensors="np")
    return np.asarray(features["input_features"][0, 0])


@pytest.mark.parametrize("padding", list(AudioPadding))
@pytest.mark.parametrize("seconds", [0.0001, 0.9, 4.0, 10.0])
def test_spectrograms_are_those_of_transformers(extractor: Any, padding: AudioPadding, seconds: float) -> None:
    """Sines, chirps, noise, clicks and voices of up to 10 s give the same decibels, however they are padded."""
    settings = replace(CLAP, padding=padding)
    for name, sound in sounds(48_000, seconds).items():
        found = log_mel(sound, settings)
        assert (found.shape, found.dtype) == ((1001, 64), np.float32)
        difference = float(np.abs(found - reference(extractor, sound, padding)).max())
        print(f"{name}, {padding}: largest difference {difference:.1e} dB")
        assert difference <= DECIBELS


@pytest.mark.parametrize("scale", list(MelScale))
@pytest.mark.parametrize("norm", list(MelNorm))
@pytest.mark.parametrize(("low", "high", "rate"), [(0, 14_000, 48_000), (50, 3_800, 8_000), (1_500, 9_000, 22_050)])
def test_mel_filters_are_those_of_transformers(scale: str, norm: str, low: float, high: float, rate: int) -> None:
    """Both mel scales, with and without equal areas, give the same spectrogram of noise."""
    utils = pytest.importorskip("transformers.audio_utils", reason="the reference is transformers")
    settings = replace(
        CLAP, mel_scale=MelScale(scale), mel_norm=MelNorm(norm), min_hz=low, max_hz=high, sample_rate=rate, mels=40
    )
    samples = sounds(rate, 10)["noise"]
    filters = utils.mel_filter_bank(
        513, 40, low, high, rate, norm=None if norm == MelNorm.NONE else "slaney", mel_scale=scale
    )
    window = utils.window_function(1024, "hann")
    expected = utils.spectrogram(samples, window, 1024, 480, power=2.0, mel_filters=filters, log_mel="dB")
    assert np.abs(log_mel(samples, settings) - expected.T).max() <= DECIBELS


def test_longer_sounds_are_cut_at_their_start(extractor: Any) -> None:
    """Of 30 s the first 10 are taken, the same each time, where transformers would choose them at random."""
    generator = np.random.default_rng(0)
    samples = generator.normal(size=30 * 48_000) / 4
    preprocessor = AudioPreprocessor(CLAP, threads=2)
    once, twice = preprocessor.many([(samples, 48_000), (samples.astype(np.float32), 48_000)])
    assert np.abs(once - reference(extractor, samples[: 10 * 48_000])).max() <= DECIBELS
    assert np.abs(once - twice).max() <= 1e-3
    files = preprocessor.many([encoded(samples, 48_000)] * 2)
    assert np.array_equal(files[0], files[1])


@pytest.mark.parametrize("rate", [*RATES, 47_999])
def test_resampling_is_that_of_scipy(rate: int) -> None:
    """The polyphase filter of scipy with the same coefficients gives the same samples."""
    samples = np.random.default_rng(rate).normal(size=rate // 5)
    common = np.gcd(rate, 48_000)
    up, down = 48_000 // common, rate // common
    cutoff = ROLLOFF * min(1.0, up / down)
    half = int(np.ceil(ZERO_CROSSINGS / cutoff)) * up
    steps = np.arange(-half, half + 1) / up
    inside = np.clip(1 - (steps * cutoff / ZERO_CROSSINGS) ** 2, 0, None)
    window = np.i0(BETA * np.sqrt(inside)) / np.i0(BETA) * (inside > 0)
    expected = signal.resample_poly(samples, up, down, window=cutoff * np.sinc(cutoff * steps) * window / up)
    found = resample(samples, rate, 48_000)
    assert found.shape == expected.shape == (-(-len(samples) * up // down),)
    difference = float(np.abs(found - expected).max())
    print(f"{rate} Hz: largest difference {difference:.1e}")
    assert difference <= (1e-12 if up <= 1024 else 1e-5)


@pytest.mark.parametrize("rate", RATES)
def test_a_tone_survives_resampling(rate: int) -> None:
    """A sine of 1 kHz at any rate is the sine of 1 kHz at 48 kHz, away from the ends, to -100 dB."""
    times, new_times = np.arange(rate) / rate, np.arange(48_000) / 48_000
    found = resample(np.sin(2 * np.pi * 1_000 * times), rate, 48_000)
    inner = slice(4_800, -4_800)
    assert np.abs(found - np.sin(2 * np.pi * 1_000 * new_times))[inner].max() <= 1e-5


def test_what_is_above_the_new_nyquist_frequency_is_removed() -> None:
    """A sine of 30 kHz at 96 kHz leaves nothing at 48 kHz, where it would come back as one of 18 kHz."""
    found = resample(np.sin(2 * np.pi * 30_000 * np.arange(96_000) / 96_000), 96_000, 48_000)
    assert np.abs(found[4_800:-4_800]).max() <= 1e-5


@pytest.mark.parametrize(
    ("form", "subtype", "bound"),
    [
        ("WAV", "PCM_U8", 2**-7), ("WAV", "PCM_16", 2**-15), ("WAV", "PCM_24", 2**-23), ("WAV", "PCM_32", 2**-30),
        ("WAV", "FLOAT", 1e-7), ("WAV", "DOUBLE", 1e-15), ("FLAC", "PCM_S8", 2**-7), ("FLAC", "PCM_16", 2**-15),
        ("FLAC", "PCM_24", 2**-23), ("AIFF", "PCM_16", 2**-15), ("OGG", "VORBIS", 0.1), ("MP3", "MPEG_LAYER_III", 0.1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_formats(form: str, subtype: str, bound: float, channels: int) -> None:
    """Each format and sample size gives the mean of its channels, with full scale at 1, to its own precision."""
    channels = min(channels, 2) if form == "MP3" else channels
    voice = sounds(44_100, 0.5)["voice"]
    samples = np.stack([voice * (1 - 0.1 * channel) for channel in range(channels)], axis=1)
    found = load_audio(encoded(samples, 44_100, form, subtype))
    assert found.rate == 44_100
    length = min(len(found.samples), len(voice))
    assert abs(len(found.samples) - len(voice)) <= (2_400 if form == "MP3" else 0)
    assert np.abs(found.samples[:length] - samples.mean(axis=1)[:length]).max() <= bound


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 96_000])
def test_every_way_to_pass_a_sound(rate: int, tmp_path: Path) -> None:
    """A path, bytes, a file object and a pair of samples and rate of one sound give one spectrogram."""
    samples = sounds(rate, 1.0)["chirp"].astype(np.float32)
    data = encoded(samples, rate)
    path = tmp_path / "a sound.wav"
    path.write_bytes(data)
    items: list[Any] = [
        path,
        str(path),
        data,
        bytearray(data),
        io.BytesIO(data),
        (samples, rate),
        (samples[:, None], rate),
    ]
    with path.open("rb") as file:
        found = AudioPreprocessor(CLAP, threads=3).many([*items, file])
    assert found.shape == (8, 1001, 64)
    assert all(np.array_equal(found[0], spectrogram) for spectrogram in found)


@pytest.mark.parametrize(("dtype", "scale"), [(np.int16, 2**15), (np.int32, 2**31), (np.float64, 1.0)])
def test_samples_of_every_type(dtype: Any, scale: float) -> None:
    """Whole numbers have full scale at their largest value, floats at 1."""
    samples = np.array([0.0, 0.5, -0.5, 0.25])
    assert np.array_equal(load_audio(((samples * scale).astype(dtype), 8_000)).samples, samples)


@pytest.mark.parametrize("form", ["WAV", "FLAC"])
def test_little_and_much(form: str, extractor: Any) -> None:
    """One sample is a sound, 30 s are read up to what the model hears, and no samples are an error."""
    one = AudioPreprocessor(CLAP).one(encoded(np.array([0.5]), 48_000, form, "PCM_16"))
    assert np.abs(one - reference(extractor, np.array([0.5]))).max() <= DECIBELS
    long = sounds(8_000, 30)["voice"]
    found = load_audio(encoded(long, 8_000, form, "PCM_16"), seconds=10)
    assert len(found.samples) == 10 * 8_000 + 2_000
    if form == "WAV":  # an empty FLAC cannot be written
        with pytest.raises(AudioError, match="no samples"):
            load_audio(encoded(np.zeros((0, 1)), 48_000, form, "PCM_16"))


def test_the_beginning_is_that_of_the_whole() -> None:
    """Reading only what the model hears gives the spectrogram of the whole resampled sound."""
    for rate in (8_000, 44_100, 96_000):
        samples = np.random.default_rng(rate).normal(size=12 * rate) / 8
        whole = log_mel(resample(samples, rate, 48_000), CLAP)
        assert np.array_equal(AudioPreprocessor(CLAP).one((samples, rate)), whole)


WAV = encoded(sounds(8_000, 1.0)["voice"], 8_000, "WAV", "PCM_16")
NAN = sounds(8_000, 1.0)["sine"].copy()
NAN[17] = np.nan


@pytest.mark.parametrize(
    ("item", "word"),
    [
        (WAV[:5_000], "truncated"),
        (encoded(sounds(8_000, 3.0)["noise"], 8_000, "FLAC", "PCM_16")[:20_000], "FLAC|lost|truncated"),
        (encoded(sounds(8_000, 3.0)["noise"], 8_000, "AIFF", "PCM_16")[:20_000], "truncated"),
        (encoded(sounds(44_100, 3.0)["noise"], 44_100, "MP3", "MPEG_LAYER_III")[:9_000], "truncated"),
        (WAV[:30], "format"),
        (WAV[:44], "truncated"),
        (np.random.default_rng(0).bytes(20_000), "format"),
        (b"hello, this is a text\n" * 100, "format"),
        (b"", "empty"),
        (encoded(NAN, 8_000), "NaN"),
        (encoded(np.full(800, np.inf), 8_000), "infinite"),
        ((NAN, 8_000), "NaN"),
        ((np.full(8_000, 1e200), 8_000), "full scale"),
        ((np.zeros(0), 8_000), "no samples"),
        ((np.zeros(8_000, np.uint8), 8_000), "uint8"),
        ((np.zeros((2, 2, 2)), 8_000), "shape"),
        ((np.zeros((2, 8_000)), 8_000), "samples.T"),
        ((np.zeros(8_000), 8_000.0), "rate"),
        ((np.zeros(8_000), 10), "samples/s"),
        ((np.zeros(8_000), -1), "samples/s"),
        ((np.zeros(8_000),), "pair"),
        (Path("/nowhere/sound.wav"), "no such file"),
        (Path("/"), "folder"),
        (Path("/dev/zero"), "regular"),
        ("", "empty path"),
        ("a\0b.wav", "path"),
        (io.StringIO("text"), "rb"),
        (3, "int"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_sound(item: Any, word: str) -> None:
    """Damaged, empty, foreign and impossible sounds are AudioErrors with position, name and cause."""
    good = (sounds(8_000, 0.1)["sine"], 8_000)
    preprocessor = AudioPreprocessor(CLAP, threads=2)
    with pytest.raises(AudioError, match=word) as caught:
        preprocessor.many([good, item])
    assert caught.value.position == 1
    found, errors = preprocessor.many_or_skip([good, item, good])
    assert (len(found), [error.position for error in errors]) == (2, [1])
    assert np.array_equal(found[0], found[1])


def test_a_text_file_called_wav(tmp_path: Path) -> None:
    """A file's content counts, not its name."""
    text, raw = tmp_path / "notes.wav", tmp_path / "notes.raw"
    text.write_text("not a sound")
    raw.write_text("not a sound")
    for path in (text, raw):
        with pytest.raises(AudioError, match="format") as caught:
            load_audio(path)
        assert caught.value.name == str(path)


def test_a_truncated_rest_that_is_not_heard(tmp_path: Path) -> None:
    """A WAV that ends early is whole where the model hears only what is there."""
    samples = sounds(8_000, 30.0)["noise"]
    cut = encoded(samples, 8_000, "WAV", "PCM_16")[: 44 + 2 * 8_000 * 20]
    found = AudioPreprocessor(CLAP).one(cut)
    assert np.array_equal(found, AudioPreprocessor(CLAP).one(encoded(samples, 8_000, "WAV", "PCM_16")))
    with pytest.raises(AudioError, match="truncated"):
        load_audio(cut)


def test_a_stream_of_unknown_length() -> None:
    """A WAV written to a pipe has no size in its header: what is there is the sound."""
    data = bytearray(WAV)
    data[4:8] = data[40:44] = b"\xff" * 4
    assert np.array_equal(load_audio(bytes(data)).samples, load_audio(WAV).samples)


@pytest.mark.parametrize(
    ("limits", "word"),
    [({"max_seconds": 0.5}, "max_seconds"), ({"max_channels": 1}, "max_channels"), ({"max_bytes": 1_000}, "max_bytes")],
)
def test_limits(limits: dict[str, Any], word: str, tmp_path: Path) -> None:
    """A sound above a limit is refused with the limit's name, as a path, bytes or a file object."""
    stereo = np.stack([sounds(8_000, 1.0)["sine"]] * 2, axis=1)
    data = encoded(stereo, 8_000)
    (tmp_path / "a.wav").write_bytes(data)
    for item in (data, tmp_path / "a.wav", io.BytesIO(data)):
        assert load_audio(item).rate == 8_000
        if isinstance(item, io.BytesIO):
            item.seek(0)
        with pytest.raises(AudioError, match=word):
            load_audio(item, limits=AudioLimits(**limits))
    with pytest.raises(InputError):
        AudioLimits(**dict.fromkeys(limits, 0))


@pytest.mark.parametrize("one", ["a.wav", b"RIFF", Path("a.wav"), io.BytesIO(), np.zeros(3), (np.zeros(3), 8_000)])
def test_one_sound_is_not_a_list(one: Any) -> None:
    """A single sound in place of a list is an InputError that says so."""
    with pytest.raises(InputError, match="list"):
        AudioPreprocessor(CLAP).many(one)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """A named pipe is refused without being opened."""
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(AudioError, match="regular"):
        load_audio(tmp_path / "pipe.wav")


@pytest.mark.parametrize(
    "change",
    [
        {"sample_rate": 0}, {"max_length_s": 0.001}, {"max_length_s": float("nan")}, {"max_length_s": 1e9},
        {"fft_size": 1023}, {"hop": 0}, {"mels": 0}, {"min_hz": -1}, {"max_hz": 24_001}, {"min_hz": 14_000},
        {"mel_scale": "bark"}, {"mel_norm": "area"}, {"floor": 0}, {"padding": "wrap"}, {"cut": "random"},
    ],
)  # fmt: skip
def test_settings_out_of_range(change: dict[str, Any]) -> None:
    """Settings that no spectrogram can be made with are an InputError."""
    with pytest.raises(InputError):
        replace(CLAP, **change)


def test_without_soundfile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without soundfile a file is a MissingDependencyError that names the extra, and samples still work."""
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(MissingDependencyError) as caught:
        load_audio(WAV)
    assert (caught.value.package, caught.value.extra) == ("soundfile", "audio")
    assert load_audio((np.zeros(5), 8_000)).rate == 8_000


def test_importing_is_light() -> None:
    """Neither the package nor the client imports soundfile."""
    code = "import sys, twinspire.client, twinspire.audio, twinspire.ingest; sys.exit('soundfile' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_libsndfile_is_the_reference() -> None:
    """Samples are those that soundfile reads."""
    data = encoded(sounds(22_050, 0.5)["chirp"], 22_050, "FLAC", "PCM_16")
    expected, rate = soundfile.read(io.BytesIO(data))
    found = load_audio(data)
    assert found.rate == rate
    assert np.array_equal(found.samples, expected)
