"""Search requests as JSON, and the images that they name: no name ever opens a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from twinspire.errors import InputError
from twinspire.search import ImageResolver, SearchRequest
from twinspire_server.gateway.api.encoding import EncodedFile, ItemReference, Media
from twinspire_server.gateway.errors import GatewayError
from twinspire_server.gateway.inputs import EncodedImage, image_of

MAX_HITS = 10_000
"""The most hits that a request may rank: `offset` and `k` together."""
MAX_PARTS = 64
"""The most parts of a query, and the most boosts and pins together."""
MAX_RERANKED = 100
"""The most candidates to rerank: each is a file to decode and a run of an engine."""
MAX_CHARACTERS = 10_000
"""The most characters of all texts of a query, and of all filters: requests are keys of caches."""
_LARGEST_ID = 2**63 - 1
_EXPECTED = (
    "expected data:image/...;base64,..., item:ID of an item of the index or, in a multipart request, upload:0 for its "
    "first image"
)


def search_request(document: object, uploads: Sequence[bytes] = ()) -> SearchRequest:
    """Return the request of a JSON document: the keys of `SearchRequest.to_dict`, or `text` in place of `query`.

    Raises InputError as `SearchRequest.from_dict` does, and GatewayError for what a server does not take: too many
    hits, parts, rules or candidates to rerank.
    """
    if not isinstance(document, dict):
        raise GatewayError(400, 'the body is no JSON object: expected one such as {"text": "a red car"}')
    values = dict(document)
    if "text" in values:
        if "query" in values:
            raise GatewayError(400, "text and query exclude each other: text is a query of one text", "text")
        values["query"] = values.pop("text")
        if not isinstance(values["query"], str):
            raise GatewayError(400, "text: expected a string; query takes several parts", "text")
    if "query" not in values:
        raise GatewayError(
            400, 'the request has neither text nor query: expected one, such as {"text": "a red car"}', "query"
        )
    check_count(values, MAX_PARTS, "query")
    check_count(values, MAX_PARTS, "boosts", "pins")
    _check_characters(values)
    images = cast("ImageResolver", lambda name: media_of(name, uploads))  # which `IndexEncoder` encodes
    found = SearchRequest.from_dict(values, images=images)
    if found.depth > MAX_HITS:
        raise GatewayError(400, f"offset + k is {found.depth:,}: expected {MAX_HITS:,} at most", "k", "too_many_hits")
    if (found.rerank or 0) > MAX_RERANKED:
        message = f"rerank is {found.rerank:,}: expected {MAX_RERANKED} candidates at most"
        raise GatewayError(400, message, "rerank", "too_many_candidates")
    return found


def check_count(document: Mapping[str, Any], most: int, *keys: str) -> None:
    """Raise GatewayError where the lists at `keys` have more than `most` elements together."""
    found = sum(len(value) for key in keys if isinstance(value := document.get(key), list))
    if found > most:
        names = " and ".join(keys)
        raise GatewayError(400, f"{names}: expected {most} elements at most, got {found}", keys[0], "too_many_elements")


def _check_characters(document: Mapping[str, Any]) -> None:
    """Raise GatewayError for longer texts than a server keeps; images in data URIs do not count."""
    lists = {key: value if isinstance(value := document.get(key), list) else [value] for key in document}
    texts = [part.get("text") if isinstance(part, dict) else part for part in lists["query"]]
    rules = [*lists.get("boosts", ()), *lists.get("pins", ()), *lists.get("where", ())]
    filters = [rule.get("where") if isinstance(rule, dict) else rule for rule in rules]
    for key, values in (("query", texts), ("where", filters)):
        found = sum(len(value) for value in values if isinstance(value, str))
        if found > MAX_CHARACTERS:
            what = "texts" if key == "query" else "filters"
            raise GatewayError(
                400, f"the {what} have {found:,} characters: expected {MAX_CHARACTERS:,} at most", key, "too_long"
            )


def count_inputs(document: object) -> int:
    """Return how many texts and images a request encodes at most, with those that it reranks."""
    if not isinstance(document, dict):
        return 1
    query, rerank = document.get("query"), document.get("rerank")
    reranked = max(0, min(rerank, MAX_RERANKED)) if isinstance(rerank, int) else 0
    return (max(1, len(query)) if isinstance(query, list) else 1) + reranked


def media_of(name: str, uploads: Sequence[bytes] = ()) -> Media:
    """Return the image or sound that a request names. Raises InputError for any other name than those of the API."""
    scheme, colon, rest = name.partition(":")
    if scheme == "data" and colon:
        try:
            image = image_of(name, param="the data URI")
        except GatewayError as error:
            raise InputError(error.message) from error
        assert isinstance(image, EncodedImage)
        return EncodedFile(image.data)
    if scheme in ("item", "upload") and rest.isascii() and rest.isdecimal() and len(rest) < 20:
        number = int(rest)
        if scheme == "upload" and number < len(uploads):
            return EncodedFile(uploads[number])
        if scheme == "item" and number <= _LARGEST_ID:
            return ItemReference(number)
        if scheme == "upload":
            raise InputError(f"{name}: the request has {len(uploads)} images; {_EXPECTED}")
    shown = name if len(name) <= 60 else f"{name[:60]}…"
    raise InputError(f"{shown!r} is no image of a request: {_EXPECTED}. Files and URLs are not opened")
