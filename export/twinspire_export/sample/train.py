"""Training of the sample model: `python -m twinspire_export.sample.train -o runs/sample`.

A `CLIPModel` of two small towers learns synthetic scenes by InfoNCE (CLIP, Radford et al. 2021, arXiv:2103.00020)
and a learned temperature. Hidden weight matrices are trained with Muon (Jordan et al. 2024), the rest with AdamW.
Writes a Hugging Face checkpoint folder and `training.jsonl`, one line per report.
"""

from __future__ import annotations

import json
import math
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TextIO, TypeAlias

import numpy as np
import numpy.typing as npt
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
from twinspire_eval.scenes.captions import caption
from twinspire_eval.scenes.description import Scene
from twinspire_eval.scenes.vocabulary import Language
from twinspire_export.sample.data import (
    CONTEXT_LENGTH,
    END,
    IMAGE_SETTINGS,
    PAD,
    START,
    UNKNOWN,
    TrainingSet,
    TrainingSettings,
    clip_config,
    load_training_set,
    train_tokenizer,
    training_captions,
    training_scenes,
)

MAX_LOGIT_SCALE = 100.0
LENGTH_STEP = 16
"""Token sequences are padded to a multiple of this, so that few shapes are compiled."""
SHIFT = 3
"""Training images are shifted by up to this many pixels."""

ImageTextModel: TypeAlias = CLIPModel | VisionTextDualEncoderModel
_LAYER = re.compile(r"\.layers?\.\d")  # CLIPModel calls its blocks `layers`, ViTModel `layer`


def build_model(vocabulary: int, seed: int) -> CLIPModel:
    """Return the untrained model."""
    torch.manual_seed(seed)
    config = CLIPConfig(**clip_config(vocabulary), projection_dim=128, logit_scale_init_value=math.log(1 / 0.07))
    # Plain attention: for sequences this short it compiles to faster code than the fused operator.
    model: CLIPModel = CLIPModel._from_config(config, attn_implementation="eager")
    return model


def build_optimizers(model: ImageTextModel, settings: TrainingSettings) -> list[torch.optim.Optimizer]:
    """Return Muon for the layers' matrices, and AdamW for embeddings, norms, biases, projections and temperature.

    Parameters that require no gradient are left alone.
    """
    matrices: list[torch.nn.Parameter] = []
    decayed: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if _LAYER.search(name) and parameter.ndim == 2:
            matrices.append(parameter)
        elif parameter.ndim >= 2:
            decayed.append(parameter)
        else:
            rest.append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]
    return [
        torch.optim.Muon(
            matrices,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            groups,
            lr=settings.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=settings.weight_decay,
        ),
    ]


