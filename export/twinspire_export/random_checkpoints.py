"""Checkpoints of published sizes with random weights: `python -m twinspire_export.random_checkpoints`.

For tests and benchmarks where no trained weights are available. transformers' own initialisation is meant for training:
its attention is nearly uniform, its norms are ones and zeros, and the embeddings of different images have a cosine of
0.999. The weights here are random but vary as in a trained model (cosines of 0.4 to 0.9 between photographs): such a
tower has the speed and the rounding errors of a trained one, but no recall.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from twinspire.errors import InputError, TwinspireError
from twinspire_eval.scenes import Split, scene_set
from twinspire_export.dependencies import Extra, require
from twinspire_export.random_families import FamilySize, make_family

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedModel, PreTrainedTokenizerFast

MERGES_NAME = "bpe_simple_vocab_16e6.txt.gz"
"""OpenAI's file of byte-pair merges, https://github.com/openai/CLIP/tree/main/clip."""

VOCABULARY_SIZE = 49408
CONTEXT_LENGTH = 77
START, END = "<|startoftext|>", "<|endoftext|>"

_SCENES = 2_000
_SCENE_TOKENS = 1_000  # every word of the captions is one token

_LOGIT_PARAMETERS = {"logit_scale": math.log(100), "logit_bias": -10.0}
_CAPTIONS = (
    "a red car to the left of a green tree",
    "two boats on the sea at night",
    "three people stand in the snow",
    "a photo of a dog in a meadow",
    "一辆红色的汽车在绿树的左边",
    "夜晚的海上有两艘小船",
    "一只猫坐在草地上",
)


class ModelSize(StrEnum):
    """OpenAI's vision transformers, and one that is small enough for trying a benchmark."""

    TINY = "tiny"
    VIT_B_32 = "vit-b-32"
    VIT_B_16 = "vit-b-16"
    VIT_L_14 = "vit-l-14"
    VIT_L_14_336 = "vit-l-14-336"


@dataclass(frozen=True)
class ModelShape:
    """The dimensions in which the sizes differ; all others follow from them."""

    image_size: int
    patch_size: int
    image_width: int
    image_layers: int
    text_width: int
    text_layers: int
    dim: int


SHAPES = {
    ModelSize.TINY: ModelShape(64, 16, 64, 2, 64, 2, 64),
    ModelSize.VIT_B_32: ModelShape(224, 32, 768, 12, 512, 12, 512),
    ModelSize.VIT_B_16: ModelShape(224, 16, 768, 12, 512, 12, 512),
    ModelSize.VIT_L_14: ModelShape(224, 14, 1024, 24, 768, 12, 768),
    ModelSize.VIT_L_14_336: ModelShape(336, 14, 1024, 24, 768, 12, 768),
}
"""As in the config.json of OpenAI's repositories, `tiny` aside; heads are 64 wide, MLPs four times the width."""


def random_model(
    size: ModelSize,
    *,
    seed: int = 0,
    layers: int | None = None,
    start_id: int = VOCABULARY_SIZE - 2,
    end_id: int = VOCABULARY_SIZE - 1,
) -> CLIPModel:
    """Return a `CLIPModel` of `size` in float32 whose weights depend only on their names and `seed`.

    `layers` is the depth of both towers, by default the published one; `start_id` is the first token of each text, and
    `end_id` the token at which the text tower is pooled, or 2 as in older configs.
    """
    require(Extra.EXPORT, "making a random model")
    from transformers import CLIPConfig, CLIPModel
    from transformers.modeling_utils import no_init_weights

    shape = SHAPES[size]
    config = CLIPConfig(
        text_config={
            **_tower(shape.text_width, layers or shape.text_layers),
            "vocab_size": VOCABULARY_SIZE,
            "max_position_embeddings": CONTEXT_LENGTH,
            "bos_token_id": start_id,
            "eos_token_id": end_id,
            "pad_token_id": VOCABULARY_SIZE - 1,
        },
        vision_config={
            **_tower(shape.image_width, layers or shape.image_layers),
            "image_size": shape.image_size,
            "patch_size": shape.patch_size,
        },
        projection_dim=shape.dim,
    )
    with no_init_weights():
        model = CLIPModel(config).eval()
    randomize_weights(model, seed=seed)
    return model


def randomize_weights(model: PreTrainedModel, *, seed: int = 0) -> None:
    """Overwrite every parameter of `model`, in float32, by random values that depend only on its name and `seed`."""
    for name, parameter in model.named_parameters():
        _randomize(name, parameter.detach().numpy(), seed)


