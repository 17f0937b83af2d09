"""The demo: draw images, index them, find them in words, measure how well.

What a user of the library would write, with a stop watch.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinspire import Bundle, Client, Index
from twinspire._arguments import as_member
from twinspire.cli.index.bundle import reference_to
from twinspire.contact_sheet import SheetRow, contact_sheet
from twinspire.errors import InputError
from twinspire.index import Hit
from twinspire.ingest import add_images
from twinspire_eval.recall import BothWays, both_ways
from twinspire_eval.scenes import CaptionedScene, Language, Split, draw_dataset, draw_scene
from twinspire_server.demo.runtime import OpenRuntime, open_runtime
from twinspire_server.demo.settings import DemoRuntime

QUERIES = (
    "two red mushrooms at night",
    "a big black dog to the left of a big green umbrella",
    "a big green bird on the left, under the stars",
    "森林里，三只橙色的乌龟",
    "一朵大的红蘑菇在一只大的黄色的兔子的左边，山里",
    "树林里，一架黑色的飞机在一棵黄色的树的左边",
)
SEED = 7
HITS = 5
BATCH = 64
"""How many images are prepared together, and on their way to a server at once."""
_MARKER = ".twinspire-demo"
_OWN = ("scenes", "models", "index", "query.jpg", "answers.png", "triton.log")


@dataclass(frozen=True)
class DemoQuery:
    """A query and its hits, best first. `image` is the query where it is one."""

    query: str
    hits: list[Hit]
    picture: Path | None = None


@dataclass(frozen=True)
class DemoReport:
    """What the demo found and measured.

    `engine` says what encoded. `images_per_s` counts from files to a durable index: reading, decoding, encoding and
    writing. With a server, `mean_batch_size` is the image tower's requests over its executions meanwhile; without one
    it and `triton_version` are None, and `fallback` says why, where one was wanted. `unwritable` holds the characters
    of the queries that no installed font has: the contact sheet leaves them out.
    """

    runtime: DemoRuntime
    engine: str
    triton_version: str | None
    mean_batch_size: float | None
    fallback: str | None
    images: int
    images_per_s: float
    recall: dict[Language, BothWays]
    answers: list[DemoQuery]
    sheet: Path
    unwritable: frozenset[str]

    def to_json(self) -> dict[str, Any]:
        """Return the report as one JSON document."""
        return {
            "runtime": self.runtime.value,
            "triton_version": self.triton_version,
            "mean_batch_size": None if self.mean_batch_size is None else round(self.mean_batch_size, 2),
            "images": self.images,
            "images_per_s": round(self.images_per_s, 1),
            "recall": {language.value: recall.to_json() for language, recall in self.recall.items()},
            "queries": [
                {
                    "query": answer.query,
                    "hits": [{"file": Path(hit.uri).name, "score": round(hit.score, 4)} for hit in answer.hits],
                }
                for answer in self.answers
            ],
        }


def run_demo(
    out: Path,
    *,
    bundle: Path,
    images: int = 500,
    runtime: DemoRuntime | str = DemoRuntime.AUTO,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> DemoReport:
    """Draw `images` held-out scenes below `out`, index them and answer the demo's queries.

    `out` becomes the demo's own folder: new, empty, or an earlier demo's, which is replaced; anything else is an
    `InputError`. `on_progress` is told the stage, what is done of it, and its total.
    """
    runtime = as_member(runtime, DemoRuntime, "runtime")
    tell = on_progress or _say_nothing
    _claim(out)
    scenes = draw_dataset(
        out / "scenes", images, seed=SEED, split=Split.HELDOUT, on_progress=lambda done: tell("drawing", done, images)
    )
    files = sorted((out / "scenes").glob("*.jpg"))
    with open_runtime(Bundle.open(bundle), runtime, out) as opened:
        client = opened.client
        client.encode_images([files[0]])  # the first call pays for the engine's start
        reference = reference_to(client.bundle)
        with Index.create(out / "index", space=client.space, dim=client.dim, bundle=reference) as index:
            images_per_s, mean_batch_size = _index(index, opened, files, tell)
            again = out / "query.jpg"
            draw_scene(scenes[0].scene, random.Random("the same scene, drawn once more")).save(again, quality=90)
            answers = _answer(index, client, [*QUERIES, again])
        recall = _recall(client, files, scenes)
    sheet = out / "answers.png"
    rows = [SheetRow(answer.query, _images(answer.hits), image=answer.picture) for answer in answers]
    unwritable = contact_sheet(rows, sheet)
    return DemoReport(
        runtime=opened.runtime,
        engine=opened.engine,
        triton_version=opened.triton_version,
        mean_batch_size=mean_batch_size,
        fallback=opened.fallback,
        images=len(files),
        images_per_s=images_per_s,
        recall=recall,
        answers=answers,
        sheet=sheet,
        unwritable=unwritable,
    )


def _say_nothing(stage: str, done: int, total: int) -> None:
    """Report no progress."""


def _claim(out: Path) -> None:
    """Make `out` the demo's own empty folder."""
    try:
        if out.exists() and any(out.iterdir()):
            if not (out / _MARKER).exists():
                raise InputError(f"{out} is not empty and no earlier demo's folder; name a new one with -o")
            for name in _OWN:
                shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        (out / _MARKER).touch()
    except OSError as error:
        raise InputError(f"cannot write the demo to {out}: {error.strerror or error}") from error


def _index(
    index: Index, opened: OpenRuntime, files: Sequence[Path], tell: Callable[[str, int, int], None]
) -> tuple[float, float | None]:
    """Add the files; return how many a second, and the mean batch size of a server."""
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        tell("indexing", done, len(files))

    requests_before, executions_before = opened.batches()
    started = time.perf_counter()
    report = add_images(index, opened.client, files, batch=BATCH, on_progress=advance)
    seconds = time.perf_counter() - started
    requests, executions = opened.batches()
    assert not report.failed
    executed = executions - executions_before
    return len(files) / seconds, (requests - requests_before) / executed if executed else None


def _answer(index: Index, client: Client, queries: Sequence[str | Path]) -> list[DemoQuery]:
    """Search for each query: a text, or an image's path."""
    answers = []
    for query in queries:
        if isinstance(query, str):
            vector, title, picture = client.encode_texts([query]), query, None  # (1, D)
        else:
            vector, title, picture = client.encode_images([query]), query.name, query
        (hits,) = index.search(vector, k=HITS, space=client.space)
        answers.append(DemoQuery(title, hits, picture))
    return answers


def _recall(client: Client, files: Sequence[Path], scenes: Sequence[CaptionedScene]) -> dict[Language, BothWays]:
    """Recall between each image and its caption, both ways, in each language."""
    images = client.encode_images(files)  # (N, D)
    return {
        language: both_ways(images, client.encode_texts([scene.captions[language] for scene in scenes]))
        for language in Language
    }


def _images(hits: Sequence[Hit]) -> list[tuple[Path, float]]:
    return [(Path(hit.uri), hit.score) for hit in hits]
