"""Recall of a model's engines on a data set, by language and direction, and their difference to a reference engine.

Inputs are image files and strings: preprocessing and tokenizing are part of the measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from twinspire import Client
from twinspire._dims import cut_vectors
from twinspire.bundle import Tower
from twinspire.errors import ImageError, InputError
from twinspire_eval.datasets import CaptionedImages, CaptionTexts, LabelledQuery
from twinspire_eval.recall import (
    Direction,
    Estimate,
    Ranking,
    difference,
    estimates,
    rank_both_ways,
    rank_captions,
    rank_pairs,
    rank_queries,
)
from twinspire_eval.recall.estimates import RESAMPLES
from twinspire_eval.recall.queries import QueryReport
from twinspire_eval.records import SAMPLES
from twinspire_eval.statistics import CONFIDENCE

UNDETERMINED = "und"
"""Language tag, in results, of captions without a language (BCP 47)."""
POOLED = "pooled"
"""The mean over all languages and directions, each with the same weight."""
SEED = 0
_CHUNK = 256
_TEXTS, _QUERIES = "texts_", "queries_"  # before the language, in the names of arrays

Rankings: TypeAlias = Mapping[str, Mapping[Direction, Ranking]]
"""By language, by direction."""
Estimates: TypeAlias = Mapping[str, Estimate]
OnProgress: TypeAlias = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class DatasetEmbeddings:
    """A data set's embeddings: `images` (N, D) float32, and by language `texts` (T, D) float32, L2-normalised.

    `images` is None where the data set has captions alone. `queries` are those of the data set's queries by language,
    (Q, D) float32, L2-normalised.
    """

    images: NDArray[np.float32] | None
    texts: Mapping[str, NDArray[np.float32]]
    queries: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return all arrays by name; the inverse of `from_arrays`."""
        images = {} if self.images is None else {"images": self.images}
        texts = {f"{_TEXTS}{language}": rows for language, rows in self.texts.items()}
        return {**images, **texts, **{f"{_QUERIES}{language}": rows for language, rows in self.queries.items()}}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> DatasetEmbeddings:
        """Read the arrays of `to_arrays`."""
        texts, queries = (
            {name.removeprefix(prefix): rows for name, rows in arrays.items() if name.startswith(prefix)}
            for prefix in (_TEXTS, _QUERIES)
        )
        return cls(arrays.get("images"), texts, queries)

    def cut_to(self, dim: int) -> DatasetEmbeddings:
        """Return the embeddings cut to `dim` numbers and normalised again. Raises EngineError where one is then 0."""
        images = None if self.images is None else cut_vectors(self.images, dim)
        texts, queries = (
            {language: cut_vectors(rows, dim) for language, rows in by_language.items()}
            for by_language in (self.texts, self.queries)
        )
        return DatasetEmbeddings(images, texts, queries)


@dataclass(frozen=True)
class Loss:
    """An engine's metrics minus the reference's, below 0 where it finds less: pooled, and by language and direction."""

    pooled: Estimates
    by_language: Mapping[str, Mapping[Direction, Estimates]]


