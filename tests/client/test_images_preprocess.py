"""Preprocessing is bit-equal to transformers' CLIPImageProcessor on upright 8-bit RGB and grey images."""

from __future__ import annotations

import hashlib
import io
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from support.data import PHOTOS, PREPROCESSED
from twinspire.bundle import CropRounding, ImageSettings, Interpolation, Resize
from twinspire.images import Preprocessor
from twinspire.images.geometry import crop_offset, fit, fit_window, scaled_size
from twinspire_eval.scenes import Split, draw_scene, sample_scenes

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
RESAMPLE = {
    "nearest": 0,
    "bilinear": 2,
    "bicubic": 3,
    "lanczos": 1,
}
"""Pillow's numbers, which transformers' configurations use."""


def _settings(size: int = 224, resize: int | None = None, interpolation: str = "bicubic", crop: bool = True) -> Any:
    chosen = ImageSettings.centre_crop(
        size, shortest_side=resize, interpolation=Interpolation(interpolation), mean=MEAN, std=STD
    )
    return chosen if crop else replace(chosen, resize=Resize.STRETCH, shortest_side=None, crop_rounding=None)


CLIP = _settings()


def _reference(image: Image.Image, chosen: ImageSettings) -> NDArray[np.uint8]:
    """Prepare an image with transformers' own processor, the slow one on Pillow: (S, S, 3) uint8."""
    transformers = pytest.importorskip("transformers")
    square = {"height": chosen.size, "width": chosen.size}
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": chosen.shortest_side} if chosen.shortest_side else square,
        crop_size=square,
        do_center_crop=chosen.shortest_side is not None,
        resample=RESAMPLE[chosen.interpolation],
        do_rescale=False,
        do_normalize=False,
    )
    # Said where the channels stand, since transformers guesses wrong for images of 1 or 3 pixels' height.
    prepared = processor(image, input_data_format="channels_last", data_format="channels_last", return_tensors="np")
    pixels = prepared["pixel_values"][0]
    assert pixels.dtype == np.uint8
    return pixels


def _noise(width: int, height: int, mode: str, seed: int = 0) -> Image.Image:
    """Draw noise, the hardest image to resize alike."""
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def _assert_equal(image: Image.Image, chosen: ImageSettings) -> None:
    came, expected = Preprocessor(chosen, threads=1).one(image), _reference(image, chosen)
    assert (came.shape, came.dtype) == (expected.shape, np.uint8)
    largest = np.abs(came.astype(int) - expected).max()
    assert largest == 0, f"largest difference {largest} of 255 for {image.mode} {image.size}, {chosen}"


SIZES = [
    (1, 1), (1, 2), (2, 1), (3, 1), (1, 3), (3, 3), (3, 500), (500, 3), (223, 225), (225, 223), (224, 224),
    (223, 223), (225, 225), (640, 480), (480, 640), (37, 1000), (1000, 37), (224, 448), (301, 224), (15, 16),
]  # fmt: skip


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", SIZES)
def test_odd_sizes(size: tuple[int, int], mode: str) -> None:
    """Noise of odd sizes and aspect ratios comes out as from transformers: largest difference 0."""
    _assert_equal(_noise(*size, mode), CLIP)


@pytest.mark.parametrize("size", [(1, 1000), (1000, 1)])
def test_extreme_aspect_ratios(size: tuple[int, int]) -> None:
    """A strip of one by a thousand pixels comes out as from transformers: largest difference 0."""
    _assert_equal(_noise(*size, "RGB"), CLIP)


@settings(deadline=None, max_examples=150)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    mode=st.sampled_from(["RGB", "L"]),
    size=st.integers(1, 48),
    resize=st.integers(1, 48),
    interpolation=st.sampled_from(sorted(RESAMPLE)),
    crop=st.booleans(),
    seed=st.integers(0, 2**16),
)
@example(width=10, height=60, mode="RGB", size=33, resize=20, interpolation="bicubic", crop=True, seed=0)
@example(width=60, height=10, mode="L", size=32, resize=21, interpolation="bicubic", crop=True, seed=0)
@example(width=7, height=7, mode="RGB", size=9, resize=4, interpolation="lanczos", crop=True, seed=0)
def test_all_settings(
    width: int, height: int, mode: str, size: int, resize: int, interpolation: str, crop: bool, seed: int
) -> None:
    """Every size, filter and crop comes out as from transformers, black borders of small images included."""
    chosen = _settings(size, resize if crop else size, interpolation, crop)
    _assert_equal(_noise(width, height, mode, seed), chosen)


def test_coco() -> None:
    """Photographs, from JPEG files, come out as from transformers: largest difference 0."""
    paths = sorted(PHOTOS.glob("*.jpg"))
    assert len(paths) >= 8
    pixels = Preprocessor(CLIP, threads=2).many(paths)
    for path, came in zip(paths, pixels, strict=True):
        with Image.open(path) as image:
            largest = np.abs(came.astype(int) - _reference(image, CLIP)).max()
        assert largest == 0, f"{path.name}: largest difference {largest} of 255"