def save_random_checkpoint(
    size: ModelSize | FamilySize,
    folder: Path,
    *,
    seed: int = 0,
    vocabulary: Path | None = None,
    layers: int | None = None,
) -> Path:
    """Write a checkpoint of `size` as transformers would: safetensors, config, tokenizer and preprocessing.

    `vocabulary` is a folder that holds `bpe_simple_vocab_16e6.txt.gz`, for CLIP; without it the tokenizer is a small
    stand-in trained on the captions of synthetic scenes, which gives them about as many tokens as the original does.
    `layers` is as in `random_model`. Raises InputError where `folder` exists and is not empty, `vocabulary` has no such
    file, or another family has no use for it.
    """
    require(Extra.EXPORT, "making a random checkpoint")
    from transformers import CLIPImageProcessor

    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; a checkpoint is written to a new folder: name another one")
    if isinstance(size, FamilySize) and vocabulary is not None:
        raise InputError(f"the vocabulary {vocabulary} is CLIP's; {size} has its own: leave it out")
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(size, FamilySize):
        model = make_family(size, folder, _scene_captions(), layers=layers)
        randomize_weights(model, seed=seed)
        model.save_pretrained(folder, safe_serialization=True)
        return folder
    if vocabulary is not None:
        write_clip_tokenizer(vocabulary, folder)
        start_id, end_id = VOCABULARY_SIZE - 2, VOCABULARY_SIZE - 1
    else:
        tokenizer = stand_in_tokenizer(_scene_captions(), vocabulary_size=_SCENE_TOKENS)
        tokenizer.save_pretrained(folder)
        start_id, end_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    pixels = SHAPES[size].image_size
    CLIPImageProcessor(size={"shortest_edge": pixels}, crop_size={"height": pixels, "width": pixels}).save_pretrained(
        folder
    )
    model = random_model(size, seed=seed, layers=layers, start_id=start_id, end_id=end_id)
    model.save_pretrained(folder, safe_serialization=True)
    return folder


def write_clip_tokenizer(vocabulary: Path, folder: Path) -> None:
    """Write CLIP's tokenizer to `folder` in the files of OpenAI's repositories, without a tokenizer.json.

    Raises InputError where the folder `vocabulary` does not hold OpenAI's file of merges.
    """
    from transformers.models.clip.tokenization_clip import bytes_to_unicode

    file = vocabulary / MERGES_NAME
    if not file.is_file():
        raise InputError(f"the vocabulary folder {vocabulary} has no {MERGES_NAME}: OpenAI's CLIP repository has it")
    lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")
    merges = lines[1 : VOCABULARY_SIZE - 2 * 256 - 2 + 1]  # the file is longer than what CLIP uses of it
    characters = list(bytes_to_unicode().values())
    tokens = [*characters, *(character + "</w>" for character in characters)]
    tokens += ["".join(merge.split()) for merge in merges]
    tokens += [START, END]
    ids = {token: position for position, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT_LENGTH}
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **special}), encoding="utf-8")


def _scene_captions() -> list[str]:
    scenes = scene_set(_SCENES, seed=0, split=Split.TRAIN)
    return [caption for scene in scenes for caption in scene.captions.values()]


def stand_in_tokenizer(captions: Iterable[str] = _CAPTIONS, *, vocabulary_size: int = 320) -> PreTrainedTokenizerFast:
    """Train a small byte-level BPE on English and Chinese; the end token has the highest id, as in CLIP."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE(unk_token=None))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator(captions, trainer)
    bpe.add_special_tokens(["<pad>", "<start>", "<end>"])
    start, end = bpe.token_to_id("<start>"), bpe.token_to_id("<end>")
    bpe.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", start), ("<end>", end)]
    )
    special = {"bos_token": "<start>", "eos_token": "<end>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        model_max_length=CONTEXT_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
        **special,
    )


def _tower(width: int, layers: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": width // 64,
        "num_hidden_layers": layers,
    }


def _randomize(name: str, values: NDArray[np.float32], seed: int) -> None:
    """Fill `values`, one parameter. By numpy's generator: torch's depends on the processor's instruction set."""
    if name in _LOGIT_PARAMETERS:
        values.fill(_LOGIT_PARAMETERS[name])
        return
    np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(out=values, dtype=np.float32)
    owner, role = name.rsplit(".", maxsplit=2)[-2:]
    if "norm" not in owner.lower() and "layrnorm" not in owner:  # the latter is how transformers spells one
        values *= np.float32(_spread(owner, role, values.shape))
    elif role == "weight":
        # Trained norms differ from channel to channel: log-normal scales, the largest about three times the median.
        np.exp(values * np.float32(0.35), out=values)
    else:
        values *= np.float32(0.2)


def _spread(owner: str, role: str, shape: tuple[int, ...]) -> float:
    """Return the standard deviation of a parameter that is not a norm's.

    A matrix keeps the variance of its input; queries and keys are larger, so that attention is not uniform.
    """
    if role == "class_embedding" or owner in ("position_embedding", "position_embeddings", "token_type_embeddings"):
        return 0.3
    if owner in ("token_embedding", "word_embeddings") or role == "probe":
        return 1.0
    if role.endswith("bias"):
        return 0.1
    gain = 1.5 if owner in ("q_proj", "k_proj", "query", "key") else 1.0
    return gain / math.sqrt(math.prod(shape[1:]))


def main(
    size: Annotated[str, typer.Argument(metavar="SIZE", help=f"One of {', '.join((*ModelSize, *FamilySize))}.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of the new checkpoint.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random weights.")] = 0,
    vocabulary: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help=f"Has OpenAI's {MERGES_NAME}. By default a small stand-in tokenizer."),
    ] = None,
) -> None:
    """Write a checkpoint of a published size with random weights."""
    try:
        chosen = next((known for known in (*ModelSize, *FamilySize) if known == size), None)
        if chosen is None:
            raise InputError(f"size {size!r}: expected one of {', '.join((*ModelSize, *FamilySize))}")
        typer.echo(save_random_checkpoint(chosen, output, seed=seed, vocabulary=vocabulary))
    except TwinspireError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    typer.run(main)
