"""Adapters to MTEB and MIEB 2: a bundle as an `EncoderProtocol`, and with an index as a `SearchProtocol`.

    import mteb
    from twinspire_bench.harnesses.mteb import TwinspireEncoder, TwinspireSearch

    mteb.evaluate(TwinspireEncoder("clip-int8", "int8"), mteb.get_tasks(["XM3600T2IRetrieval"]))
    mteb.evaluate(TwinspireSearch("clip-int8", "int8", spec="ivf,pq64x4", folder="work"), ...)

Source: https://github.com/embeddings-benchmark/mteb, `mteb/models/models_protocols.py`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twinspire import Client, sample_bundle
from twinspire.errors import InputError

if TYPE_CHECKING:
    from mteb.models.model_meta import ModelMeta

    from twinspire.index import Index

_CHUNK = 256


class TwinspireEncoder:
    """A bundle's engines of one precision, which encode texts and images; both together are the sum of the two."""

    def __init__(
        self,
        model_name: str | os.PathLike[str] | None = None,
        revision: str | None = None,
        *,
        device: str | None = None,  # noqa: ARG002 - MTEB's interface; the provider chooses
        provider: str = "auto",
        **_: Any,  # noqa: ANN401 - MTEB's interface
    ) -> None:
        """Open the bundle at the path `model_name`, by default the sample; `revision` is the precision."""
        self.precision = revision or "auto"
        bundle = sample_bundle() if model_name is None else model_name
        self.client = Client.local(bundle, precision=self.precision, provider=provider)

    def encode(self, inputs: Any, **_: Any) -> NDArray[np.float32]:  # noqa: ANN401 - a DataLoader
        """Encode a DataLoader's batches: (N, D) float32, L2-normalised. Raises InputError for other modalities."""
        return np.concatenate([self._encode(batch) for batch in inputs])

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:  # noqa: ANN401 - arrays or tensors
        """Return the cosine of each row of one with each of the other, a tensor (N, M)."""
        import torch

        left, right = (torch.as_tensor(np.atleast_2d(np.asarray(each))) for each in (embeddings1, embeddings2))
        return left @ right.T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:  # noqa: ANN401 - as above
        """Return the cosine of each row of one with the same row of the other, a tensor (N,)."""
        import torch

        left, right = (torch.as_tensor(np.atleast_2d(np.asarray(each))) for each in (embeddings1, embeddings2))
        return (left * right).sum(dim=-1)

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """What MTEB writes about the model: its name is `twinspire/BUNDLE`, its revision the precision."""
        from mteb.models.model_meta import ModelMeta

        bundle = self.client.bundle
        return ModelMeta.create_empty(
            overwrites={
                "name": f"twinspire/{bundle.name}",
                "revision": f"{self.precision}-{bundle.space[:12]}",
                "embed_dim": bundle.dim,
                "modalities": [tower.value for tower in bundle.towers],
                "similarity_fn_name": "cosine",
            }
        )

    def _encode(self, batch: dict[str, Any]) -> NDArray[np.float32]:
        found = []
        if "image" in batch:
            found.append(self.client.encode_images([image.convert("RGB") for image in batch["image"]]))
        if "text" in batch:
            found.append(self.client.encode_texts(list(batch["text"])))
        if not found:
            raise InputError(f"a batch has {', '.join(batch) or 'nothing'}: expected image or text")
        if len(found) == 1:
            return found[0]
        total = found[0] + found[1]
        return np.asarray(total / np.linalg.norm(total, axis=1, keepdims=True), np.float32)


class TwinspireSearch:
    """A bundle's engines with an index of a kind: engine, precision and index are scored together.

    `spec` is what `twinspire index build` takes, such as "flat", "ivf,pq64x4" or "hnsw". Each corpus is a new index in
    a folder of its own below `folder`, by default a temporary one.
    """

    def __init__(
        self,
        model_name: str | os.PathLike[str] | None = None,
        revision: str | None = None,
        *,
        spec: str = "flat",
        effort: int | None = None,
        folder: str | os.PathLike[str] | None = None,
        device: str | None = None,
        provider: str = "auto",
        **_: Any,  # noqa: ANN401 - MTEB's interface
    ) -> None:
        self._encoder = TwinspireEncoder(model_name, revision, device=device, provider=provider)
        self._spec, self._effort = spec, effort
        self._temporary = tempfile.TemporaryDirectory(prefix="twinspire-mteb-") if folder is None else None
        self._folder = Path(self._temporary.name if self._temporary is not None else folder or ".")
        self._index: Index | None = None

    def index(self, corpus: Any, **_: Any) -> None:  # noqa: ANN401 - MTEB's interface
        """Encode a corpus, add it to a new index and build the index. Raises InputError for an unknown spec."""
        from twinspire.index import Index, Item, ItemKind

        self.close()
        client = self._encoder.client
        kind = ItemKind.IMAGE if "image" in corpus.column_names else ItemKind.TEXT
        self._folder.mkdir(parents=True, exist_ok=True)
        path = Path(tempfile.mkdtemp(prefix="corpus-", dir=self._folder))
        self._index = Index.create(path, space=client.space, dim=client.bundle.dim)
        for rows in _chunks(corpus):
            items = [Item(uri=str(row["id"]), kind=kind) for row in rows]
            self._index.add(self._encode(rows), items, space=client.space)
        self._index.build(self._spec)

    def search(
        self,
        queries: Any,  # noqa: ANN401 - MTEB's interface
        *,
        top_k: int,
        top_ranked: Any = None,  # noqa: ANN401 - as above
        **_: Any,  # noqa: ANN401 - as above
    ) -> dict[str, dict[str, float]]:
        """Return the best `top_k` documents of each query with their scores, by id.

        Raises InputError for a reranking task, which searches no index, and where no corpus was indexed.
        """
        if top_ranked is not None:
            raise InputError("a reranking task ranks given documents: expected TwinspireEncoder, which has no index")
        if self._index is None:
            raise InputError("nothing was indexed: call index before search")
        found: dict[str, dict[str, float]] = {}
        for rows in _chunks(queries):
            hits = self._index.search(
                self._encode(rows), k=top_k, space=self._encoder.client.space, effort=self._effort
            )
            found |= {
                str(row["id"]): {hit.uri: hit.score for hit in some} for row, some in zip(rows, hits, strict=True)
            }
        return found

    def close(self) -> None:
        """Close the index."""
        if self._index is not None:
            self._index.close()
            self._index = None

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """That of the encoder, with the index in the revision."""
        meta = self._encoder.mteb_model_meta
        spec = "".join(letter if letter.isalnum() else "-" for letter in self._spec)
        return meta.model_copy(update={"revision": f"{meta.revision}-{spec}"})

    def _encode(self, rows: Sequence[dict[str, Any]]) -> NDArray[np.float32]:
        columns = [name for name in ("image", "text") if rows[0].get(name) is not None]
        return self._encoder.encode([{name: [row[name] for row in rows] for name in columns}])


def _chunks(rows: Any) -> Iterator[list[dict[str, Any]]]:  # noqa: ANN401 - a datasets.Dataset
    remaining = iter(rows)
    while chunk := list(islice(remaining, _CHUNK)):
        yield chunk
