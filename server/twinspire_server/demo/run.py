"""A run of the demo: generate images, index them, search them with texts, measure recall and speed."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinspire import Bundle, Client, Index, LocalTowers, TritonTowers
from twinspire._arguments import as_member, file_errors
from twinspire.bundle import Tower
from twinspire.cli.bundles import reference_to
from twinspire.contact_sheet import SheetRow, contact_sheet
from twinspire.errors import InputError, MissingDependencyError, ServerError
from twinspire.index import Hit
from twinspire.ingest import Captions, IngestOptions, add_images
from twinspire_eval.recall import BothWays, both_ways
from twinspire_eval.scenes import CaptionedScene, Language, Scene, Split, draw_dataset, draw_scene
from twinspire_server.demo import DemoRuntime

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
"""How many images are prepared together and sent to a server at once."""
_MARKER = ".twinspire-demo"
_OWN = ("scenes", "models", "index", "query.jpg", "answers.png", "triton.log")


@dataclass(frozen=True)
class DemoQuery:
    """A query and its hits, best first. `image` is the file of an image query."""

    query: str
    hits: list[Hit]
    image: Path | None = None


@dataclass(frozen=True)
class DemoReport:
    """Results of the demo.

    `engine` describes what encoded. `images_per_s` counts from files to a durable index: reading, decoding, encoding
    and writing. With a server, `mean_batch_size` is the image tower's requests divided by its executions; without one
    it and `triton_version` are None, and `fallback` is the reason where `auto` could not start one. `unwritable` holds
    the characters of the queries that no installed font has, which the contact sheet leaves out.
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


@dataclass(frozen=True)
class _Runtime:
    """A client and the runtime that encodes for it. `fallback` is the reason why `auto` did not take Triton."""

    client: Client
    runtime: DemoRuntime
    engine: str
    triton_version: str | None = None
    fallback: str | None = None


