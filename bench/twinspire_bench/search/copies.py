"""Generated scenes with re-encoded, cropped and recoloured copies, beside other scenes of near-equal description.

Every scene is a JPEG file with four copies: two re-encoded, one cropped, one recoloured. Beside it are one or two
different images that share its description: the same scene drawn anew, with other positions, tones and details, and for
scenes of several groups one in which two of them have exchanged colours or sides. These are what a model whose vectors
follow descriptions cannot tell from a copy.
"""

from __future__ import annotations

import io
import random
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from PIL import Image, ImageEnhance

from twinspire_eval.scenes import CaptionedScene, Split, Swap, scene_set, swapped

_ORIGINAL_QUALITY = 95
_EDITED_QUALITY = 90  # of cropped and recoloured copies
_CROPPED = (0.05, 0.15)  # of the width and, drawn anew, of the height
# Factors: below and above 1, never so near to it that nothing changes.
_BRIGHTNESS = ((0.7, 0.85), (1.15, 1.3))
_SATURATION = ((0.5, 0.8), (1.25, 1.6))


class CopyChange(StrEnum):
    """How a copy was made of its original."""

    JPEG_75 = "jpeg 75"
    JPEG_40 = "jpeg 40"
    CROPPED = "cropped"
    RECOLOURED = "recoloured"


@dataclass(frozen=True)
class SceneFile:
    """An image in a file: the number of the picture that it shows, shared by copies, and of the scene it is beside."""

    path: Path
    picture: int
    scene: int
    change: CopyChange | None = None


def write_copies(folder: Path, count: int, *, seed: int) -> list[SceneFile]:
    """Write `count` scenes with their copies and the images beside them into a folder; return the files in order."""
    rng = random.Random(f"copies/{seed}")
    files: list[SceneFile] = []
    pictures = 0

    def write(image: Image.Image, quality: int, scene: int, change: CopyChange | None = None) -> None:
        path = folder / f"{len(files):06d}.jpg"
        path.write_bytes(_jpeg(image, quality))
        files.append(SceneFile(path, pictures, scene, change))

    for scene, captioned in enumerate(scene_set(count, seed=seed, split=Split.HELDOUT)):
        original = captioned.draw()
        write(original, _ORIGINAL_QUALITY, scene)
        write(original, 75, scene, CopyChange.JPEG_75)
        write(original, 40, scene, CopyChange.JPEG_40)
        write(_cropped(original, rng), _EDITED_QUALITY, scene, CopyChange.CROPPED)
        write(_recoloured(original, rng), _EDITED_QUALITY, scene, CopyChange.RECOLOURED)
        pictures += 1
        for other in _beside(captioned, rng):
            write(other.draw(), _ORIGINAL_QUALITY, scene)
            pictures += 1
    return files


def _beside(captioned: CaptionedScene, rng: random.Random) -> list[CaptionedScene]:
    """Return other images of the same or nearly the same description."""
    others = [replace(captioned, key=f"{captioned.key}/anew")]
    if len(captioned.scene.groups) > 1:
        scene = swapped(captioned.scene, rng.choice((Swap.COLOURS, Swap.SIDES)), rng)
        others.append(replace(captioned, scene=scene, key=f"{captioned.key}/swapped"))
    return others


def _cropped(image: Image.Image, rng: random.Random) -> Image.Image:
    width, height = (round(side * (1 - rng.uniform(*_CROPPED))) for side in image.size)
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height))


def _recoloured(image: Image.Image, rng: random.Random) -> Image.Image:
    brightness, saturation = (rng.uniform(*rng.choice(ranges)) for ranges in (_BRIGHTNESS, _SATURATION))
    return ImageEnhance.Color(ImageEnhance.Brightness(image).enhance(brightness)).enhance(saturation)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=quality)
    return encoded.getvalue()