def info_nce(model: ImageTextModel, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Return the symmetric InfoNCE loss of matching rows; `image` and `text` are (N, D), not normalised."""
    image, text = functional.normalize(image.float()), functional.normalize(text.float())
    logits = image @ text.T * model.logit_scale.exp()
    target = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


class Batches:
    """Batches of tensors: images shifted a little, captions generated anew each time.

    `tokenize` makes a caption of a scene and returns its token ids; 0 is the padding.
    """

    def __init__(
        self, data: TrainingSet, tokenize: Callable[[Scene, random.Random], list[int]], settings: TrainingSettings
    ) -> None:
        self._data = data
        self._tokenize = tokenize
        self._rng = random.Random(f"batches/{settings.seed}")
        self._positions = data.batches(settings.batch, self._rng)
        # Images reach the model as (uint8 / 255 - mean) / std, here as one multiply and one add.
        std = torch.tensor(IMAGE_SETTINGS.std).view(1, 3, 1, 1)
        self._scale = 1 / (255 * std)
        self._offset = -torch.tensor(IMAGE_SETTINGS.mean).view(1, 3, 1, 1) / std

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield pixel values (N, 3, S, S) float32 and token ids (N, L) int64, endlessly."""
        for positions in self._positions:
            images = self._data.images[np.asarray(positions)]
            down, across = (self._rng.randint(-SHIFT, SHIFT) for _ in range(2))
            pixels = torch.from_numpy(_shifted(images, down, across)).permute(0, 3, 1, 2)
            ids = [self._tokenize(self._data.scenes[position], self._rng) for position in positions]
            length = -(-max(map(len, ids)) // LENGTH_STEP) * LENGTH_STEP
            padded = [row + [0] * (length - len(row)) for row in ids]
            yield pixels * self._scale + self._offset, torch.tensor(padded)


def _shifted(images: npt.NDArray[np.uint8], down: int, across: int) -> npt.NDArray[np.uint8]:
    """Shift images, (N, S, S, 3), by some pixels, repeating the edge."""
    padded = np.pad(images, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="edge")
    side = images.shape[1]
    return np.ascontiguousarray(padded[:, SHIFT + down : SHIFT + down + side, SHIFT + across : SHIFT + across + side])


def learning_rate(step: int, settings: TrainingSettings) -> float:
    """Return the share of the full rate at a step: a linear rise, then a linear fall to zero."""
    rise = (step + 1) / settings.warmup_steps
    fall = (settings.steps - step) / (settings.steps - settings.warmup_steps)
    return max(0.0, min(1.0, rise, fall))


def train(
    settings: TrainingSettings, out: Path, cache: Path, *, threads: int, compiled: bool = True, report_every: int = 25
) -> None:
    """Train, and write the checkpoint to `out`, also after every 500 steps.

    `compiled` towers are three times as fast, after a minute of compiling.
    """
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    scenes, _ = training_scenes(settings)
    tokenizer = train_tokenizer(
        training_captions(scenes[:20_000], random.Random(settings.seed), partial=settings.partial_captions)
    )
    data = load_training_set(settings, cache, processes=threads)
    drawn_s = time.monotonic() - started
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(tokenizer.get_vocab_size(), settings.seed).to(device)

    def tokenize(scene: Scene, rng: random.Random) -> list[int]:
        language = rng.choice(list(Language))
        partial = rng.random() < settings.partial_captions
        ids: list[int] = tokenizer.encode(caption(scene, language, rng, partial=partial)).ids
        return ids

    @torch.compile(disable=not compiled)
    def embed(pixels: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(device.type, torch.bfloat16):
            return model.get_image_features(pixel_values=pixels), model.get_text_features(input_ids=ids)

    fit(
        model,
        embed,
        Batches(data, tokenize, settings),
        settings,
        out,
        save=lambda: save_checkpoint(model, tokenizer, out),
        header={"scenes": len(data.scenes), "drawing_s": round(drawn_s, 1), "threads": threads},
        report_every=report_every,
    )


def fit(
    model: ImageTextModel,
    embed: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    settings: TrainingSettings,
    out: Path,
    *,
    save: Callable[[], None],
    header: Mapping[str, Any],
    report_every: int = 25,
) -> None:
    """Minimise InfoNCE over the parameters of `model` that require gradients, and `save` it after every 500 steps.

    `embed` turns pixels and token ids into the towers' outputs, (N, D) each, not normalised. `header` and a line a
    report are written to training.jsonl in `out`.
    """
    started, cpu_started = time.monotonic(), time.process_time()
    optimizers = build_optimizers(model, settings)
    device = model.logit_scale.device
    with (out / "training.jsonl").open("w", encoding="utf-8") as log:
        parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        about = {"parameters": parameters, "device": str(device), "torch": torch.__version__}
        _report(log, {"settings": asdict(settings), **header, **about})
        losses: list[float] = []
        for step, (pixels, ids) in zip(range(settings.steps), batches, strict=False):
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = settings.learning_rate * learning_rate(step, settings)
            loss = info_nce(model, *embed(pixels.to(device), ids.to(device)))
            loss.backward()  # type: ignore[no-untyped-call]
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(MAX_LOGIT_SCALE))
            losses.append(loss.item())
            if (step + 1) % report_every == 0:
                seconds = time.monotonic() - started
                _report(
                    log,
                    {
                        "step": step + 1,
                        "loss": round(float(np.mean(losses[-report_every:])), 4),
                        "logit_scale": round(model.logit_scale.exp().item(), 2),
                        "wall_s": round(seconds, 1),
                        "cpu_s": round(time.process_time() - cpu_started, 1),
                    },
                )
            if (step + 1) % 500 == 0:
                save()
    save()


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


def _report(log: TextIO, record: dict[str, Any]) -> None:
    line = json.dumps(record)
    log.write(line + "\n")
    log.flush()
    typer.echo(line)


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
