"""`POST /v1/classify`: zero-shot classification of images by labels in plain words."""

from __future__ import annotations

from typing import Any, cast

from fastapi import APIRouter, Request, Response

from twinspire._arguments import checked_array, checked_object, naming, require_text, shown
from twinspire._codec import encode
from twinspire.errors import InputError
from twinspire.images import ImageItem
from twinspire.search import Classification, Classifier, Label
from twinspire_server.gateway.api.bodies import ERRORS, JSON, json_body, json_response
from twinspire_server.gateway.api.encoding import ItemReference, Media, MediaEncoder
from twinspire_server.gateway.api.queries import check_count, media_of
from twinspire_server.gateway.api.service import SearchService, service_of

MAX_LABELS = 1000
MAX_IMAGES = 256
MAX_CHARACTERS = 100_000
_SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["labels", "images"],
    "properties": {
        "labels": {
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_LABELS,
            "items": {
                "oneOf": [
                    {"type": "string"},
                    {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["text"],
                        "properties": {
                            "text": {"type": "string"},
                            "threshold": {"type": ["number", "null"], "minimum": -1, "maximum": 1},
                        },
                    },
                ]
            },
        },
        "images": {
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_IMAGES,
            "items": {"type": "string", "description": "data:image/... or item:ID."},
        },
    },
}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            JSON: {
                "schema": _SCHEMA,
                "example": {"labels": ["a cat", {"text": "a knife", "threshold": 0.25}], "images": ["item:0"]},
            }
        },
    }
}


def add_routes(router: APIRouter) -> None:
    """Add the route."""

    @router.post("/v1/classify", summary="Classify images", openapi_extra=_BODY, responses=ERRORS, tags=["search"])
    async def classify(request: Request) -> Response:
        service = service_of(request)
        document = await json_body(request)
        if isinstance(document, dict):
            check_count(document, MAX_LABELS, "labels")
            check_count(document, MAX_IMAGES, "images")
        with service.embedder.admitted(_count(document)):
            labels, images = await service.run(_parsed, document)
            classified = await _classified(service, labels, images)
        return json_response({"schema_version": 1, "images": [_document(one) for one in classified]})


def _parsed(document: object) -> tuple[list[Label], list[Media]]:
    """Return labels and images. Raises InputError, whose `option` names the key."""
    checks = {
        "labels": lambda labels: checked_array(labels, "labels", _label),
        "images": lambda images: checked_array(images, "images", lambda name: media_of(require_text(name, "an image"))),
    }
    found = checked_object(document, "a classification", checks)
    for name, values in found.items():
        if not values:
            raise InputError(f"no {name}: expected at least one", option=name)
    if (characters := sum(len(label.text) for label in found["labels"])) > MAX_CHARACTERS:
        raise InputError(
            f"the labels have {characters:,} characters: expected {MAX_CHARACTERS:,} at most", option="labels"
        )
    return list(found["labels"]), list(found["images"])


def _label(document: object) -> Label:
    if isinstance(document, str):
        return Label(document)
    if not isinstance(document, dict):
        raise InputError(f"a label: expected a string, or an object with text and threshold, got {shown(document)}")
    checks = {"text": lambda text: require_text(text, "the text of a label"), "threshold": lambda value: value}
    return Label(**checked_object(document, "a label", checks, optional={"threshold"}))


async def _classified(service: SearchService, labels: list[Label], images: list[Media]) -> list[Classification]:
    def run(encoder: Any) -> list[Classification]:  # noqa: ANN401 - a `MediaEncoder`, which takes more than a client
        with naming("labels"):
            classifier = Classifier(encoder, labels)
        return classifier.classify(cast("list[ImageItem]", images))

    if any(isinstance(image, ItemReference) for image in images):
        return await service.search(lambda searcher: run(searcher.client))
    return await service.run(run, MediaEncoder(service.client))


def _document(classified: Classification) -> dict[str, Any]:
    return {"labels": encode(classified.scores), "flagged": [score.label for score in classified.flagged]}


def _count(document: object) -> int:
    if not isinstance(document, dict):
        return 1
    lists = (document.get("labels"), document.get("images"))
    return max(1, sum(len(value) for value in lists if isinstance(value, list)))
