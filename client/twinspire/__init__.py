"""Search images by text or image with a two-tower vision-language model.

    client = Client.local(sample_bundle())
    vectors = client.encode_images(["cat.jpg", "dog.jpg"])  # (2, D) float32, L2-normalised
    query = client.encode_texts(["a red cat"])  # (1, D); their inner products are cosines

The names below are loaded at first use: `import twinspire` is light, and torch, faiss and onnxruntime are imported only
when they are needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twinspire.bundle import Bundle
    from twinspire.client import Client
    from twinspire.index import Index
    from twinspire.sample import sample_bundle
    from twinspire.search import Query, Searcher
    from twinspire.stores import open_index
    from twinspire.towers import LocalTowers, TritonTowers

__all__ = [
    "Bundle",
    "Client",
    "Index",
    "LocalTowers",
    "Query",
    "Searcher",
    "TritonTowers",
    "open_index",
    "sample_bundle",
]

_HOMES = {
    "Bundle": "twinspire.bundle",
    "Client": "twinspire.client",
    "Index": "twinspire.index",
    "LocalTowers": "twinspire.towers",
    "Query": "twinspire.search",
    "Searcher": "twinspire.search",
    "TritonTowers": "twinspire.towers",
    "open_index": "twinspire.stores",
    "sample_bundle": "twinspire.sample",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for (PEP 562)
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
