"""Search images by text or image with a two-tower vision-language model.

    client = Client.local(sample_bundle())
    vectors = client.encode_images(["cat.jpg", "dog.jpg"])  # (2, D) float32, L2-normalised
    query = client.encode_texts(["a red cat"])  # (1, D); their inner products are cosines

The names below are loaded at first use: `import twinspire` is light, and torch, faiss and onnxruntime are imported only
when they are needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twinspire._lazy import lazy_names

if TYPE_CHECKING:
    from twinspire.async_client import AsyncClient
    from twinspire.bundle import Bundle
    from twinspire.client import Client
    from twinspire.index import Index
    from twinspire.sample import sample_bundle
    from twinspire.search import Query, Searcher
    from twinspire.stores import open_index
    from twinspire.towers import LocalTowers, TritonTowers

__all__ = [
    "AsyncClient",
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

__getattr__ = lazy_names(
    __name__,
    {
        "async_client": ["AsyncClient"],
        "bundle": ["Bundle"],
        "client": ["Client"],
        "index": ["Index"],
        "sample": ["sample_bundle"],
        "search": ["Query", "Searcher"],
        "stores": ["open_index"],
        "towers": ["LocalTowers", "TritonTowers"],
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
