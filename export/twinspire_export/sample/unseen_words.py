"""Whether words of no training caption find their objects: `python -m twinspire_export.sample.unseen_words BUNDLE`.

For models trained by `lit`, whose captions call each type of object by one noun. Held-out scenes are ranked for
"a WORD"; the figure is the average precision of the scenes that show the object. Ranking at random gives the
share of such scenes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from twinspire import Client
from twinspire.errors import TwinspireError
from twinspire_eval.records import Record
from twinspire_eval.scenes import Split, scene_set
from twinspire_eval.scenes.vocabulary import ObjectType
from twinspire_eval.statistics import interval
from twinspire_eval.tables import figures_console, figures_table

UNSEEN_WORDS: Mapping[ObjectType, tuple[str, ...]] = {
    ObjectType.CAT: ("kitten", "feline"),
    ObjectType.DOG: ("puppy", "hound"),
    ObjectType.BIRD: ("sparrow", "seagull"),
    ObjectType.FISH: ("salmon", "trout"),
    ObjectType.RABBIT: ("bunny", "hare"),
    ObjectType.TURTLE: ("tortoise",),
    ObjectType.BUTTERFLY: ("moth",),
    ObjectType.CAR: ("automobile", "sedan"),
    ObjectType.BUS: ("coach", "minibus"),
    ObjectType.BOAT: ("vessel", "ship", "yacht"),
    ObjectType.PLANE: ("airplane", "aircraft", "jet"),
    ObjectType.ROCKET: ("spaceship", "spacecraft"),
    ObjectType.BALLOON: ("airship",),
    ObjectType.HOUSE: ("cottage", "home", "cabin"),
    ObjectType.TENT: ("tepee",),
    ObjectType.TREE: ("oak", "pine"),
    ObjectType.FLOWER: ("blossom", "rose", "daisy"),
    ObjectType.MUSHROOM: ("toadstool", "fungus"),
    ObjectType.APPLE: ("fruit",),
    ObjectType.UMBRELLA: ("parasol",),
    ObjectType.CUP: ("mug", "teacup"),
    ObjectType.HAT: ("cap", "fedora"),
    ObjectType.CHAIR: ("seat", "stool"),
}
"""Other words for the types of objects, none of which a caption without synonyms has. A kite has none."""

SEED = 7


def average_precision(scores: NDArray[np.float32], relevant: NDArray[np.bool_]) -> float:
    """Return the mean over the relevant items of the precision at their rank; both arrays are (N,)."""
    ranked = relevant[np.argsort(-scores, kind="stable")]
    precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    return float(precision[ranked].mean())


def measure(client: Client, scenes: int) -> dict[str, dict[str, Any]]:
    """Return for each word, the trained nouns among them, its type of object, average precision and that of chance."""
    drawn = scene_set(scenes, seed=SEED, split=Split.HELDOUT)
    images = client.encode_images(scene.draw() for scene in drawn)
    shown = [{group.kind for group in scene.scene.groups} for scene in drawn]
    words = [(kind, word, is_seen) for kind in UNSEEN_WORDS for word, is_seen in _words(kind)]
    texts = client.encode_texts([f"{_article(word)} {word}" for _, word, _ in words])
    results = {}
    for (kind, word, is_seen), scores in zip(words, texts @ images.T, strict=True):
        relevant = np.array([kind in kinds for kinds in shown])
        results[word] = {
            "object": kind.value,
            "in_training_captions": is_seen,
            "average_precision": average_precision(scores, relevant),
            "chance": float(relevant.mean()),
        }
    return results


def _words(kind: ObjectType) -> list[tuple[str, bool]]:
    return [(kind.value, True), *((word, False) for word in UNSEEN_WORDS[kind])]


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def main(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle of a model trained by lit.")],
    scenes: Annotated[int, typer.Option(min=10, help="Number of held-out scenes.")] = 2_000,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write a record to this file.")] = None,
) -> None:
    """Print the average precision of each word, and the means with 95% intervals over words."""
    with Client.local(bundle) as client:
        results = measure(client, scenes)
        model = {"bundle": client.bundle.name, "space": client.space, "towers": repr(client.towers)}
    table = figures_table(["word in captions", "AP", "other words: AP"], [], title="Words and their objects")
    for kind in UNSEEN_WORDS:
        others = ", ".join(f"{word} {results[word]['average_precision']:.2f}" for word in UNSEEN_WORDS[kind])
        table.add_row(kind.value, f"{results[kind.value]['average_precision']:.2f}", others)
    console = figures_console()
    console.print(table)
    means = {}
    for name, is_seen in (("words in captions", True), ("other words", False)):
        values = [found["average_precision"] for found in results.values() if found["in_training_captions"] is is_seen]
        between = interval(values, lambda samples: samples.mean(axis=-1))
        means[name] = {"words": len(values), "mean_average_precision": float(np.mean(values)), "interval": between}
        console.print(f"{name}: mean {np.mean(values):.3f}, 95% {between.low:.3f} to {between.high:.3f}")
    chance = float(np.mean([found["chance"] for found in results.values()]))
    console.print(f"ranked at random: {chance:.3f}")
    if json_file is not None:
        parameters = {**model, "scenes": scenes, "seed": SEED}
        Record(kind="unseen-words", parameters=parameters, results={**means, "chance": chance, "words": results}).save(
            json_file
        )


if __name__ == "__main__":
    try:
        typer.run(main)
    except TwinspireError as error:
        sys.exit(f"error: {error}")