def run_demo(
    out: Path,
    *,
    bundle: Path,
    images: int = 500,
    runtime: DemoRuntime | str = DemoRuntime.AUTO,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> DemoReport:
    """Generate `images` held-out scenes below `out`, index them and answer the demo's queries.

    `out` becomes the demo's own folder: new, empty, or an earlier demo's, which is replaced; anything else is an
    `InputError`. `on_progress` is called with the stage, the number of images done and their total.
    """
    runtime = as_member(runtime, DemoRuntime, "runtime")
    progress = on_progress or (lambda *_: None)
    _claim(out)
    scenes = draw_dataset(
        out / "scenes",
        images,
        seed=SEED,
        split=Split.HELDOUT,
        on_progress=lambda done: progress("drawing", done, images),
    )
    files = sorted((out / "scenes").glob("*.jpg"))
    with _open_runtime(Bundle.open(bundle), runtime, out) as opened:
        client = opened.client
        client.encode_images([files[0]])  # the first call pays for the engine's start
        reference = reference_to(client.bundle)
        several = client.vectors_per_item
        with Index.create(
            out / "index", space=client.space, dim=client.dim, bundle=reference, vectors_per_item=several
        ) as index:
            images_per_s, mean_batch_size = _index(index, client, files, scenes, progress)
            query_image = out / "query.jpg"
            draw_scene(scenes[0].scene, random.Random("the same scene, drawn once more")).save(query_image, quality=90)
            answers = _answer(index, client, [*QUERIES, query_image])
        recall = _recall(client, files, scenes)
    sheet = out / "answers.png"
    rows = [
        SheetRow(answer.query, [(Path(hit.uri), hit.score) for hit in answer.hits], image=answer.image)
        for answer in answers
    ]
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


@contextmanager
def _open_runtime(bundle: Bundle, runtime: DemoRuntime, folder: Path) -> Iterator[_Runtime]:
    """Open the towers of `bundle`; a server's repository and log are written to `folder`.

    Each image is sent to the server in a request of its own, many at once: the server forms the batches. Raises what
    `TritonServer.start` raises where the runtime is Triton and it does not start.
    """
    fallback: str | None = None
    if runtime is not DemoRuntime.LOCAL:
        from twinspire_server.repository import build_repository
        from twinspire_server.triton import TritonServer

        models = build_repository([bundle.path], folder / "models")
        server = TritonServer(folder / "models", log_file=folder / "triton.log")
        try:
            server.start()
        except (MissingDependencyError, ServerError) as error:
            if runtime is DemoRuntime.TRITON:
                raise
            fallback = str(error)
        else:
            try:
                with Client.connect(server.grpc_url, bundle, send_images_singly=True) as client:
                    engine = f"Triton {server.version}, {models[0].spec.precision}"
                    yield _Runtime(client, DemoRuntime.TRITON, engine, server.version)
            finally:
                server.stop()
            return
    towers = LocalTowers(bundle)
    with Client(bundle, towers) as client:
        yield _Runtime(client, DemoRuntime.LOCAL, str(towers.runtime), fallback=fallback)


def _claim(out: Path) -> None:
    """Make `out` the demo's own empty folder."""
    with file_errors(f"cannot write the demo to {out}", out):
        if out.exists() and any(out.iterdir()):
            if not (out / _MARKER).exists():
                raise InputError(
                    f"{out} is not empty and not the folder of an earlier demo: name a new one with -o", path=out
                )
            for name in _OWN:
                shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        (out / _MARKER).touch()


def _index(
    index: Index,
    client: Client,
    files: Sequence[Path],
    scenes: Sequence[CaptionedScene],
    progress: Callable[[str, int, int], None],
) -> tuple[float, float | None]:
    """Add the files with captions and metadata; return images per second, and the mean batch size of a server."""
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        progress("indexing", done, len(files))

    server = client.towers if isinstance(client.towers, TritonTowers) else None
    before = server.statistics(Tower.IMAGE) if server else None
    started = time.perf_counter()
    options = IngestOptions(captions=_captions(files, scenes), batch=BATCH)
    report = add_images(index, client, files, options, on_progress=advance)
    seconds = time.perf_counter() - started
    assert not report.failed
    counted = server.statistics(Tower.IMAGE).since(before) if server and before else None
    return len(files) / seconds, counted.mean_batch_size if counted else None


def _captions(files: Sequence[Path], scenes: Sequence[CaptionedScene]) -> Captions:
    """Return the captions of the scenes in all languages, and what is in them as metadata to filter by."""
    names = [file.name for file in files]
    return Captions(
        {name: list(scene.captions.values()) for name, scene in zip(names, scenes, strict=True)},
        folder=files[0].parent,
        metadata={name: _metadata(scene.scene) for name, scene in zip(names, scenes, strict=True)},
    )


def _metadata(scene: Scene) -> dict[str, Any]:
    return {
        "background": scene.background.value,
        "colours": sorted({group.colour.value for group in scene.groups}),
        "objects": scene.objects,
        "things": sorted({group.kind.value for group in scene.groups}),
    }


def _answer(index: Index, client: Client, queries: Sequence[str | Path]) -> list[DemoQuery]:
    """Search for each query: a text, or the path of an image."""
    answers = []
    for query in queries:
        if isinstance(query, str):
            vector, title, image = client.encode_texts([query]), query, None  # (1, D)
        else:
            vector, title, image = client.encode_images([query]), query.name, query
        (hits,) = index.search(vector, k=HITS, space=client.space)
        answers.append(DemoQuery(title, hits, image))
    return answers


def _recall(client: Client, files: Sequence[Path], scenes: Sequence[CaptionedScene]) -> dict[Language, BothWays]:
    """Measure recall between each image and its caption, both ways, in each language."""
    images = client.encode_images(files)  # (N, D)
    return {
        language: both_ways(images, client.encode_texts([scene.captions[language] for scene in scenes]))
        for language in Language
    }
