"""An image tower for a trained text tower: `python -m twinspire_export.sample.lit TEXT_CHECKPOINT -o runs/lit`.

LiT (locked-image tuning, Zhai et al. 2022, arXiv:2111.07991) with the roles exchanged: the text tower is a
Sentence-BERT checkpoint that stays as it is, and a ViT learns from synthetic scenes to find its image's caption. The
captions call each type of object by one noun only; `unseen_words` then asks for it by others.

Writes a checkpoint of transformers' `VisionTextDualEncoderModel` and `training.jsonl`.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import (
    AutoTokenizer,
    BertModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
    ViTModel,
)

from twinspire._cores import usable_cores
from twinspire_eval.scenes.vocabulary import Language
from twinspire_export.sample.batches import Batch, Batches, Wording
from twinspire_export.sample.data import IMAGE_SETTINGS, TrainingSettings, load_training_set
from twinspire_export.sample.train import fit, save_image_processor
from twinspire_export.text_encoder import masked_mean

CONTEXT_LENGTH = 64


def build_model(text_checkpoint: Path, seed: int) -> VisionTextDualEncoderModel:
    """Return a model of the locked text tower and an untrained ViT that ends in the text tower's space."""
    torch.manual_seed(seed)
    text = BertModel.from_pretrained(text_checkpoint, attn_implementation="eager")
    dim = int(text.config.hidden_size)
    vision = ViTModel._from_config(
        ViTConfig(
            hidden_size=160,
            intermediate_size=640,
            num_hidden_layers=6,
            num_attention_heads=5,
            image_size=IMAGE_SETTINGS.size,
            patch_size=16,
        ),
        attn_implementation="eager",
    )
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        vision.config, text.config, projection_dim=dim, logit_scale_init_value=2.659
    )
    config.text_pooling = "mean"
    model = VisionTextDualEncoderModel(config=config, vision_model=vision, text_model=text)
    with torch.no_grad():
        model.text_projection.weight.copy_(torch.eye(dim))
    for part in (model.text_model, model.text_projection):
        part.requires_grad_(requires_grad=False)
    return model


def train(
    settings: TrainingSettings, text_checkpoint: Path, out: Path, cache: Path, *, threads: int, compiled: bool = True
) -> None:
    """Train the image tower, and write the checkpoint to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    data = load_training_set(settings, cache, processes=threads)
    drawn_s = time.monotonic() - started
    torch.set_num_threads(threads)
    model = build_model(text_checkpoint, settings.seed)
    # Whole captions in the whole space: a query or a template would bring other nouns, a shorter length another space.
    settings = replace(settings, queries=0, templates=0.0, dims=(model.config.projection_dim,))
    tokenizer = AutoTokenizer.from_pretrained(text_checkpoint, local_files_only=True, use_fast=True)
    pad_id = int(tokenizer.pad_token_id)
    assert pad_id == 0, "Batches pads with 0"

    def tokenize(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, truncation=True, max_length=CONTEXT_LENGTH)["input_ids"]
        return ids

    @torch.compile(disable=not compiled)
    def embed_images(pixels: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            features: torch.Tensor = model.get_image_features(pixel_values=pixels)
        return features

    @torch.no_grad()
    def embed_texts(ids: torch.Tensor) -> torch.Tensor:
        is_token = ids != pad_id
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.text_model(input_ids=ids, attention_mask=is_token.long()).last_hidden_state
        return masked_mean(hidden.float(), is_token)[:, 0]

    def embed(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        captions = embed_texts(batch.captions)
        return embed_images(batch.pixels), captions, captions[:0]

    def save() -> None:
        model.save_pretrained(out, safe_serialization=True)
        tokenizer.save_pretrained(out)
        save_image_processor(out)

    header: dict[str, Any] = {"scenes": len(data.scenes), "drawing_s": round(drawn_s, 1), "threads": threads}
    fit(
        model,
        embed,
        Batches(data, Wording(tokenize, (Language.ENGLISH,), synonyms=False), settings),
        settings,
        out,
        save=save,
        header={**header, "text_checkpoint": text_checkpoint.name},
    )


def main(
    text_checkpoint: Annotated[
        Path, typer.Argument(help="Folder of a Sentence-BERT checkpoint of BERT's architecture.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the checkpoint and the log.")],
    cache: Annotated[Path, typer.Option(help="Folder that caches the training images.")] = Path("runs/cache"),
    steps: Annotated[int, typer.Option(min=1)] = 700,
    scenes: Annotated[int, typer.Option(min=1)] = 5_000,
) -> None:
    """Generate the training scenes and train an image tower for the text tower of TEXT_CHECKPOINT."""
    train(TrainingSettings(steps=steps, scenes=scenes), text_checkpoint, out, cache, threads=usable_cores())


if __name__ == "__main__":
    typer.run(main)
