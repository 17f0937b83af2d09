"""BLIP-2's image-text contrast: checkpoints of transformers' `Blip2ForImageTextRetrieval`.

https://arxiv.org/abs/2301.12597. A Q-Former turns an image into some 32 vectors, by learned queries that attend to the
tokens of a ViT, and a text into one. The score is the largest of the cosines. The matching head (ITM) takes a pair, of
which the Q-Former reads both together: it is the bundle's reranker.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BertTokenizerFast, Blip2ForImageTextRetrieval, BlipImageProcessor

from twinspire.bundle import ImageSettings, Interpolation, Resize, TextSettings, Tower
from twinspire.errors import CheckpointError
from twinspire_export.dependencies import silenced
from twinspire_export.families.bert_text import load_bert_tokenizer, text_settings
from twinspire_export.families.family import CheckpointSource, ModelFamily
from twinspire_export.families.huggingface import (
    HuggingFaceCheckpoint,
    image_settings,
    load_model,
    load_processor,
    tokenizer_json,
    unit_rows,
)
from twinspire_export.q_former import Blip2ImageTower, Blip2Matcher, Blip2TextTower
from twinspire_export.weights import stored_shapes

_BATCH = 8
_MATCHING_HEAD = "itm_head."


class Blip2Family(ModelFamily):
    """A ViT read by a Q-Former, whose layers encode texts too."""

    model_type = "blip-2"
    architecture = "Blip2ForImageTextRetrieval"
    title = "BLIP-2, image-text contrast"
    examples = ("Salesforce/blip2-itm-vit-g",)
    # Not `norms` and `pooled`: the Q-Former reads all of the ViT's tokens, behind its last norm.
    rewrites = ("normalisation", "patches", "scale", "qkv")

    def open(self, source: CheckpointSource, files: tuple[Path, ...]) -> Blip2Checkpoint:
        """Open a checkpoint. Raises what `ModelFamily.open` says."""
        folder = source.folder
        with silenced("transformers"):
            processor = load_processor(BlipImageProcessor, folder)
            tokenizer = load_bert_tokenizer(folder, BertTokenizerFast)
            matches = any(name.startswith(_MATCHING_HEAD) for name in stored_shapes(files))
            unused = None if matches else _MATCHING_HEAD
            model: Any = load_model(Blip2ForImageTextRetrieval, folder, files, unused=unused)
        config = model.config
        _check_config(config, folder)
        serialised = _without_image_token(tokenizer_json(tokenizer, folder), config.image_token_index)
        return Blip2Checkpoint(
            source=source,
            family=self,
            files=files,
            dim=int(config.image_text_hidden_size),
            vectors_per_item=int(config.num_query_tokens),
            image=_image_settings(processor, config.vision_config, folder),
            text=_text_settings(tokenizer, serialised, model, folder),
            tokenizer_json=serialised,
            pooling=f"{config.num_query_tokens} queries; first token",
            # The temperature of the training is no part of transformers' checkpoints: their logits are the cosines.
            logit_scale=1.0,
            reranker_name="itm" if matches else None,
            model=model,
            tokenizer=tokenizer,
            processor=processor,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Blip2Checkpoint(HuggingFaceCheckpoint):
    """An opened `Blip2ForImageTextRetrieval`."""

    def tower(self, tower: Tower) -> nn.Module:
        """Return a new module of a tower that computes what transformers computes, step by step."""
        module = Blip2ImageTower(self.model, self.image) if tower is Tower.IMAGE else Blip2TextTower(self.model)
        return module.eval()

    def embed_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode `images` (N, S, S, 3), resized, with transformers' `forward`: (N, Q, D), L2-normalised."""
        empty = self._ids("")
        rows = []
        for start in range(0, len(images), _BATCH):
            some = list(images[start : start + _BATCH])
            pixels = self.processor(some, do_resize=False, return_tensors="pt")["pixel_values"]
            rows.append(unit_rows(self._run(pixels, empty).image_embeds))
        return np.concatenate(rows)

    def embed_texts(self, captions: Sequence[str]) -> NDArray[np.float32]:
        """Encode `captions` one at a time, so that nothing is padded, with transformers' `forward`: (N, D)."""
        pixels = torch.zeros(1, 3, self.image.height, self.image.width)
        return np.concatenate([unit_rows(self._run(pixels, self._ids(text)).text_embeds) for text in captions])

    def reranker(self) -> nn.Module:
        """Return a new module of the Q-Former over a pair and its matching head."""
        return Blip2Matcher(self.model, self.image).eval()

    def score_pairs(self, images: NDArray[np.uint8], captions: Sequence[str]) -> NDArray[np.float32]:
        """Score pairs one at a time, so that nothing is padded, with transformers' `forward`: (N,), from 0 to 1."""
        scores = []
        for image, caption in zip(images, captions, strict=True):
            pixels = self.processor([image], do_resize=False, return_tensors="pt")["pixel_values"]
            logits = self._run(pixels, self._ids(caption), use_image_text_matching_head=True).logits_per_image  # (1, 2)
            scores.append(logits.softmax(dim=1)[:, 1].numpy())
        return np.concatenate(scores)

    def _ids(self, text: str) -> Tensor:
        ids: Tensor = self.tokenizer(
            text, truncation=True, max_length=self.text.context_length, return_tensors="pt"
        ).input_ids
        return ids

    def _run(self, pixels: Tensor, ids: Tensor, **options: bool) -> Any:  # noqa: ANN401 - transformers' output
        if self.model.config.image_token_index is not None:  # `forward` cuts off the place of the image
            ids = nn.functional.pad(ids, (self.vectors_per_item, 0))
        with torch.inference_mode():
            return self.model(pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids), **options)


