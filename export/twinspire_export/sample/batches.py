"""Training batches of the sample model: images, captions, short queries, and which text is true of which image."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from twinspire_eval.scenes.captions import caption, in_template, query_text, some_details
from twinspire_eval.scenes.description import Query, Scene, without
from twinspire_eval.scenes.vocabulary import Language
from twinspire_export.sample.data import IMAGE_SETTINGS, TrainingSet, TrainingSettings

LENGTH_STEP = 16
"""Token sequences are padded to a multiple of this, so that few shapes are compiled."""
SHIFT = 3
"""Training images are shifted by up to this many pixels."""
_NAMED = {"colour": 0.85, "size": 0.15, "count": 0.15, "background": 0.2}
"""How often a short query names a property beside the type of object."""


@dataclass(frozen=True)
class Batch:
    """N images with a caption each, and Q short queries.

    `pixels` is (N, 3, S, S) float32; `captions` (N, L) and `queries` (Q, L') are int64 token ids, padded with 0.
    `captions_true` (N, N) and `queries_true` (Q, N) say of which images a text is true.
    """

    pixels: torch.Tensor
    captions: torch.Tensor
    captions_true: torch.Tensor
    queries: torch.Tensor
    queries_true: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True)
class Wording:
    """How captions and queries are worded: tokenizer, languages, and whether an object type has several nouns."""

    tokenize: Callable[[str], list[int]]
    languages: tuple[Language, ...] = tuple(Language)
    synonyms: bool = True


@dataclass(frozen=True)
class Said:
    """A text as token ids, and of which scenes it is true: those for which `view(scene)` equals `value`.

    Texts with equal `key` have the same `view`, so that it is computed once for a scene.
    """

    ids: list[int]
    key: Hashable
    view: Callable[[Scene], Hashable]
    value: Hashable


class Texts:
    """Makes captions and short queries of scenes, with other words each time."""

    def __init__(self, wording: Wording, settings: TrainingSettings, rng: random.Random) -> None:
        self._wording, self._settings, self._rng = wording, settings, rng

    def caption(self, scene: Scene) -> Said:
        """Return a caption of a scene, of which some leave details out."""
        is_partial = self._rng.random() < self._settings.partial_captions
        omit = some_details(self._rng) if is_partial else frozenset()
        language = self._rng.choice(self._wording.languages)
        text = caption(scene, language, self._rng, omit=omit, synonyms=self._wording.synonyms)
        view = partial(without, omitted=omit)
        return Said(self._ids(text, language), omit, view, view(scene))

    def query(self, scene: Scene) -> Said:
        """Return a short query of which a scene is a right answer."""
        query = a_query(scene, self._rng)
        language = self._rng.choice(self._wording.languages)
        return Said(self._ids(query_text(query, language, self._rng), language), query, query.matches, True)

    def _ids(self, text: str, language: Language) -> list[int]:
        framed = self._rng.random() < self._settings.templates
        return self._wording.tokenize(in_template(text, language, self._rng) if framed else text)


class Batches:
    """Batches of training scenes: images shifted a little, captions and queries generated anew each time."""

    def __init__(self, data: TrainingSet, wording: Wording, settings: TrainingSettings) -> None:
        self._data = data
        self._settings = settings
        self._rng = random.Random(f"batches/{settings.seed}")
        self._texts = Texts(wording, settings, self._rng)
        self._positions = data.batches(settings.batch, self._rng)
        # Images reach the model as (uint8 / 255 - mean) / std, here as one multiply and one add.
        std = torch.tensor(IMAGE_SETTINGS.std).view(1, 3, 1, 1)
        self._scale = 1 / (255 * std)
        self._offset = -torch.tensor(IMAGE_SETTINGS.mean).view(1, 3, 1, 1) / std

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches endlessly."""
        for positions in self._positions:
            images = self._data.images[np.asarray(positions)]
            down, across = (self._rng.randint(-SHIFT, SHIFT) for _ in range(2))
            pixels = torch.from_numpy(shifted(images, down, across)).permute(0, 3, 1, 2)
            scenes = [self._data.scenes[position] for position in positions]
            captions = [self._texts.caption(scene) for scene in scenes]
            asked = self._rng.sample(scenes, min(self._settings.queries, len(scenes)))
            queries = [self._texts.query(scene) for scene in asked]
            yield Batch(
                pixels * self._scale + self._offset,
                padded_ids(captions),
                truth(captions, scenes),
                padded_ids(queries),
                truth(queries, scenes),
            )


def padded_ids(texts: Sequence[Said]) -> torch.Tensor:
    """Return the token ids of texts, (N, L) int64, padded with 0 to a multiple of `LENGTH_STEP`."""
    length = -(-max((len(text.ids) for text in texts), default=0) // LENGTH_STEP) * LENGTH_STEP
    return torch.tensor([text.ids + [0] * (length - len(text.ids)) for text in texts], dtype=torch.int64)


def truth(texts: Sequence[Said], scenes: Sequence[Scene]) -> torch.Tensor:
    """Return of which scenes each text is true, (T, N) bool."""
    views = {text.key: text.view for text in texts}
    seen = {key: [view(scene) for scene in scenes] for key, view in views.items()}
    true = [[found == text.value for found in seen[text.key]] for text in texts]
    return torch.tensor(true, dtype=torch.bool).view(len(texts), len(scenes))


def a_query(scene: Scene, rng: random.Random) -> Query:
    """Return a short query of which a scene is a right answer."""
    group = rng.choice(scene.groups)
    named = {name: rng.random() < share for name, share in _NAMED.items()}
    query = Query(group.kind)
    if named["colour"]:
        query = replace(query, colour=group.colour)
    if named["size"]:
        query = replace(query, size=group.size)
    if named["count"] and group.count > 1:
        query = replace(query, count=group.count)
    if named["background"]:
        query = replace(query, background=scene.background)
    return query


def shifted(images: npt.NDArray[np.uint8], down: int, across: int) -> npt.NDArray[np.uint8]:
    """Shift images, (N, S, S, 3), by some pixels, repeating the edge."""
    padded = np.pad(images, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="edge")
    side = images.shape[1]
    return np.ascontiguousarray(padded[:, SHIFT + down : SHIFT + down + side, SHIFT + across : SHIFT + across + side])
