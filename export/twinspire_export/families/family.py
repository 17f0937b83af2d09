"""The interface between the export and a model family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from twinspire.bundle import AudioSettings, ImageSettings, TextSettings, Tower, TowerSpecs
from twinspire_export.onnx_export import Exporter
from twinspire_export.weights import weight_files


@dataclass(frozen=True)
class CheckpointSource:
    """Where a checkpoint comes from.

    `folder` holds its files on this machine. `name` is the hub id or the folder's name (never its path), `revision` the
    hub's commit, `licence` what the model card says.
    """

    folder: Path
    name: str
    revision: str | None
    licence: str | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint(ABC):
    """An opened checkpoint: its settings as a bundle states them, its towers and reranker, and reference embeddings.

    `image`, `text` and `audio` are the settings of the towers that it has, None of those it lacks. `vectors_per_item`
    is Q where an image has several vectors, of which the best scores; others have one. `files` hold its weights,
    `tokenizer_json` is in the format of the tokenizers library, without padding and truncation, None without a text
    tower. `pooling` names how a tower pools its tokens: models that differ in it alone are different spaces.
    `logit_scale` multiplies cosines and `logit_bias` is added to them to give the logits the model was trained on.
    `reranker_name` is what the manifest calls the reranker of a checkpoint that has one.
    """

    source: CheckpointSource
    family: ModelFamily
    files: tuple[Path, ...]
    dim: int
    image: ImageSettings | None = None
    text: TextSettings | None = None
    audio: AudioSettings | None = None
    tokenizer_json: str | None = None
    pooling: str
    logit_scale: float
    logit_bias: float | None = None
    vectors_per_item: int = 1
    reranker_name: str | None = None

    @property
    def towers(self) -> TowerSpecs:
        """The towers' settings and tensors, as the bundle's manifest states them."""
        return TowerSpecs.of_contract(
            self.image,
            self.text,
            audio=self.audio,
            dim=self.dim,
            vectors_per_item=self.vectors_per_item,
            patches=self.patches,
        )

    @property
    def patches(self) -> int | None:
        """The number of patches that the image tower cuts an image into, None where it has none."""
        return None

    @abstractmethod
    def tower(self, tower: Tower) -> nn.Module:
        """Return a new module of a tower, which shares the checkpoint's weights and never writes to them.

        Its `forward` takes the tower's tensor by the name in the contract and returns L2-normalised embeddings:
        `forward(image)` uint8 (N, S, S, 3), `forward(input_ids)` int32 (N, L) or `forward(audio)` float32 (N, F, M), to
        float32 (N, D); of images with several vectors to (N, Q, D).
        """

    def embed_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode `images` (N, H, W, 3), resized and cropped, by the original code: as the tower, L2-normalised.

        Only for checkpoints with an image tower.
        """
        raise NotImplementedError

    def embed_audio(self, spectrograms: NDArray[np.float32]) -> NDArray[np.float32]:
        """Encode `spectrograms` (N, F, M) float32 by the original code: (N, D), L2-normalised.

        Only for checkpoints with an audio tower.
        """
        raise NotImplementedError

    def embed_texts(self, captions: Sequence[str]) -> NDArray[np.float32]:
        """Encode `captions` by the original tokenizer and code: (N, D), L2-normalised.

        Only for checkpoints with a text tower.
        """
        raise NotImplementedError

    def reranker(self) -> nn.Module:
        """Return a new module of the reranker, as `export_reranker` takes it, which shares weights as a tower does.

        Only for checkpoints with a `reranker_name`.
        """
        raise NotImplementedError

    def score_pairs(self, images: NDArray[np.uint8], captions: Sequence[str]) -> NDArray[np.float32]:
        """Return the probability that caption n is true of image n, by the original tokenizer and code: (N,).

        `images` (N, H, W, 3) are resized and cropped. Only for checkpoints with a `reranker_name`.
        """
        raise NotImplementedError


class ModelFamily(ABC):
    """One kind of checkpoint."""

    model_type: ClassVar[str]
    """`model_type` in config.json, which recognises a checkpoint by default; `family` in the bundle's manifest."""
    architecture: ClassVar[str]
    """The class that has the towers; `architectures` of config.json names it where `architecture_in_config`."""
    architecture_in_config: ClassVar[bool] = True
    """Whether config.json must name `architecture`; otherwise the family checks what it opens itself."""
    exporter: ClassVar[Exporter] = Exporter.TORCH
    rewrites: ClassVar[tuple[str, ...]] = ()
    """The lossless rewrites that its towers allow, names in `twinspire_export.rewrite.REWRITES`."""
    title: ClassVar[str] = ""
    """What people call it, for `twinspire export --list`."""
    examples: ClassVar[tuple[str, ...]] = ()
    """Ids of checkpoints on the Hugging Face hub, the best known first, for the same list."""
    modalities: ClassVar[tuple[str, ...]] = ("image", "text")
    """What it encodes, by the values of `twinspire.bundle.Tower`."""

    def weight_files(self, folder: Path) -> tuple[Path, ...]:
        """List the safetensors files in `folder`. Raises CheckpointError where there are none, or damaged ones."""
        return weight_files(folder)

    def recognises(self, folder: Path, config: Mapping[str, Any]) -> bool:  # noqa: ARG002 - for other families
        """Whether the checkpoint in `folder` with this config.json is of the family: by its `model_type`."""
        return bool(config.get("model_type") == self.model_type)

    @abstractmethod
    def open(self, source: CheckpointSource, files: tuple[Path, ...]) -> Checkpoint:
        """Open the checkpoint in `source.folder` with the weights `files`, in float32, running no code of its own.

        Raises CheckpointError where it lacks tensors or files or has preprocessing that a bundle cannot express;
        InputError, TypeError, ValueError and KeyError count as malformed settings.
        """