def _check_config(config: Any, folder: Path) -> None:  # noqa: ANN401 - transformers' config
    """Raise CheckpointError for a Q-Former that the towers do not compute."""
    qformer = config.qformer_config
    if not qformer.use_qformer_text_input:
        raise CheckpointError(
            f"the checkpoint {folder} has a Q-Former for images alone ('use_qformer_text_input' in config.json): "
            "expected one that encodes texts too, such as that of Salesforce/blip2-itm-vit-g"
        )
    if getattr(qformer, "position_embedding_type", "absolute") != "absolute":
        raise CheckpointError(
            f"the checkpoint {folder} has the 'position_embedding_type' {qformer.position_embedding_type!r} in "
            "config.json: expected absolute"
        )


def _without_image_token(serialised: str, image_token: int | None) -> str:
    """Leave out the token that transformers' processor puts in the image's place: no text has it, and no embedding."""
    document = json.loads(serialised)
    kept = [token for token in document["added_tokens"] if token["id"] != image_token]
    if len(kept) == len(document["added_tokens"]):
        return serialised
    document["added_tokens"] = kept
    return str(Tokenizer.from_str(json.dumps(document)).to_str())


def _image_settings(processor: Any, vision_config: Any, folder: Path) -> ImageSettings:  # noqa: ANN401
    """Translate the image processor, which stretches to a square. Raises CheckpointError where it does not."""
    # Its config has no number of channels: always 3.
    taken = SimpleNamespace(image_size=vision_config.image_size, num_channels=3)
    settings = image_settings(processor, taken, folder)
    found = (settings.resize, settings.interpolation, bool(processor.do_normalize))
    if found != (Resize.STRETCH, Interpolation.BICUBIC, True):
        raise CheckpointError(
            f"{folder / 'preprocessor_config.json'}: 'size' is {dict(processor.size)}, 'resample' "
            f"{processor.resample}, 'do_normalize' {processor.do_normalize}; expected images stretched to the size of "
            "config.json by bicubic interpolation (3), and normalised"
        )
    return settings


def _text_settings(tokenizer: BertTokenizerFast, serialised: str, model: Any, folder: Path) -> TextSettings:  # noqa: ANN401
    """Translate BERT's tokenizer. Raises CheckpointError where it is another one, or that of another model."""
    if (json.loads(serialised)["normalizer"] or {}).get("type") != "BertNormalizer":
        raise CheckpointError(
            f"{folder}: the tokenizer has no BERT normalizer, which lowercases and splits texts: its ids would be "
            "those of other words. Copy tokenizer.json from the model's repository"
        )
    encoder = SimpleNamespace(embeddings=model.embeddings, config=model.config.qformer_config)
    return text_settings(tokenizer, serialised, encoder, folder)
