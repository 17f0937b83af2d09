"""Measurement of an embedding peer, in its own process."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class EmbeddingPeer(Protocol):
    """What the `open_peer` of an embedding peer returns.

    `description` says what computes and how. The task has `threads`; `image_engine` and `text_engine`, the bundle's
    fp32 ONNX files; `image` and `text`, the bundle's settings; `tokenizer`, its file; `checkpoint`, a folder or None;
    `inputs`, a JSON file with the lists `files` and `texts`; `work`, an empty folder; and `options`, as the catalogue
    gives them.
    """

    description: str

    def encode_images(self, files: list[str]) -> NDArray[np.float32]:
        """Encode N image files: (N, D) float32."""

    def encode_text(self, text: str) -> NDArray[np.float32]:
        """Encode one text: (D,) float32."""


def measure(peer: EmbeddingPeer, task: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """Encode all files in one call, and the texts one by one.

    Returns `images_s`, the seconds of all images, `text_ms` of each text, and the peer's description. The vectors go to
    `images.npy` and `texts.npy` in the folder `save` of the request, where there is one.
    """
    inputs = json.loads(Path(task["inputs"]).read_text(encoding="utf-8"))
    start = time.perf_counter()
    images = peer.encode_images(inputs["files"])
    images_s = time.perf_counter() - start
    texts, text_ms = [], []
    for text in inputs["texts"]:
        start = time.perf_counter()
        texts.append(peer.encode_text(text))
        text_ms.append(1000 * (time.perf_counter() - start))
    if request["save"] is not None:
        np.save(Path(request["save"], "images.npy"), np.asarray(images, np.float32))
        np.save(Path(request["save"], "texts.npy"), np.asarray(texts, np.float32))
    return {"images_s": images_s, "text_ms": text_ms, "description": peer.description}
