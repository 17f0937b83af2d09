"""Responses and errors that several dialects share, and the types of numbers that vectors may have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import orjson
import pybase64
from fastapi import Response
from numpy.typing import NDArray

from twinspire_server.gateway.embedder import Embeddings
from twinspire_server.gateway.errors import GatewayError

NumberType: TypeAlias = Literal["float", "int8", "uint8", "binary", "ubinary"]
"""float32; whole numbers of 8 bits; or one bit a component, eight in a byte."""

_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


def json_response(document: Any, status: int = 200) -> Response:  # noqa: ANN401 - JSON, with arrays
    """Return a response of JSON. NumPy's arrays are written as lists, float32 with the digits that give it back."""
    return Response(orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY), status, media_type="application/json")


def openai_response(
    found: Embeddings,
    model: str,
    *,
    rows: Sequence[Any] | None = None,
    usage: Mapping[str, int] | None = None,
    more: Mapping[str, Any] | None = None,
) -> Response:
    """Return OpenAI's list of embeddings. `rows` are the vectors as they are written, by default float32."""
    written = list(found.vectors) if rows is None else rows
    return json_response(
        {
            "object": "list",
            "data": [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(written)],
            "model": model,
            "usage": usage or {"prompt_tokens": found.tokens, "total_tokens": found.tokens},
            **(more or {}),
        }
    )


def openai_error(error: GatewayError) -> dict[str, Any]:
    """Return `{"error": {"message", "type", "param", "code"}}`."""
    kind = _ERROR_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def detail_error(error: GatewayError) -> dict[str, Any]:
    """Return `{"detail": message}`."""
    return {"detail": error.message}


def in_type(vectors: NDArray[np.float32], number_type: NumberType, *, param: str) -> NDArray[Any]:
    """Return unit vectors (N, D) float32 as numbers of another type.

    int8 is the component times 127, rounded, and uint8 that plus 128, so that inner products stay comparable. `binary`
    (int8) and `ubinary` (uint8) are (N, D / 8): a component of at least 0 is a bit 1, the first one the highest of its
    byte, and `binary` is `ubinary` minus 128. Raises GatewayError where D is no multiple of 8, `param` says where.
    """
    if number_type == "float":
        return vectors
    if number_type in ("int8", "uint8"):
        rounded = np.rint(vectors * 127)
        whole: NDArray[Any] = rounded.astype(np.int8) if number_type == "int8" else (rounded + 128).astype(np.uint8)
        return whole
    if vectors.shape[1] % 8:
        raise GatewayError(
            400,
            f"{param}: vectors of {vectors.shape[1]} components cannot be packed, expected a multiple of 8",
            param,
            "invalid_value",
        )
    packed: NDArray[np.uint8] = np.packbits(vectors >= 0, axis=1)
    signed: NDArray[np.int8] = (packed.astype(np.int16) - 128).astype(np.int8)
    return packed if number_type == "ubinary" else signed


def in_base64(vectors: NDArray[Any]) -> list[str]:
    """Return each row's bytes, little-endian, in base64."""
    little = np.ascontiguousarray(vectors.astype(vectors.dtype.newbyteorder("<"), copy=False))
    return [pybase64.b64encode_as_string(row) for row in little]
