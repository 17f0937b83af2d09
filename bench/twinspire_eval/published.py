"""Recall that others published, to stand beside one's own of the same checkpoint and test set.

The figures are in `published_recall.json` with the file of the primary source that each was read from. They were
measured in 32 or 16 bit floating point by those who published them, mostly in one run without intervals.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from twinspire.errors import InputError
from twinspire_eval.recall import Direction

PUBLISHED_K = (1, 5, 10)
"""The k of the published R@k."""


@dataclass(frozen=True)
class PublishedRecall:
    """Published recall of a model on a test set in one language, None where the test set names none.

    `recall` holds R@1, R@5 and R@10 of each direction as shares from 0 to 1; a direction may be missing.
    """

    model: str
    test_set: str
    language: str | None
    recall: Mapping[Direction, tuple[float, ...]]
    source: str


def published_recall(checkpoint: str, test_set: str) -> list[PublishedRecall]:
    """Return what is published of a checkpoint on a test set, by language; empty where nothing is known.

    `checkpoint` is a hub id or the last part of one, as the name of its folder is; upper and lower case are equal.
    """
    model = _by_checkpoint().get(checkpoint.rstrip("/").rpartition("/")[2].casefold())
    if model is None or ("/" in checkpoint and not _is_path_or_id(checkpoint, model["checkpoints"])):
        return []
    sources = _document()["sources"]
    return [
        PublishedRecall(
            model["model"],
            test_set,
            entry["language"],
            {way: tuple(share / 100 for share in entry[way.value]) for way in Direction if way.value in entry},
            sources[entry["source"]],
        )
        for entry in model["figures"]
        if entry["test_set"] == test_set
    ]


def check_published_checkpoint(name: str) -> None:
    """Raise InputError where nothing is published of a checkpoint."""
    if name.rstrip("/").rpartition("/")[2].casefold() not in _by_checkpoint():
        known = ", ".join(sorted(model["checkpoints"][0] for model in _document()["models"]))
        raise InputError(f"no published figures of the checkpoint {name!r} are known: expected one of {known}")


def _is_path_or_id(checkpoint: str, ids: list[str]) -> bool:
    """Return whether a name with slashes is one of the ids or a path; another organisation's id is neither."""
    is_id = checkpoint.count("/") == 1 and not checkpoint.startswith((".", "/", "~"))
    return not is_id or checkpoint.casefold() in [name.casefold() for name in ids]


@cache
def _document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(
        files("twinspire_eval").joinpath("published_recall.json").read_text(encoding="utf-8")
    )
    return document


@cache
def _by_checkpoint() -> Mapping[str, dict[str, Any]]:
    return {
        name.rpartition("/")[2].casefold(): model for model in _document()["models"] for name in model["checkpoints"]
    }
