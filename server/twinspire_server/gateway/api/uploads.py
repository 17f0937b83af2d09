"""`POST /v1/items`: add images to the index."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.datastructures import FormData, UploadFile

from twinspire._arguments import naming, printable
from twinspire.bundle import Tower
from twinspire.errors import ImageError, IndexLockedError, IndexReplacedError
from twinspire.ingest import FolderEvent, Happened, IngestOptions, add_images
from twinspire.search import Searcher
from twinspire.stores import Item, ItemKind, StoredItem, VectorStore, open_index
from twinspire_server.gateway.api.bodies import ERRORS, FORM, content_type, form_body, json_response, parsed, read_files
from twinspire_server.gateway.api.encoding import IndexEncoder
from twinspire_server.gateway.api.image_files import checked_suffix, write_new
from twinspire_server.gateway.api.service import SearchService, service_of
from twinspire_server.gateway.errors import GatewayError, of_twinspire

MAX_IMAGES = 64
_MAX_NAME = 200
_MOST_WAITING = 8
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            FORM: {
                "schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["image"],
                    "properties": {
                        "image": {
                            "type": "array",
                            "minItems": 1,
                            "maxItems": MAX_IMAGES,
                            "items": {"type": "string", "format": "binary"},
                        },
                        "caption": {
                            "type": "array",
                            "items": {"type": "string"},
                            "description": "One for each image, or one for all.",
                        },
                        "metadata": {
                            "type": "array",
                            "items": {"type": "string"},
                            "description": "JSON objects: one for each image, or one for all.",
                        },
                    },
                }
            }
        },
    }
}


@dataclass
class _Upload:
    """An image to add, and what became of it. `name` is the client's, for people alone."""

    name: str
    data: bytes
    caption: str
    metadata: Mapping[str, Any]
    path: Path | None = None
    is_new: bool = False
    document: dict[str, Any] = field(default_factory=dict)


def add_routes(router: APIRouter) -> None:
    """Add the route."""
    writing = asyncio.Semaphore()  # the index has one writer
    waiting = 0

    @router.post("/v1/items", summary="Add images", openapi_extra=_BODY, responses=ERRORS, tags=["items"])
    async def add(request: Request) -> Response:
        nonlocal waiting
        service = service_of(request)
        folder = _allowed(request, service)
        content_type(request, FORM)
        async with form_body(request, fields=("image", "caption", "metadata"), files=MAX_IMAGES) as form:
            images = await _read(form, service)
        if waiting >= _MOST_WAITING:
            raise of_twinspire(IndexLockedError(f"{waiting} requests wait to add images already: try again later"))
        waiting += 1
        try:
            with service.embedder.admitted(len(images)):
                async with writing:
                    return json_response(await service.search(lambda searcher: _add(searcher, service, folder, images)))
        finally:
            waiting -= 1


def _allowed(request: Request, service: SearchService) -> Path:
    """Return the folder for images. Raises GatewayError where none can be added, or without a key."""
    if getattr(request.state, "key", None) is None:
        raise GatewayError(403, "adding images needs a key: start the gateway with --keys", code="key_required")
    if service.settings.uploads is None:
        raise GatewayError(404, "no images are added here: start the gateway with --uploads DIR", code="no_uploads")
    return service.settings.uploads.absolute()


async def _read(form: FormData, service: SearchService) -> list[_Upload]:
    """Return the images of a form. Raises GatewayError and InputError for fields that cannot be used."""
    contents = await read_files(form, "image", service.client.limits)
    if not contents:
        raise GatewayError(400, "no input: pass image files in the field image", "image", "empty_input")
    captions = _each(form, "caption", len(contents)) or [""]
    documents = [parsed(text, "the field metadata") for text in _each(form, "metadata", len(contents))] or [{}]
    for caption in captions:
        with naming("caption"):
            Item("/", ItemKind.IMAGE, caption)
    for document in documents:
        with naming("metadata"):
            if not isinstance(document, dict):
                raise GatewayError(400, "metadata: expected a JSON object", "metadata")
            Item("/", ItemKind.IMAGE, metadata=document)
    images = []
    for position, (file, data) in enumerate(zip(form.getlist("image"), contents, strict=True)):
        assert isinstance(file, UploadFile)
        name = printable((file.filename or "").replace("\\", "/").rpartition("/")[2])[:_MAX_NAME]
        caption, document = captions[position % len(captions)], documents[position % len(documents)]
        images.append(_Upload(name, data, caption, {**({"name": name} if name else {}), **document}))
    return images