@pytest.mark.parametrize("chosen", [CLIP, _settings(96, 96), _settings(112, 128, "bilinear")])
def test_scenes(chosen: ImageSettings) -> None:
    """Drawn scenes, saved as JPEG, come out as from transformers: largest difference 0."""
    for place, scene in enumerate(sample_scenes(8, seed=5, split=Split.HELDOUT)):
        file = io.BytesIO()
        draw_scene(scene, random.Random(place)).save(file, "JPEG")
        came = Preprocessor(chosen, threads=1).one(file.getvalue())
        largest = np.abs(came.astype(int) - _reference(Image.open(file), chosen)).max()
        assert largest == 0, f"scene {place}: largest difference {largest} of 255"


def test_openai_vector() -> None:
    """The published output of OpenAI CLIP's preprocessing comes out after normalising: largest difference 0."""
    with np.load(PREPROCESSED / "expected_preprocessed_image.npz") as file:
        expected = file["pixels"]  # (1, 3, 224, 224) float32
    pixels = Preprocessor(CLIP).one(PREPROCESSED / "franz-kafka.jpg")
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
    came = ((pixels.astype(np.float32) / np.float32(255) - mean) / std).transpose(2, 0, 1)[None]
    restored = np.rint((expected[0].transpose(1, 2, 0) * std + mean) * 255)
    largest = np.abs(restored - pixels).max()
    assert largest == 0, f"largest difference {largest} of 255"
    largest = np.abs(came - expected).max()
    assert largest == 0, f"largest difference {largest} after normalising"


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1), (2, 6000), (64_000, 1000)])
def test_strips_take_no_memory(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A strip whose resized form would be huge is computed only where it is cut out."""
    asked = []
    resize = Image.Image.resize

    def watch(image: Image.Image, target: tuple[int, int], *rest: Any, **options: Any) -> Image.Image:
        asked.append(target[0] * target[1])
        return resize(image, target, *rest, **options)

    monkeypatch.setattr(Image.Image, "resize", watch)
    width, height = scaled_size(size, CLIP)
    assert fit(Image.new("RGB", size, "red"), CLIP).getpixel((112, 112)) == (255, 0, 0)
    assert max(asked) <= min(width * height, 64 * 10**6)


@pytest.mark.parametrize("interpolation", sorted(RESAMPLE))
@pytest.mark.parametrize("size", [(600, 9), (9, 600), (40, 300), (500, 90), (31, 31), (64, 7)])
def test_window_agrees_with_the_whole(size: tuple[int, int], interpolation: str) -> None:
    """What is computed of a strip is the whole way's: within 1 of 255, where no filter overshoots black or white.

    Between its two passes Pillow rounds and clips, and the part may take them in the other order than the whole. So
    noise, which overshoots, is compared by the mean difference; a pixel's shift would make that 40.
    """
    for chosen in (_settings(32, 32, interpolation), _settings(40, 31, interpolation)):
        for lowest, highest in ((90, 160), (0, 256)):
            image = Image.fromarray(np.random.default_rng(0).integers(lowest, highest, (*size[::-1], 3), np.uint8))
            whole, window = (np.asarray(way(image, chosen)).astype(int) for way in (fit, fit_window))
            difference = np.abs(whole - window)
            assert difference.mean() < 0.5, f"mean difference {difference.mean():.3f} of 255"
            if lowest > 0:
                assert difference.max() <= 1, f"largest difference {difference.max()} of 255"


def _golden_cases() -> list[dict[str, Any]]:
    document = json.loads((Path(__file__).parents[1] / "data" / "resized.json").read_text(encoding="utf-8"))
    cases: list[dict[str, Any]] = document["cases"]
    return cases


@pytest.mark.parametrize("case", _golden_cases(), ids=lambda case: f"{case['resize']}-{case['image']}-{case['height']}")
def test_resizing_of_torchvision_and_open_clip(case: dict[str, Any]) -> None:
    """Every kind of resizing, also to other shapes than squares, is bit-equal to the library that defines it."""
    rounding = CropRounding.ROUND if case["resize"] == "shortest_side" else None
    chosen = ImageSettings(
        height=case["height"],
        width=case["width"],
        resize=Resize(case["resize"]),
        shortest_side=case.get("shortest_side"),
        crop_rounding=rounding,
        interpolation=Interpolation(case["interpolation"]),
        mean=MEAN,
        std=STD,
    )
    pixels = Preprocessor(chosen, threads=1).one(_noise(*case["image"], "RGB", case["seed"]))
    assert pixels.shape == (case["height"], case["width"], 3)
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == case["sha256"]


def test_roundings_differ_by_a_pixel() -> None:
    """A margin of 147 pixels is halved to 73 by transformers and to 74 by torchvision."""
    assert crop_offset(371, 224, CropRounding.FLOOR) == 73
    assert crop_offset(371, 224, CropRounding.ROUND) == 74


def test_padding_keeps_a_strip_visible() -> None:
    """An image so long that its other side would vanish keeps one pixel of it."""
    padded = replace(CLIP, resize=Resize.PAD, shortest_side=None, crop_rounding=None)
    pixels = Preprocessor(padded, threads=1).one(Image.new("RGB", (2000, 1), "red"))
    assert (pixels.any(axis=2).sum(axis=0) == 1).all()
