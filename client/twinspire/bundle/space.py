"""`space_id`: the id of an embedding space, the set of vectors that may be compared with each other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from twinspire._codec import encode, parse_json
from twinspire.bundle.settings import AudioSettings, ImageSettings
from twinspire.errors import BundleError, InputError

_HEADER = b"twinspire space 1"
# What decides the token ids of a text. `truncation`, `padding` and `decoder` do not.
_TOKENIZER_PARTS = ("added_tokens", "normalizer", "pre_tokenizer", "post_processor")


def space_id(
    tensors: Iterable[tuple[str, str, Sequence[int], bytes | bytearray | memoryview]],
    image: ImageSettings | None,
    tokenizer_json: str | None,
    *,
    pooling: str,
    context_length: int,
    audio: AudioSettings | None = None,
) -> str:
    """Return the id of a checkpoint's embedding space: 64 hexadecimal digits.

    `tensors` are the checkpoint's own (name, dtype, shape, bytes), in any order, one in memory at a time. Also hashed
    are the preprocessing, the tokenizer (its vocabulary, merges and everything else that decides the ids), each None
    where the model has no such tower, the pooling and the context length; never ONNX files: a rewritten, quantized or
    re-exported engine keeps its space.

    The settings of an audio tower are hashed only where there is one: the spaces of other models are as before.

    Every field is hashed with its length in front, so that different inputs give different byte strings. Raises
    InputError for a repeated name or no tensors, BundleError where `tokenizer_json` is not a tokenizer.
    """
    digests: dict[str, bytes] = {}
    for name, dtype, shape, data in tensors:
        if name in digests:
            raise InputError(f"the tensor {name!r} occurs twice")
        digests[name] = _digest(name.encode(), dtype.encode(), json.dumps([int(n) for n in shape]).encode(), data)
    if not digests:
        raise InputError("no tensors: a space is identified by a checkpoint's weights")
    return _digest(
        _HEADER,
        _digest(*(digests[name] for name in sorted(digests))),
        _canonical(None if image is None else image.canonical()),
        _canonical(None if tokenizer_json is None else tokenizer_essence(tokenizer_json)),
        pooling.encode(),
        str(context_length).encode(),
        *([] if audio is None else [_canonical(encode(audio))]),
    ).hex()


def _digest(*fields: bytes | bytearray | memoryview) -> bytes:
    """Hash the fields, each with its length in bytes in front."""
    sha256 = hashlib.sha256()
    for field in fields:
        sha256.update(memoryview(field).nbytes.to_bytes(8, "big"))
        sha256.update(field)
    return sha256.digest()


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def tokenizer_essence(tokenizer_json: str) -> dict[str, Any]:
    """Return what decides the ids of texts, in a form that does not depend on the version of the library tokenizers.

    Newer versions of tokenizers write a merge as a pair where older ones wrote "a b", and add model options
    at their defaults (null, false or ""). Raises BundleError where it is no tokenizer.
    """
    try:
        document = parse_json(tokenizer_json, "tokenizer.json")
    except InputError as error:
        raise BundleError(str(error)) from error
    model = document.get("model") if isinstance(document, dict) else None
    if not isinstance(model, dict) or "vocab" not in model:
        raise BundleError("tokenizer.json has no model with a vocabulary")
    essence = {name: document.get(name) for name in _TOKENIZER_PARTS}
    essence["model"] = {name: value for name, value in model.items() if name != "merges" and not _is_default(value)}
    merges = model.get("merges") or []
    essence["merges"] = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges]
    return essence


def _is_default(value: object) -> bool:
    return value is None or value is False or value == ""  # not 0, which may be a token's id
