"""Training of the sample model: `python -m twinspire_export.sample.train -o runs/sample`.

A `CLIPModel` of two small towers learns synthetic scenes by InfoNCE (CLIP, Radford et al. 2021, arXiv:2103.00020)
and a learned temperature. Hidden weight matrices are trained with Muon (Jordan et al. 2024), the rest with AdamW.
Writes a Hugging Face checkpoint folder and `training.jsonl`, one line per report.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import torch
import typer
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    VisionTextDualEncoderModel,
)

from twinspire._cores import usable_cores
from twinspire_export.sample.batches import Batch, Batches, Wording
from twinspire_export.sample.data import (
    CONTEXT_LENGTH,
    END,
    IMAGE_SETTINGS,
    PAD,
    START,
    UNKNOWN,
    TrainingSettings,
    clip_config,
    load_training_set,
    train_tokenizer,
    training_captions,
    training_scenes,
)
from twinspire_export.sample.minimise import minimise

MAX_LOGIT_SCALE = 100.0
QUERY_WEIGHT = 0.5
"""Weight of the short queries' loss beside that of the captions, which looks in both directions."""

ImageTextModel: TypeAlias = CLIPModel | VisionTextDualEncoderModel


def build_model(vocabulary: int, seed: int) -> CLIPModel:
    """Return the untrained model."""
    torch.manual_seed(seed)
    config = CLIPConfig(**clip_config(vocabulary), projection_dim=128, logit_scale_init_value=math.log(1 / 0.07))
    # Plain attention: for sequences this short it compiles to faster code than the fused operator.
    model: CLIPModel = CLIPModel._from_config(config, attn_implementation="eager")
    return model


def contrastive_loss(
    image: torch.Tensor,
    captions: torch.Tensor,
    queries: torch.Tensor,
    captions_true: torch.Tensor,
    queries_true: torch.Tensor,
    scale: torch.Tensor,
) -> torch.Tensor:
    """Return the InfoNCE loss of a batch whose texts may be true of several images.

    `image` (N, D), `captions` (N, D) and `queries` (Q, D) are not normalised; `captions_true` (N, N) and `queries_true`
    (Q, N) are those of a `Batch`. Each image of which a text is true has to win against all of which it is not; each
    caption of an image against all texts that are not true of it. Where a caption is true of its image alone and there
    are no queries, this is CLIP's symmetric loss.
    """
    image, captions, queries = (functional.normalize(rows.float()) for rows in (image, captions, queries))
    caption_logits, query_logits = (scale * texts @ image.T for texts in (captions, queries))
    untrue = _hide(torch.cat([caption_logits, query_logits]), torch.cat([captions_true, queries_true]))
    to_image = _against(caption_logits, untrue[: len(captions)], captions_true, dim=1)
    to_caption = _against(caption_logits, untrue, captions_true, dim=0)
    loss = (to_image + to_caption) / 2
    if len(queries):
        loss = loss + QUERY_WEIGHT * _against(query_logits, untrue[len(captions) :], queries_true, dim=1)
    return loss


def _hide(logits: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    return logits.masked_fill(where, -1e4)


def _against(logits: torch.Tensor, untrue: torch.Tensor, true: torch.Tensor, dim: int) -> torch.Tensor:
    """Return the mean over the other dimension of the cross-entropy of the true logits against the untrue ones."""
    losses = functional.softplus(untrue.logsumexp(dim, keepdim=True) - logits) * true
    return (losses.sum(dim) / true.sum(dim).clamp(min=1)).mean()


def matryoshka_loss(
    model: ImageTextModel, outputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor], batch: Batch, dims: Sequence[int]
) -> torch.Tensor:
    """Return the loss of the first `dims` components of the towers' outputs, each length half as heavy as the last."""
    weights = [0.5**position for position in range(len(dims))]
    total = torch.zeros(())
    for weight, dim in zip(weights, dims, strict=True):
        image, captions, queries = (rows[:, :dim] for rows in outputs)
        scale = model.logit_scale.exp()
        total = total + weight * contrastive_loss(
            image, captions, queries, batch.captions_true, batch.queries_true, scale
        )
    return total / sum(weights)


