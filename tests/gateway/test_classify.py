"""Classification over HTTP, against `Classifier` with the same model."""

from __future__ import annotations

import base64
from pathlib import Path

import httpx
import pytest

from twinspire import Client
from twinspire.search import Classification, Classifier, Label

LABELS = ["a red house", "a blue boat", "snow"]


def _data_uri(file: Path) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(file.read_bytes()).decode()}"


def _same(document: dict[str, object], expected: Classification) -> None:
    scores = document["labels"]
    assert isinstance(scores, list)
    assert [score["label"] for score in scores] == [score.label for score in expected.scores]
    for name in ("score", "probability"):
        values = [getattr(score, name) for score in expected.scores]
        assert [score[name] for score in scores] == pytest.approx(values, abs=1e-3)
    assert document["flagged"] == [score.label for score in expected.flagged]


def test_scores_are_those_of_the_classifier(api: httpx.Client, scenes_index: Path, local_client: Client) -> None:
    """Pictures in data URIs and items, in the order given, have the classifier's scores, probabilities and flags."""
    files = [scenes_index.parent / f"scene{number}.jpg" for number in (1, 2, 3)]
    labels = [*LABELS, {"text": "anything", "threshold": -1}]
    images = [_data_uri(files[0]), "item:2", _data_uri(files[2])]
    response = api.post("/v1/classify", json={"labels": labels, "images": images})
    found = response.raise_for_status().json()["images"]
    classifier = Classifier(local_client, [*LABELS, Label("anything", -1)])
    for document, expected in zip(found, classifier.classify(files), strict=True):
        assert "anything" in document["flagged"]
        _same(document, expected)


def test_pictures_need_no_index(http: httpx.Client, scenes_index: Path, local_client: Client) -> None:
    """A gateway without an index classifies pictures that come with the request."""
    file = scenes_index.parent / "scene4.jpg"
    response = http.post("/v1/classify", json={"labels": LABELS, "images": [_data_uri(file)]})
    (found,) = response.raise_for_status().json()["images"]
    _same(found, Classifier(local_client, LABELS).classify([file])[0])


@pytest.mark.parametrize(
    ("document", "status", "param"),
    [
        ({"labels": [], "images": ["item:0"]}, 400, "labels"),
        ({"labels": ["a"], "images": []}, 400, "images"),
        ({"labels": ["a"]}, 400, "images"),
        ({"labels": ["a", "a"], "images": ["item:0"]}, 400, "labels"),
        ({"labels": ["a", ""], "images": ["item:0"]}, 400, "labels[1]"),
        ({"labels": [{"text": "a", "threshold": 2}], "images": ["item:0"]}, 400, "labels[0]"),
        ({"labels": ["a"], "images": ["/etc/passwd"]}, 400, "images[0]"),
        ({"labels": ["a"], "images": [{"image": "item:0"}]}, 400, "images[0]"),
        ({"labels": ["a"], "images": ["data:image/png;base64,AAAA"]}, 400, None),
        ({"labels": ["a"], "images": ["item:999"]}, 404, None),
        ({"labels": [str(number) for number in range(1001)], "images": ["item:0"]}, 400, "labels"),
        ({"labels": ["a"], "images": ["item:0"] * 257}, 400, "images"),
        ({"labels": ["a"], "images": ["item:0"], "top": 3}, 400, "top"),
        ({"labels": ["a" * 100_001], "images": ["item:0"]}, 400, "labels"),
        ("labels", 400, None),
    ],
)
def test_what_cannot_be_classified_is_named(
    api: httpx.Client, document: object, status: int, param: str | None
) -> None:
    """A bad request has a status of its own and the key that is wrong."""
    response = api.post("/v1/classify", json=document)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param), response.text
