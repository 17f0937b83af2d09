"""Settings and training data of the sample model, and its tokenizer.

The scenes are drawn once, encoded as JPEG and preprocessed by the client.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from twinspire.bundle import ImageSettings
from twinspire.images import Preprocessor
from twinspire_eval.scenes.captions import caption, in_template
from twinspire_eval.scenes.description import Scene, Split, Swap, other_kinds, sample_scenes, swapped
from twinspire_eval.scenes.drawing import draw_scene
from twinspire_eval.scenes.vocabulary import Language

PAD, START, UNKNOWN, END = "<|pad|>", "<|startoftext|>", "<|unknown|>", "<|endoftext|>"
# In this order from 0. CLIPModel treats an end id of 2 as a legacy case, so the end token is not the third.
SPECIAL_TOKENS = (PAD, START, UNKNOWN, END)

IMAGE_SETTINGS = ImageSettings.centre_crop(
    112,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
JPEG_QUALITY = 90
CONTEXT_LENGTH = 64
VOCABULARY_SIZE = 1024


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of a training run.

    `scenes` descriptions are sampled, each with three siblings that differ in one respect: other kinds, or exchanged
    colours, sides or kinds. They are hard negatives in the same batch, which teaches kinds and binding.
    """

    scenes: int = 25_000
    steps: int = 4_500
    batch: int = 256
    queries: int = 128
    """Short queries in a batch, beside a caption of each image."""
    dims: tuple[int, ...] = (128, 64, 32)
    """Lengths to which an embedding may be cut (Kusupati et al. 2022, arXiv:2205.13147)."""
    warmup_steps: int = 100
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    partial_captions: float = 0.25
    templates: float = 0.1
    seed: int = 2026


def clip_config(vocabulary: int) -> dict[str, dict[str, Any]]:
    """Return the keyword arguments of a `CLIPConfig` for the sample's two towers."""
    return {
        "text_config": {
            "vocab_size": vocabulary,
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": CONTEXT_LENGTH,
            "pad_token_id": SPECIAL_TOKENS.index(PAD),
            "bos_token_id": SPECIAL_TOKENS.index(START),
            "eos_token_id": SPECIAL_TOKENS.index(END),
        },
        "vision_config": {
            "hidden_size": 160,
            "intermediate_size": 640,
            "num_hidden_layers": 6,
            "num_attention_heads": 5,
            "image_size": IMAGE_SETTINGS.size,
            "patch_size": 16,
        },
    }


@dataclass(frozen=True)
class TrainingSet:
    """Training images in units: a scene and its siblings, which stay together in a batch.

    `images` is (N, S, S, 3) uint8, in the order of `scenes`; `units` holds the positions.
    """

    scenes: list[Scene]
    images: npt.NDArray[np.uint8]
    units: list[tuple[int, ...]]

    def batches(self, batch: int, rng: random.Random) -> Iterator[list[int]]:
        """Yield the positions of `batch` scenes at a time, endlessly, every scene once an epoch."""
        pending: list[int] = []
        while True:
            for unit in rng.sample(self.units, len(self.units)):
                pending.extend(unit)
                if len(pending) >= batch:
                    yield pending[:batch]
                    pending = pending[batch:]


def training_scenes(settings: TrainingSettings) -> tuple[list[Scene], list[tuple[int, ...]]]:
    """Return the scenes of a training run and their units."""
    rng = random.Random(settings.seed)
    scenes: list[Scene] = []
    units: list[tuple[int, ...]] = []
    for scene in sample_scenes(settings.scenes, seed=settings.seed, split=Split.TRAIN):
        siblings = _siblings(scene, rng)
        units.append(tuple(range(len(scenes), len(scenes) + len(siblings))))
        scenes.extend(siblings)
    return scenes, units


def _siblings(scene: Scene, rng: random.Random) -> list[Scene]:
    """Return a scene and three hard negatives, each of which differs in one respect, so that the loss must learn it.

    Random scenes alone teach only colours, sides and backgrounds, which suffice to distinguish them, not the objects.
    """
    if len(scene.groups) == 1:
        siblings = [other_kinds(scene, rng) for _ in range(3)]
    else:
        kinds = other_kinds(scene, rng) if rng.random() < 0.5 else swapped(scene, Swap.KINDS, rng)
        siblings = [swapped(scene, Swap.COLOURS, rng), swapped(scene, Swap.SIDES, rng), kinds]
    return [scene, *(sibling for sibling in siblings if sibling is not None)]


def load_training_set(settings: TrainingSettings, cache: Path, *, processes: int) -> TrainingSet:
    """Draw the training images, or read them from `cache` where they were drawn before."""
    scenes, units = training_scenes(settings)
    size = IMAGE_SETTINGS.size
    file = cache / f"scenes-{settings.seed}-{settings.scenes}-{size}.npy"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        images: np.memmap[Any, np.dtype[np.uint8]] = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
            part, mode="w+", dtype=np.uint8, shape=(len(scenes), size, size, 3)
        )
        with get_context("spawn").Pool(processes) as pool:
            jobs = ((scene, settings.seed, position) for position, scene in enumerate(scenes))
            for position, image in enumerate(pool.imap(_draw, jobs, chunksize=64)):
                images[position] = image
        images.flush()
        part.rename(file)
    return TrainingSet(scenes, np.load(file, mmap_mode="r"), units)


def _draw(job: tuple[Scene, int, int]) -> npt.NDArray[np.uint8]:
    """Draw one image as the image tower will see it, (S, S, 3) uint8."""
    scene, seed, position = job
    encoded = io.BytesIO()
    drawn = draw_scene(scene, random.Random(f"picture/train/{seed}/{position}"))
    drawn.save(encoded, "JPEG", quality=JPEG_QUALITY)
    return Preprocessor(IMAGE_SETTINGS, threads=1).one(encoded.getvalue())


def training_captions(scenes: list[Scene], rng: random.Random) -> Iterator[str]:
    """Yield one caption per scene and language, some of them in a template, for the tokenizer."""
    for scene in scenes:
        for language in Language:
            text = caption(scene, language, rng)
            yield in_template(text, language, rng) if rng.random() < TrainingSettings.templates else text


def train_tokenizer(captions: Iterable[str]) -> Tokenizer:
    """Train a byte-level BPE tokenizer on captions of both languages.

    Every text has tokens: unknown words fall back to bytes. Case and full-width forms do not matter.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Strip(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Prepend(" "),
        ]
    )
    # Words in English; single characters in Chinese, which does not separate words, so that any mix of them is known.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{Han}"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (START, END)],
    )
    return tokenizer
