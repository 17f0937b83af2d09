"""Generated scenes with invented names in captions or file names, and queries for them.

Each image has a full caption in English and Chinese. For half of the images the caption also has a name, for the other
half the file name has one. A name is made of random syllables, so that no model knows it, and shared by about four
images: a name alone does not identify an image, nor does a description. Queries are phrased anew and leave things out,
as people's do: no query is a caption. Short queries name an object and its colour; every image that shows it is right.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum

from twinspire.errors import InputError
from twinspire_eval.datasets.captioned import sample_positions
from twinspire_eval.scenes import CaptionedScene, Language, Split, caption, scene_set, short_queries, some_details

IMAGES_PER_NAME = 4
_ENGLISH = "bra dor fen gal hul jor kel lim mor nav pel quo rud sil tav vex wol yan zor bri dal fim"
_CHINESE = "布 多 芬 加 胡 乔 凯 利 莫 纳 佩 库 鲁 西 塔 维 沃 扬 佐 达 菲 姆 雅 瑞"


@dataclass(frozen=True)
class NamedScene:
    """An image to index: its caption, its file name, and the name that one of them has."""

    scene: CaptionedScene
    caption: str
    file_name: str
    names: dict[Language, str]


class QueryKind(StrEnum):
    """What a query says: a description of one image, the same with its name, or an object and its colour."""

    DESCRIBED = "described"
    NAMED = "named"
    SHORT = "short"


@dataclass(frozen=True)
class SceneQuery:
    """A query and the positions of the images that are right: one, or of a short query all that show the object."""

    text: str
    language: Language
    kind: QueryKind
    right: tuple[int, ...]


def named_scenes(count: int, *, seed: int) -> list[NamedScene]:
    """Return `count` held-out scenes with names. Raises `InputError` for fewer than 8."""
    if count < 2 * IMAGES_PER_NAME:
        raise InputError(f"{count} scenes are too few to measure recall: expected {2 * IMAGES_PER_NAME} or more")
    rng = random.Random(f"names/{seed}")
    people = _people(max(1, count // IMAGES_PER_NAME), rng)
    scenes = scene_set(count, seed=seed, split=Split.HELDOUT)
    named = []
    for position, scene in enumerate(scenes):
        names = rng.choice(people)
        english, chinese = (scene.captions[language] for language in Language)
        if position % 2:
            file_name = f"{names[Language.ENGLISH]}_{names[Language.CHINESE]}_{position:06d}.jpg"
        else:
            file_name = f"{position:06d}.jpg"
            english += f", with {names[Language.ENGLISH]}"
            chinese += f"，和{names[Language.CHINESE]}一起"
        named.append(NamedScene(scene, f"{english}\n{chinese}", file_name, names))
    return named


def scene_queries(scenes: list[NamedScene], *, seed: int, images: int | None = None) -> list[SceneQuery]:
    """Return the queries for `images` sampled images, None for all, and all short queries.

    An image has four: in each language a description, and a description with the name.
    """
    rng = random.Random(f"queries/{seed}")
    sampled = set(sample_positions(len(scenes), images, seed=seed))
    queries = []
    for image, named in enumerate(scenes):
        for language in Language:
            description = caption(named.scene.scene, language, rng, omit=some_details(rng))
            if image in sampled:
                queries.append(SceneQuery(description, language, QueryKind.DESCRIBED, (image,)))
                name = named.names[language]
                text = f"{description} with {name}" if language is Language.ENGLISH else f"{description}，{name}"
                queries.append(SceneQuery(text, language, QueryKind.NAMED, (image,)))
    for query in short_queries([named.scene.scene for named in scenes]):
        queries += [
            SceneQuery(query.texts[language], language, QueryKind.SHORT, query.relevant) for language in Language
        ]
    return queries


def _people(count: int, rng: random.Random) -> list[dict[Language, str]]:
    people: dict[str, str] = {}
    while len(people) < count:
        english = "".join(rng.sample(_ENGLISH.split(), 3)).capitalize()
        people[english] = "".join(rng.sample(_CHINESE.split(), 3))
    return [{Language.ENGLISH: english, Language.CHINESE: chinese} for english, chinese in people.items()]
