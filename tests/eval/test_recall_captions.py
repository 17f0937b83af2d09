"""Captions that find the other captions of their image: ranks against a full sort, and the data set without images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from support.data import PHOTO_CAPTIONS
from twinspire.errors import EmbeddingError, InputError
from twinspire_eval.datasets import open_dataset
from twinspire_eval.recall import MAP, R1, R10, estimates, metrics_of, rank_captions, ranking


def embeddings(counts: list[int], *, seed: int, dim: int = 8) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Generate captions of images with so many each, near to each other."""
    rng = np.random.default_rng(seed)
    owners = np.repeat(np.arange(len(counts)), counts)
    rows = rng.normal(size=(len(counts), dim))[owners] + 0.8 * rng.normal(size=(len(owners), dim))
    unit: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit, owners


def sorted_ranks(texts: NDArray[np.float32], owners: NDArray[np.int64], query: int) -> list[int]:
    """Rank all other captions by a sort, equal ones of other images first; return the own ones' ranks."""
    scores = (texts.astype(np.float64) @ texts[query].astype(np.float64)).astype(np.float32)
    others = [place for place in range(len(texts)) if place != query]
    others.sort(key=lambda place: (-scores[place], owners[place] == owners[query]))
    return [rank for rank, place in enumerate(others, start=1) if owners[place] == owners[query]]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scores_at_once", [1, 100, 1 << 21])
def test_ranks_are_those_of_a_sort(seed: int, scores_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """First ranks and average precisions are those of a full sort, in blocks of any size."""
    monkeypatch.setattr(ranking, "_SCORES_AT_ONCE", scores_at_once)
    counts = np.random.default_rng(seed).integers(1, 6, 30).tolist()
    texts, owners = embeddings(counts, seed=seed)
    texts[5] = texts[40]  # equal captions of two images
    found = rank_captions(texts, owners)
    queries = [query for query in range(len(texts)) if counts[owners[query]] > 1]
    assert len(queries) < len(texts), "no image has one caption: the test should have some"
    expected = [sorted_ranks(texts, owners, query) for query in queries]
    assert found.first_ranks.tolist() == [ranks[0] for ranks in expected]
    precisions = [np.mean([place / rank for place, rank in enumerate(ranks, start=1)]) for ranks in expected]
    assert found.average_precisions == pytest.approx(precisions)
    assert found.images.tolist() == owners[queries].tolist()
    assert found.image_count == 30


def test_a_model_that_answers_everything_alike_has_no_recall() -> None:
    """Where all embeddings are equal, captions of other images rank first."""
    found = metrics_of(rank_captions(np.ones((40, 4), np.float32) / 2, np.repeat(np.arange(20), 2)))
    assert (found[R1], found[R10]) == (0, 0)


def test_a_caption_does_not_find_itself() -> None:
    """Captions that equal those of their image and no others find them all; the caption itself is no hit."""
    texts = np.eye(6, dtype=np.float32)[np.repeat(np.arange(6), 3)]
    found = estimates(rank_captions(texts, np.repeat(np.arange(6), 3)))
    assert (found[R1].value, found[MAP].value) == (1, 1)


def test_captions_that_cannot_be_ranked_are_errors() -> None:
    """Single captions, and embeddings that are not finite, are errors."""
    texts, owners = embeddings([1, 1, 1], seed=0)
    with pytest.raises(InputError, match="several"):
        rank_captions(texts, owners)
    with pytest.raises(EmbeddingError, match="finite"):
        rank_captions(np.full((4, 3), np.nan, np.float32), np.array([0, 0, 1, 1]))


def test_captions_are_opened_without_their_images(tmp_path: Path) -> None:
    """captions:FILE has the captions of a file of any form, wherever its images are; a sample is of images."""
    file = tmp_path / "captions_val2017.json"
    file.write_bytes(PHOTO_CAPTIONS.read_bytes())
    with pytest.raises(InputError, match="images"):
        open_dataset(f"coco:{file}")
    data = open_dataset(f"captions:{file}")
    assert not data.has_images
    assert list(data.chunks(8)) == []
    images = json.loads(file.read_text(encoding="utf-8"))
    expected = [caption.strip() for image in images for caption in image["captions"]]
    assert sorted(data.captions_in(None).texts) == sorted(expected)
    sample = open_dataset(f"captions:{file}", limit=3)
    assert (len(sample), sample.has_images) == (3, False)
    assert set(sample.ids) < set(data.ids)


@pytest.mark.parametrize(("spec", "word"), [("captions:", "path"), ("captions:nowhere.json", "nowhere")])
def test_captions_that_are_not_there(spec: str, word: str) -> None:
    """A missing path and a missing file are errors."""
    with pytest.raises(InputError, match=word):
        open_dataset(spec)


def test_captions_alone_take_no_folder_of_images(tmp_path: Path) -> None:
    """A folder of images for captions alone is an error."""
    with pytest.raises(InputError, match="images"):
        open_dataset(f"captions:{PHOTO_CAPTIONS}", images=tmp_path)