@dataclass(frozen=True)
class RecallReport:
    """Rankings and metrics of engines on one data set, by engine, language and direction.

    `figures` are the metrics of each engine with their intervals, `losses` the differences of each other engine to the
    reference, on the same queries. `dims` are the lengths of the engines, as `ENGINE:DIM`, whose embeddings were cut.
    `queries` are the figures of the data set's queries, where they were encoded.
    """

    data: CaptionedImages
    reference: str
    rankings: Mapping[str, Rankings]
    figures: Mapping[str, Mapping[str, Mapping[Direction, Estimates]]]
    losses: Mapping[str, Loss]
    queries: QueryReport
    dims: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        data: CaptionedImages,
        embeddings: Mapping[str, DatasetEmbeddings],
        *,
        reference: str,
        dims: Sequence[int] = (),
    ) -> RecallReport:
        """Rank the data set by the embeddings of each engine, and compute the metrics and their differences.

        Then by those of each engine cut to each of `dims`.
        """
        cut = {f"{engine}:{dim}": (engine, dim) for engine, dim in product(embeddings, dims)}
        embeddings = {
            **embeddings,
            **{name: embeddings[engine].cut_to(dim) for name, (engine, dim) in cut.items()},
        }
        rankings = {
            engine: {
                language: _rank(found.images, texts, _captions(data, language))
                for language, texts in found.texts.items()
            }
            for engine, found in embeddings.items()
        }
        figures = {
            engine: {
                language: {direction: estimates(ranking, seed=SEED) for direction, ranking in both.items()}
                for language, both in by_language.items()
            }
            for engine, by_language in rankings.items()
        }
        losses = {
            engine: _loss(rankings[reference], found) for engine, found in rankings.items() if engine != reference
        }
        queries = QueryReport.of(_rank_queries(data, embeddings), reference=reference)
        lengths = {name: dim for name, (_, dim) in cut.items()}
        return cls(data, reference, rankings, figures, losses, queries, lengths)

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of a record: two records are compared only where they are equal."""
        by_language = next(iter(self.rankings.values()))
        queries = self.queries.queries
        asked = {"short_queries": queries, "queries_sha256": self.data.queries_sha256} if queries else {}
        return {
            **asked,
            "data_sha256": self.data.sha256,
            "images": len(self.data),
            "captions": {language: len(_captions(self.data, language).texts) for language in by_language},
            "resamples": RESAMPLES,
            "confidence": CONFIDENCE,
            "seed": SEED,
        }

    def results(self, *, with_ranks: bool = True) -> dict[str, Any]:
        """Return the results of a record; `with_ranks` includes the rank of the first own item of each query."""
        asked = {"short_queries": self.queries.results(with_ranks=with_ranks)} if self.queries.queries else {}
        return {
            "engines": {engine: self._engine_results(engine, with_ranks) for engine in self.rankings},
            "above": {self.reference: {engine: _loss_results(loss) for engine, loss in self.losses.items()}},
            **asked,
        }

    def _engine_results(self, engine: str, with_ranks: bool) -> dict[str, Any]:
        document: dict[str, Any] = {}
        for language, both in self.figures[engine].items():
            document[language] = {}
            for direction, found in both.items():
                ranks = self.rankings[engine][language][direction].first_ranks
                raw = {"first_ranks": {SAMPLES: ranks}} if with_ranks else {}
                document[language][direction.value] = {"queries": len(ranks), **_plain(found), **raw}
        return document


def measure_recall(
    clients: Mapping[str, Client],
    data: CaptionedImages,
    *,
    languages: Sequence[str] | None = None,
    reference: str | None = None,
    dims: Sequence[int] = (),
    on_progress: OnProgress | None = None,
) -> RecallReport:
    """Encode a data set with each of several engines of one model, by name, and rank it.

    `reference` is the engine to compare with, by default the first; `dims` are shorter lengths to rank by as well, of
    the same embeddings; the other options and errors are those of `encode_dataset`. Raises InputError for no engines,
    for engines of different spaces and for a length that a bundle does not allow.
    """
    if not clients or (reference is not None and reference not in clients):
        wanted = "at least one" if reference is None else f"the reference {reference} among them"
        raise InputError(f"the engines to measure are {', '.join(clients) or 'none'}: expected {wanted}")
    if len({client.space for client in clients.values()}) > 1:
        raise InputError(f"the engines {', '.join(clients)} have different spaces: expected engines of one model")
    for client, dim in product(clients.values(), dims):
        if dim > client.dim:
            raise InputError(f"dim {dim}: the clients' embeddings have {client.dim} numbers", option="dim")
        client.bundle.space_of(dim)
    embeddings = encode_dataset(clients, data, languages=languages, on_progress=on_progress)
    return RecallReport.of(
        data, embeddings, reference=next(iter(clients)) if reference is None else reference, dims=dims
    )


def encode_dataset(
    clients: Mapping[str, Client],
    data: CaptionedImages,
    *,
    languages: Sequence[str] | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, DatasetEmbeddings]:
    """Encode a data set with each of several engines of one model, by name.

    Every image is read and preprocessed once and then encoded by all engines, so that they see the same pixels.
    `languages` are those of the captions and queries to encode, by default all. `on_progress` receives the stage, the
    steps done and the number of steps.

    Raises BundleError where an engine lacks a tower that the data set needs: captions alone, `captions:PATH`, need no
    image tower. Raises InputError for a language that no caption has, ImageError with the position in the data set and
    the id for an image that cannot be used, and EngineError.
    """
    report = on_progress or (lambda *_: None)
    names = _languages(data) if languages is None else languages
    captions = {language: _captions(data, language).texts for language in names}
    for client in clients.values():
        for tower in (Tower.IMAGE, Tower.TEXT) if data.has_images else (Tower.TEXT,):
            client.bundle.manifest.tower(tower)  # before any work
    images = _encode_images(clients, data, report) if data.has_images else {}
    queries = {language: found for language in captions if (found := _queries(data, language))}
    texts: dict[str, dict[str, NDArray[np.float32]]] = {engine: {} for engine in clients}
    asked: dict[str, dict[str, NDArray[np.float32]]] = {engine: {} for engine in clients}
    steps = len(clients) * len(captions)
    for step, (engine, language) in enumerate(product(clients, captions)):
        report("captions", step, steps)
        texts[engine][language] = clients[engine].encode_texts(captions[language])
        if language in queries:
            asked[engine][language] = clients[engine].encode_texts([query.text for query in queries[language]])
    report("captions", steps, steps)
    return {engine: DatasetEmbeddings(images.get(engine), texts[engine], asked[engine]) for engine in clients}


def _rank(
    images: NDArray[np.float32] | None, texts: NDArray[np.float32], captions: CaptionTexts
) -> Mapping[Direction, Ranking]:
    if images is None:
        return {Direction.TEXT_TO_TEXT: rank_captions(texts, captions.owners)}
    if captions.pairs is not None:
        return rank_pairs(images, texts, captions.pairs)
    return rank_both_ways(images, texts, captions.owners)


def _rank_queries(data: CaptionedImages, embeddings: Mapping[str, DatasetEmbeddings]) -> dict[str, dict[str, Ranking]]:
    """Rank the queries of the languages in which every engine has encoded them."""
    languages = [language for language in _languages(data) if all(language in e.queries for e in embeddings.values())]
    relevant = {language: [query.relevant for query in _queries(data, language)] for language in languages}
    rankings: dict[str, dict[str, Ranking]] = {}
    for engine, found in embeddings.items():
        rankings[engine] = {}
        for language, places in relevant.items():
            assert found.images is not None  # a data set with queries has images
            rankings[engine][language] = rank_queries(found.images, found.queries[language], places)
    return rankings


def _languages(data: CaptionedImages) -> list[str]:
    return [language or UNDETERMINED for language in data.languages]


def _queries(data: CaptionedImages, language: str) -> tuple[LabelledQuery, ...]:
    return data.queries_in(None if language == UNDETERMINED else language)


def _captions(data: CaptionedImages, language: str) -> CaptionTexts:
    return data.captions_in(None if language == UNDETERMINED else language)


def _encode_images(
    clients: Mapping[str, Client], data: CaptionedImages, report: OnProgress
) -> dict[str, NDArray[np.float32]]:
    """Encode all images with every engine: (N, D) each."""
    preparing = next(iter(clients.values()))
    parts: dict[str, list[NDArray[np.float32]]] = {engine: [] for engine in clients}
    done = 0
    for chunk in data.chunks(_CHUNK):
        report("images", done, len(data))
        try:
            pixels = preparing.preprocess(chunk)  # (n, S, S, 3)
        except ImageError as error:
            position = done + error.position
            raise ImageError(position, f"{data.ids[position]}: {error.name}", error.cause) from error
        for engine, client in clients.items():
            parts[engine].append(client.towers.encode_images(pixels))
        done += len(chunk)
    report("images", done, len(data))
    return {engine: np.concatenate(some) for engine, some in parts.items()}


def _loss(reference: Rankings, found: Rankings) -> Loss:
    pairs = [(before, found[language][way]) for language, both in reference.items() for way, before in both.items()]
    by_language = {
        language: {way: difference([before], [found[language][way]], seed=SEED) for way, before in both.items()}
        for language, both in reference.items()
    }
    return Loss(difference([old for old, _ in pairs], [new for _, new in pairs], seed=SEED), by_language)


def _loss_results(loss: Loss) -> dict[str, Any]:
    by_language = {
        language: {way.value: _plain(found) for way, found in both.items()}
        for language, both in loss.by_language.items()
    }
    return {POOLED: _plain(loss.pooled), **by_language}


def _plain(found: Estimates) -> dict[str, Any]:
    return {name: estimate.to_json() for name, estimate in found.items()}
