"""Short queries as users type them: one object and its colour, "a red car", and all the scenes that show it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from twinspire_eval.scenes.captions import caption
from twinspire_eval.scenes.description import Detail, Group, Query, Scene
from twinspire_eval.scenes.vocabulary import Background, Colour, Language, ObjectType, Place, Size


@dataclass(frozen=True)
class ShortQuery:
    """An object of one colour in the words of each language, and the positions of the scenes that show it.

    `relevant` has one or more, in ascending order.
    """

    texts: dict[Language, str]
    relevant: tuple[int, ...]


def short_queries(scenes: Sequence[Scene], *, seed: int = 0) -> list[ShortQuery]:
    """Return a query for each object and colour that a scene shows, at most 192, whatever else the scene shows.

    `seed` chooses among synonyms. A query has the same words whatever scenes there are.
    """
    shown: dict[Query, list[int]] = {}
    for position, scene in enumerate(scenes):
        for query in {Query(group.kind, group.colour) for group in scene.groups}:
            shown.setdefault(query, []).append(position)
    rng = random.Random(f"short queries/{seed}")
    queries = []
    for kind, colour in product(ObjectType, Colour):
        texts = {language: _text(kind, colour, language, rng) for language in Language}  # also of those not shown
        relevant = shown.get(Query(kind, colour))
        if relevant is not None:
            queries.append(ShortQuery(texts, tuple(relevant)))
    return queries


def _text(kind: ObjectType, colour: Colour, language: Language, rng: random.Random) -> str:
    """Name an object and its colour, with an article or a measure word: what a caption without details says."""
    alone = Scene(Background.MEADOW, (Group(kind, colour, Size.SMALL),), place=Place.MIDDLE)
    return caption(alone, language, rng, omit=tuple(Detail))
