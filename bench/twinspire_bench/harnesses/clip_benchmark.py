"""Adapter to CLIP_benchmark: a bundle as its (model, transform, tokenizer), for every metric that takes those.

    from clip_benchmark.metrics import zeroshot_retrieval
    from twinspire_bench.harnesses.clip_benchmark import load_twinspire

    model, transform, tokenizer = load_twinspire("clip-int8", precision="int8")
    zeroshot_retrieval.evaluate(model, dataloader, tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10])

Source: https://github.com/LAION-AI/CLIP_benchmark, `clip_benchmark/models/__init__.py`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from twinspire import Client, sample_bundle
from twinspire.errors import InputError

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

PADDING = -1
"""Fills the rows of token ids behind a text's end; no vocabulary has it."""


class TwinspireModel:
    """The towers of a `Client` with the methods that CLIP_benchmark calls; on the processor that runs the engines."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """Encode (N, S, S, 3) uint8, what `TwinspireTransform` gives: (N, D) float32, L2-normalised."""
        import torch

        return torch.from_numpy(self.client.towers.encode_images(images.cpu().numpy()))

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        """Encode (N, L) int32, what `TwinspireTokenizer` gives: (N, D) float32, L2-normalised."""
        import torch

        rows = [row[row != PADDING].astype(np.int32) for row in tokens.cpu().numpy()]
        return torch.from_numpy(self.client.towers.encode_texts(rows))

    def eval(self) -> TwinspireModel:
        """Return the model itself: engines are for inference alone."""
        return self

    def to(self, device: object) -> TwinspireModel:  # noqa: ARG002 - CLIP_benchmark's interface
        """Return the model itself: the provider was chosen when it was opened."""
        return self


class TwinspireTransform:
    """The preprocessing of a `Client`, from a PIL image to (S, S, 3) uint8."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def __call__(self, image: Image) -> torch.Tensor:
        """Resize and crop an image as `Client` does; the engine normalises."""
        import torch

        return torch.from_numpy(self._client.preprocess([image])[0])


class TwinspireTokenizer:
    """The tokenizer of a `Client`, from texts to (N, L) int32 with `PADDING` behind each text's end."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def __call__(self, texts: str | Sequence[str]) -> torch.Tensor:
        """Tokenize texts."""
        import torch

        rows = self._client.tokenize([texts] if isinstance(texts, str) else list(texts))
        padded = np.full((len(rows), max(map(len, rows))), PADDING, np.int32)
        for row, tokens in zip(padded, rows, strict=True):
            row[: len(tokens)] = tokens
        return torch.from_numpy(padded)


def load_twinspire(
    model_name: str | os.PathLike[str] | None = None,
    pretrained: str = "",
    cache_dir: str | None = None,  # noqa: ARG001 - CLIP_benchmark's interface
    device: object = "cpu",  # noqa: ARG001 - as above
    *,
    precision: str | None = None,
    provider: str = "auto",
) -> tuple[TwinspireModel, TwinspireTransform, TwinspireTokenizer]:
    """Open the bundle at the path `model_name`, by default the sample, as CLIP_benchmark loads models.

    `pretrained` is the precision, such as int8, as CLIP_benchmark's command passes it on; `precision` is the same by
    another name. Nothing is downloaded and `device` has no effect: `provider` chooses. Raises BundleError and
    EngineError as `Client.local` does.
    """
    if pretrained and precision and pretrained != precision:
        raise InputError(f"pretrained={pretrained!r} and precision={precision!r}: both choose the precision; give one")
    chosen = precision or pretrained or "auto"
    client = Client.local(sample_bundle() if model_name is None else model_name, precision=chosen, provider=provider)
    return TwinspireModel(client), TwinspireTransform(client), TwinspireTokenizer(client)


def register() -> None:
    """Add the model type `twinspire` to CLIP_benchmark's `load_clip`."""
    from clip_benchmark import models

    registry: dict[str, Any] = models.TYPE2FUNC
    registry["twinspire"] = load_twinspire
    if "twinspire" not in models.MODEL_TYPES:
        models.MODEL_TYPES.append("twinspire")