def train(
    settings: TrainingSettings, out: Path, cache: Path, *, threads: int, compiled: bool = True, report_every: int = 25
) -> None:
    """Train, and write the checkpoint to `out`, also after every 500 steps.

    `compiled` towers are three times as fast, after a minute of compiling.
    """
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    scenes, _ = training_scenes(settings)
    tokenizer = train_tokenizer(training_captions(scenes[:20_000], random.Random(settings.seed)))
    data = load_training_set(settings, cache, processes=threads)
    drawn_s = time.monotonic() - started
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(tokenizer.get_vocab_size(), settings.seed).to(device)

    # Fixed shapes: a batch of images, and texts of a few lengths.
    @torch.compile(disable=not compiled, dynamic=False)
    def embed_images(pixels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            features: torch.Tensor = model.get_image_features(pixel_values=pixels)
        return features

    @torch.compile(disable=not compiled, dynamic=False)
    def embed_texts(ids: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            features: torch.Tensor = model.get_text_features(input_ids=ids)
        return features

    def tokenize(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text).ids
        return ids

    fit(
        model,
        lambda batch: (embed_images(batch.pixels), embed_texts(batch.captions), embed_texts(batch.queries)),
        Batches(data, Wording(tokenize), settings),
        settings,
        out,
        save=lambda: save_checkpoint(model, tokenizer, out),
        header={"scenes": len(data.scenes), "drawing_s": round(drawn_s, 1), "threads": threads},
        report_every=report_every,
    )


def fit(
    model: ImageTextModel,
    embed: Callable[[Batch], tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    batches: Iterable[Batch],
    settings: TrainingSettings,
    out: Path,
    *,
    save: Callable[[], None],
    header: Mapping[str, Any],
    report_every: int = 25,
) -> None:
    """Minimise the loss over the parameters of `model` that require gradients; see `minimise` for the rest.

    `embed` turns a batch into the towers' outputs for its images, captions and queries, not normalised.
    """
    device = model.logit_scale.device

    def loss_of(batch: Batch) -> torch.Tensor:
        batch = batch.to(device)
        return matryoshka_loss(model, embed(batch), batch, settings.dims)

    def clamp() -> None:
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(MAX_LOGIT_SCALE))

    minimise(
        model,
        loss_of,
        batches,
        settings,
        out,
        save=save,
        header={"settings": asdict(settings), **header},
        after_step=clamp,
        state=lambda: {"logit_scale": round(model.logit_scale.exp().item(), 2)},
        report_every=report_every,
    )


def save_checkpoint(model: CLIPModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a checkpoint that `twinspire export` reads: safetensors, config, tokenizer, preprocessing."""
    model.save_pretrained(folder, safe_serialization=True)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=CONTEXT_LENGTH,
        pad_token=PAD,
        bos_token=START,
        unk_token=UNKNOWN,
        eos_token=END,
    ).save_pretrained(folder)
    save_image_processor(folder)


def save_image_processor(folder: Path) -> None:
    """Write preprocessor_config.json: the preprocessing of the scenes, `IMAGE_SETTINGS`."""
    CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SETTINGS.shortest_side},
        crop_size={"height": IMAGE_SETTINGS.height, "width": IMAGE_SETTINGS.width},
        image_mean=list(IMAGE_SETTINGS.mean),
        image_std=list(IMAGE_SETTINGS.std),
    ).save_pretrained(folder)


def main(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the checkpoint and the log.")],
    cache: Annotated[Path, typer.Option(help="Folder that caches the training images.")] = Path("runs/cache"),
    steps: Annotated[int, typer.Option(min=1)] = TrainingSettings.steps,
    scenes: Annotated[int, typer.Option(min=1)] = TrainingSettings.scenes,
) -> None:
    """Generate the training scenes and train the sample model on them."""
    settings = TrainingSettings(steps=steps, scenes=scenes)
    train(settings, out, cache, threads=usable_cores())


if __name__ == "__main__":
    typer.run(main)