def _each(form: FormData, name: str, images: int) -> list[str]:
    """Return the texts of a field: none, one for all images, or one for each."""
    values = [value for value in form.getlist(name) if isinstance(value, str)]
    if len(values) != len(form.getlist(name)):
        raise GatewayError(400, f"{name} is a file: expected text", name)
    if len(values) not in (0, 1, images):
        raise GatewayError(
            400, f"{name} came {len(values)} times: expected once, or once for each of {images} images", name
        )
    return values


def _add(searcher: Searcher, service: SearchService, folder: Path, images: Sequence[_Upload]) -> dict[str, Any]:
    """Write the images' files and add them to the index; return what became of each."""
    encoder = searcher.client
    assert isinstance(encoder, IndexEncoder)
    if Tower.IMAGE not in encoder.bundle.towers:
        raise GatewayError(400, f"the model {encoder.bundle.name} encodes no images", code="unsupported_input")
    with open_index(searcher.index.uri, mode="write") as store:
        if store.space != encoder.space:
            raise IndexReplacedError(f"the index {store.uri} was replaced")  # the searcher is opened again
        placed: dict[Path, _Upload] = {}
        for image in images:
            _place(image, store, folder, service)
            if image.path is not None:
                placed.setdefault(image.path, image)
        _index(store, encoder, placed, service)
        items = len(store)
    for image in images:
        if image.path is not None and (first := placed[image.path]) is not image:  # the same twice in one request
            again = "duplicate" if first.document["status"] == "added" else first.document["status"]
            image.document = {**first.document, "name": image.name, "status": again}
    for image in placed.values():
        if image.document["status"] == "failed" and image.is_new and image.path is not None:
            image.path.unlink(missing_ok=True)
    documents = [image.document for image in images]
    statuses = [document["status"] for document in documents]
    return {
        "schema_version": 1,
        **{status: statuses.count(status) for status in ("added", "duplicate", "failed")},
        "items": documents,
        "index": {"items": items},
    }


def _place(image: _Upload, store: VectorStore, folder: Path, service: SearchService) -> None:
    """Write an image's file, unless the index has the image or it cannot be used."""
    content_hash = hashlib.sha256(image.data).hexdigest()
    image.document = {"name": image.name, "content_hash": content_hash}
    known = _known(store, content_hash)
    if known is not None:
        image.document |= {"status": "duplicate", "id": known.id}
        return
    try:
        suffix = checked_suffix(image.data, service.client.limits)
        image.path = folder / f"{content_hash}{suffix}"
        image.is_new = write_new(image.path, image.data)
    except ImageError as error:
        image.document |= {"status": "failed", "cause": error.cause}
    except OSError as error:
        raise GatewayError(
            507, f"the folder of added images cannot be written: {error.strerror or error}", code="uploads_full"
        ) from error


def _known(store: VectorStore, content_hash: str) -> StoredItem | None:
    """Return an item with this content whose file is there."""
    found = (item for item in store.find(content_hash=content_hash) if item.kind is ItemKind.IMAGE)
    return next((item for item in found if Path(item.uri).is_file()), None)


def _index(store: VectorStore, encoder: IndexEncoder, placed: Mapping[Path, _Upload], service: SearchService) -> None:
    def note(event: FolderEvent) -> None:
        document = placed[event.path].document
        if event.happened is Happened.FAILED:
            document |= {"status": "failed", "cause": event.cause}
        else:
            document |= {"status": "added", "id": event.id}

    done = 0

    def progress(more: int) -> None:
        nonlocal done
        done += more
        service.events.publish("upload", {"done": done, "total": len(placed)})

    if placed:
        add_images(
            store,
            encoder.client,
            list(placed),
            IngestOptions(captions=_Given(placed), on_event=note),
            on_progress=progress,
        )
    for image in placed.values():
        if "status" not in image.document:  # another process added it since
            image.document["status"] = "duplicate"


@dataclass(frozen=True)
class _Given:
    """Captions and metadata as they came with the images."""

    images: Mapping[Path, _Upload]

    def of(self, image: Path) -> Sequence[str]:
        """Return the caption of an image."""
        caption = self.images[image].caption
        return (caption,) if caption.strip() else ()

    def metadata_of(self, image: Path) -> Mapping[str, Any]:
        """Return the metadata of an image."""
        return self.images[image].metadata
