"""A folder of drawn scenes: JPEG files and one captions file in COCO's form. It appears whole or not at all."""

from __future__ import annotations

import io
import json
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from twinspire.errors import InputError
from twinspire_eval.scenes.captions import caption
from twinspire_eval.scenes.description import Contrast, Scene, Split, sample_pairs, sample_scenes
from twinspire_eval.scenes.drawing import SIDE, draw_scene
from twinspire_eval.scenes.vocabulary import Language

CAPTIONS_FILE = "captions.json"
JPEG_QUALITY = 90


@dataclass(frozen=True)
class CaptionedScene:
    """A scene, one caption a language, and the key from which its image is drawn."""

    scene: Scene
    captions: dict[Language, str]
    key: str

    def draw(self) -> Image.Image:
        """Draw the image, RGB, `SIDE` by `SIDE` pixels; the same at every call."""
        return draw_scene(self.scene, random.Random(f"picture/{self.key}"))


def scene_set(count: int, *, seed: int, split: Split) -> list[CaptionedScene]:
    """Return `count` scenes of a split with captions that all differ, within each language."""
    rng = random.Random(f"captions/{split}/{seed}")
    return _captioned(sample_scenes(count, seed=seed, split=split), rng, f"{split}/{seed}")


def pair_set(pairs: int, contrast: Contrast, *, seed: int, split: Split) -> list[CaptionedScene]:
    """Return pairs of scenes, one after the other, that differ in one respect only.

    Both captions of a pair are said in the same words, so that nothing but the contrast tells them apart.
    """
    rng = random.Random(f"{contrast} captions/{split}/{seed}")
    captioned: list[CaptionedScene] = []
    for position, pair in enumerate(sample_pairs(pairs, contrast, seed=seed, split=split)):
        wording = rng.random()
        for member, scene in enumerate(pair):
            said = {language: caption(scene, language, _Steady(wording)) for language in Language}
            captioned.append(CaptionedScene(scene, said, f"{contrast}/{split}/{seed}/{position}/{member}"))
    return captioned


class _Steady(random.Random):
    """Always takes the same share of a list, so that two scenes are said in the same words."""

    def __init__(self, share: float) -> None:
        super().__init__(0)
        self._share = share

    def random(self) -> float:
        return self._share


def draw_dataset(
    folder: Path,
    count: int,
    *,
    seed: int,
    split: Split,
    on_progress: Callable[[int], None] | None = None,
) -> list[CaptionedScene]:
    """Draw `count` scenes into `folder`, with `captions.json`; returns them in the order of the files' names.

    Raises `InputError` where the folder holds anything already, so that two data sets never mix.
    """
    return _write(folder, scene_set(count, seed=seed, split=split), f"{split} scenes, seed {seed}", on_progress)


def draw_pairs(
    folder: Path,
    pairs: int,
    contrast: Contrast,
    *,
    seed: int,
    split: Split,
    on_progress: Callable[[int], None] | None = None,
) -> list[CaptionedScene]:
    """Draw pairs of scenes that differ in one respect only; files 2i and 2i + 1 are a pair. Else as `draw_dataset`."""
    captioned = pair_set(pairs, contrast, seed=seed, split=split)
    return _write(folder, captioned, f"{split} {contrast} pairs, seed {seed}", on_progress)


def _captioned(scenes: list[Scene], rng: random.Random, key: str) -> list[CaptionedScene]:
    taken: set[str] = set()
    captioned = []
    for position, scene in enumerate(scenes):
        said = {}
        for language in Language:
            said[language] = next(words for words in _wordings(scene, language, rng) if words not in taken)
            taken.add(said[language])
        captioned.append(CaptionedScene(scene, said, f"{key}/{position}"))
    return captioned


def _wordings(scene: Scene, language: Language, rng: random.Random) -> Iterator[str]:
    # Two scenes never share a full caption: it names everything that tells them apart.
    while True:
        yield caption(scene, language, rng)


def _write(
    folder: Path, captioned: list[CaptionedScene], description: str, on_progress: Callable[[int], None] | None
) -> list[CaptionedScene]:
    try:
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder} is not empty; name a new or an empty folder for the scenes")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as draft:
            _fill(Path(draft) / "scenes", captioned, description, on_progress)
            (Path(draft) / "scenes").rename(folder)
    except OSError as error:
        raise InputError(f"cannot write scenes to {folder}: {error.strerror or error}") from error
    return captioned


def _fill(
    folder: Path, captioned: list[CaptionedScene], description: str, on_progress: Callable[[int], None] | None
) -> None:
    """Write the images and captions.json into a new folder."""
    folder.mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for position, entry in enumerate(captioned):
        name = f"{position:06d}.jpg"
        encoded = io.BytesIO()  # Pillow does not notice that a full disk cut a file short
        entry.draw().save(encoded, "JPEG", quality=JPEG_QUALITY)
        (folder / name).write_bytes(encoded.getvalue())
        images.append({"id": position, "file_name": name, "width": SIDE, "height": SIDE, "license": 1})
        for language, words in entry.captions.items():
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": position,
                    "caption": words,
                    "language": language.value,
                }
            )
        if on_progress is not None:
            on_progress(position + 1)
    document = {
        "info": {"description": description, "version": "1"},
        "licenses": [{"id": 1, "name": "CC0-1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}],
        "images": images,
        "annotations": annotations,
    }
    (folder / CAPTIONS_FILE).write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
