"""OpenCLIP's layout: towers written here as OpenCLIP has them, its crop, and what of it is refused."""

from __future__ import annotations

import gzip
import html
import itertools
import json
import shutil
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="the export needs torch")

import regex
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.models.clip.tokenization_clip import bytes_to_unicode

from support.data import TOKENIZATIONS, VOCABULARY
from support.families import (
    CHINESE,
    HARD_TEXTS,
    assert_image_embeddings,
    assert_probabilities,
    assert_quantizes,
    assert_served_like_local,
    assert_text_embeddings,
    assert_tokens,
    coco_captions,
    fill_weights,
    photographs_and_odd_images,
)
from twinspire.bundle import Bundle, CropRounding, Interpolation, Padding, Resize
from twinspire.errors import CheckpointError
from twinspire.images import Preprocessor
from twinspire_export import export_checkpoint
from twinspire_export.checkpoint import open_checkpoint
from twinspire_export.random_checkpoints import MERGES_NAME, write_clip_tokenizer

SIZE, WIDTH, TEXT_WIDTH, DIM, CONTEXT, VOCABULARY_SIZE = 32, 48, 32, 24, 77, 49408
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": DIM,
        "vision_cfg": {"image_size": SIZE, "layers": 2, "width": WIDTH, "head_width": 16, "patch_size": 8},
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": VOCABULARY_SIZE,
            "width": TEXT_WIDTH,
            "heads": 2,
            "layers": 2,
        },
    },
    "preprocess_cfg": {"mean": MEAN, "std": STD},
}


class QuickGELU(nn.Module):
    """OpenAI's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        """Activate."""
        return x * torch.sigmoid(1.702 * x)


class ResidualAttentionBlock(nn.Module):
    """OpenCLIP's block, with torch's own attention; its tensors have OpenCLIP's names."""

    def __init__(self, width: int, heads: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        layers = [
            ("c_fc", nn.Linear(width, 4 * width)),
            ("gelu", activation()),
            ("c_proj", nn.Linear(4 * width, width)),
        ]
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Transform."""
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """Blocks under the name `resblocks`."""

    def __init__(self, width: int, heads: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList([ResidualAttentionBlock(width, heads, activation) for _ in range(2)])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Transform."""
        for block in self.resblocks:
            x = block(x, mask)
        return x


class VisionTransformer(nn.Module):
    """OpenCLIP's image tower."""

    def __init__(self, activation: type[nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, 8, 8, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(WIDTH))
        self.positional_embedding = nn.Parameter(torch.zeros((SIZE // 8) ** 2 + 1, WIDTH))
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.transformer = Transformer(WIDTH, WIDTH // 16, activation)
        self.proj = nn.Parameter(torch.zeros(WIDTH, DIM))

    def forward(self, x: Tensor) -> Tensor:
        """Encode pixels (N, 3, S, S)."""
        x = self.conv1(x).flatten(2).permute(0, 2, 1)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x)))[:, 0] @ self.proj


class OpenClip(nn.Module):
    """OpenCLIP's `CLIP`: the text tower's parts lie at the top."""

    def __init__(self, activation: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.visual = VisionTransformer(activation)
        self.transformer = Transformer(TEXT_WIDTH, 2, activation)
        self.token_embedding = nn.Embedding(VOCABULARY_SIZE, TEXT_WIDTH)
        self.positional_embedding = nn.Parameter(torch.zeros(CONTEXT, TEXT_WIDTH))
        self.ln_final = nn.LayerNorm(TEXT_WIDTH)
        self.text_projection = nn.Parameter(torch.zeros(TEXT_WIDTH, DIM))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def encode_text(self, text: Tensor) -> Tensor:
        """Encode ids (N, 77), padded with 0."""
        mask = torch.full((CONTEXT, CONTEXT), float("-inf")).triu(1)
        x = self.token_embedding(text) + self.positional_embedding
        x = self.ln_final(self.transformer(x, mask))
        return x[torch.arange(len(x)), text.argmax(dim=-1)] @ self.text_projection


def open_clip_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Resize and crop as torchvision's Resize(S, BICUBIC) and CenterCrop(S) do on RGB images."""
    width, height = image.size
    longer = int(SIZE * max(image.size) / min(image.size))
    resized = image.resize((SIZE, longer) if width <= height else (longer, SIZE), Image.Resampling.BICUBIC)
    left, top = round((resized.width - SIZE) / 2.0), round((resized.height - SIZE) / 2.0)
    return np.asarray(resized.crop((left, top, left + SIZE, top + SIZE)))


def save_checkpoint(folder: Path, *, config: dict[str, Any] = CONFIG, quick: bool = False) -> OpenClip:
    """Write a random checkpoint in the files of a repository of laion/ without transformers' own."""
    folder.mkdir()
    document = {**config, "model_cfg": {**config["model_cfg"], **({"quick_gelu": True} if quick else {})}}
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    model = OpenClip(QuickGELU if quick else nn.GELU)
    for name, parameter in fill_weights(model).named_parameters():
        if name.endswith("in_proj_weight"):  # queries and keys large enough that the order of the parts matters
            parameter.data *= torch.linspace(0.5, 2.0, len(parameter))[:, None]
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / WEIGHTS)
    write_clip_tokenizer(VOCABULARY, folder)
    return model


WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture(scope="module", params=[False, True], ids=["gelu", "quick_gelu"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[OpenClip, Bundle]:
    """Give a model of either activation and the bundle made of its checkpoint."""
    folder = tmp_path_factory.mktemp("open_clip")
    model = save_checkpoint(folder / "tiny", quick=request.param)
    return model, export_checkpoint(folder / "tiny", folder / "bundle")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with a tiny checkpoint, to be read only."""
    folder = tmp_path_factory.mktemp("open_clip") / "tiny"
    save_checkpoint(folder)
    return folder


@pytest.fixture
def checkpoint(pristine: Path, tmp_path: Path) -> Path:
    """Give a folder with a tiny checkpoint, which the test may damage."""
    return Path(shutil.copytree(pristine, tmp_path / "tiny"))


@cache
def merge_ranks() -> dict[tuple[str, str], int]:
    """Read OpenAI's merges."""
    lines = gzip.decompress((VOCABULARY / MERGES_NAME).read_bytes()).decode().split("\n")
    return {(one, other): rank for rank, (one, other) in enumerate(map(str.split, lines[1 : 49152 - 256 - 2 + 1]))}


@cache
def vocabulary() -> dict[str, int]:
    """Number OpenAI's tokens."""
    characters = list(bytes_to_unicode().values())
    merged = ["".join(pair) for pair in merge_ranks()]
    tokens = [*characters, *(f"{each}</w>" for each in characters), *merged]
    return {token: number for number, token in enumerate(tokens)}


def merged(word: str) -> list[str]:
    """Merge the pair of lowest rank until none is left."""
    parts = [*word[:-1], f"{word[-1]}</w>"]
    while len(parts) > 1:
        first = min(itertools.pairwise(parts), key=lambda pair: merge_ranks().get(pair, len(vocabulary())))
        if first not in merge_ranks():
            break
        joined: list[str] = []
        for part in parts:
            is_second = bool(joined) and (joined[-1], part) == first
            joined[-1:] = [joined[-1] + part] if is_second else [*joined[-1:], part]
        parts = joined
    return parts


def open_clip_ids(text: str) -> list[int]:
    """Tokenize as OpenCLIP's `SimpleTokenizer` does, but for ftfy, which mends broken encodings and curly quotes."""
    text = html.unescape(html.unescape(text)).strip()
    text = " ".join(text.split()).lower()
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    ids: list[int] = []
    for token in regex.findall(pattern, text, regex.IGNORECASE):
        word = "".join(bytes_to_unicode()[byte] for byte in token.encode())
        ids += [vocabulary()[part] for part in merged(word)]
    ids = [49406, *ids, 49407]
    return ids if len(ids) <= CONTEXT else [*ids[: CONTEXT - 1], 49407]


def image_features(model: OpenClip) -> Callable[[list[Image.Image]], Tensor]:
    """Return OpenCLIP's encoding of images."""

    def features(images: list[Image.Image]) -> Tensor:
        pixels = torch.from_numpy(np.stack([open_clip_pixels(image) for image in images])).permute(0, 3, 1, 2)
        mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
        with torch.no_grad():
            return model.visual((pixels / 255 - mean) / std)

    return features


def text_features(model: OpenClip, ids: Callable[[str], list[int]]) -> Callable[[list[str]], Tensor]:
    """Return OpenCLIP's encoding of texts, padded with 0 to the context."""

    def features(texts: list[str]) -> Tensor:
        with torch.no_grad():
            return model.encode_text(torch.tensor([(ids(text) + [0] * CONTEXT)[:CONTEXT] for text in texts]))

    return features


def test_settings(made: tuple[OpenClip, Bundle]) -> None:
    """The manifest has OpenCLIP's preprocessing: the crop is rounded to the even neighbour."""
    _, bundle = made
    image, text, manifest = bundle.image, bundle.text, bundle.manifest
    assert (manifest.family, manifest.dim, manifest.logit_bias) == ("open_clip", DIM, None)
    assert manifest.logit_scale == pytest.approx(np.exp(2.0), rel=1e-6)
    assert (image.resize, image.shortest_side, image.crop_rounding) == (Resize.SHORTEST_SIDE, SIZE, CropRounding.ROUND)
    assert (list(image.mean), list(image.std)) == (MEAN, STD)
    assert (text.context_length, text.eos_id, text.padding) == (CONTEXT, 49407, Padding.TRIM)


def test_embeddings_are_those_of_open_clip(made: tuple[OpenClip, Bundle]) -> None:
    """Images and texts have the embeddings of OpenCLIP's formula, with either activation."""
    model, bundle = made
    assert_image_embeddings(bundle, image_features(model))
    assert_text_embeddings(bundle, text_features(model, open_clip_ids))


def test_crop_is_that_of_torchvision(made: tuple[OpenClip, Bundle]) -> None:
    """Pixels are those of torchvision for margins of every remainder, odd ones included."""
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, 2 * SIZE, 3), dtype=np.uint8)
    odd = [Image.fromarray(noise[:, : SIZE + margin]) for margin in range(1, 12)]
    images = [*odd, *(image.transpose(Image.Transpose.TRANSPOSE) for image in odd), *photographs_and_odd_images()]
    found = Preprocessor(made[1].image, threads=1).many(images)
    expected = np.stack([open_clip_pixels(image) for image in images])
    assert np.array_equal(found, expected)
    floor = [(image.width - SIZE) // 2 for image in odd]
    assert floor != [round((image.width - SIZE) / 2) for image in odd], "no image tells the two ways apart"


def test_tokens_are_those_of_open_clip(made: tuple[OpenClip, Bundle]) -> None:
    """Token ids are those of OpenCLIP's formula for captions and hard texts, and those that OpenAI's code gave."""
    assert_tokens(made[1], open_clip_ids, [*coco_captions(2_000), *CHINESE, *HARD_TEXTS])
    published = {case["text"]: case["openai_ids"] for case in json.loads(TOKENIZATIONS.read_text(encoding="utf-8"))}
    cut = {text: ids if len(ids) <= CONTEXT else [*ids[: CONTEXT - 1], 49407] for text, ids in published.items()}
    assert_tokens(made[1], cut.__getitem__, list(cut))


def test_probabilities_are_those_of_open_clip(made: tuple[OpenClip, Bundle]) -> None:
    """The scale gives OpenCLIP's probabilities."""
    model, bundle = made
    images, texts = photographs_and_odd_images()[:4], CHINESE
    features = (image_features(model)(images), text_features(model, open_clip_ids)(texts))
    one, other = (nn.functional.normalize(vectors, dim=-1) for vectors in features)
    assert_probabilities(bundle, (model.logit_scale.exp() * one @ other.T).softmax(dim=-1).detach(), images, texts)


@pytest.mark.slow
def test_int8_and_fp16(checkpoint: Path, tmp_path: Path) -> None:
    """Both towers convert to fp16 and quantize to int8."""
    assert_quantizes(export_checkpoint(checkpoint, tmp_path / "bundle"), tmp_path / "int8", minimum_cosine=0.995)


@pytest.mark.slow
def test_served(checkpoint: Path, tmp_path: Path) -> None:
    """Triton gives the embeddings of this process."""
    assert_served_like_local(export_checkpoint(checkpoint, tmp_path / "bundle"), tmp_path / "repository")


# Other forms of the layout.


def edit_config(checkpoint: Path, part: str, **changes: Any) -> None:
    """Change settings of a part of open_clip_config.json: preprocess_cfg, model_cfg, or one within model_cfg."""
    file = checkpoint / "open_clip_config.json"
    document = json.loads(file.read_text())
    within = document if part in document else document["model_cfg"]
    within[part].update(changes)
    file.write_text(json.dumps(document))


def edit_weights(checkpoint: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Replace the tensors of a checkpoint by those that a function makes of them."""
    save_file(change(load_file(checkpoint / WEIGHTS)), checkpoint / WEIGHTS)


def test_custom_text(checkpoint: Path) -> None:
    """With `custom_text` the text tower's tensors are below `text`, and give the same embeddings."""
    kept = ("visual.", "logit_scale")
    edit_config(checkpoint, "model_cfg", custom_text=True)
    plain = open_checkpoint(checkpoint).embed_texts(CHINESE)
    edit_weights(
        checkpoint,
        lambda tensors: {name if name.startswith(kept) else f"text.{name}": each for name, each in tensors.items()},
    )
    assert np.array_equal(open_checkpoint(checkpoint).embed_texts(CHINESE), plain)


def test_logit_bias(checkpoint: Path) -> None:
    """A model that was trained with SigLIP's loss has a bias."""
    edit_weights(checkpoint, lambda tensors: {**tensors, "logit_bias": torch.tensor(-9.0)})
    assert open_checkpoint(checkpoint).logit_bias == -9.0


def test_weights_named_model_safetensors(checkpoint: Path) -> None:
    """model.safetensors is read too, if it has OpenCLIP's names, though a config.json of another library lies there."""
    (checkpoint / WEIGHTS).rename(checkpoint / "model.safetensors")
    assert open_checkpoint(checkpoint).family.model_type == "open_clip"
    (checkpoint / "config.json").write_text(json.dumps({"architecture": "vit_base_patch32_clip_224"}))
    assert open_checkpoint(checkpoint).family.model_type == "open_clip"


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_stored_precision(checkpoint: Path, stored: torch.dtype) -> None:
    """Weights may be stored in half precision."""
    edit_weights(checkpoint, lambda tensors: {name: tensor.to(stored) for name, tensor in tensors.items()})
    assert open_checkpoint(checkpoint).embed_texts(["a cat"]).dtype == np.float32


def test_files_of_transformers_are_preferred(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """A repository with both layouts is a `CLIPModel`, cropped as OpenCLIP crops."""
    checkpoint = make_checkpoint(tmp_path / "both")
    assert open_checkpoint(checkpoint).image.crop_rounding is CropRounding.FLOOR
    (checkpoint / "open_clip_config.json").write_text(json.dumps(CONFIG))
    opened = open_checkpoint(checkpoint)
    assert (opened.family.model_type, opened.image.crop_rounding) == ("clip", CropRounding.ROUND)


@pytest.mark.parametrize(
    ("changes", "resize", "interpolation"),
    [
        ({"resize_mode": "squash", "interpolation": "bilinear"}, Resize.STRETCH, Interpolation.BILINEAR),
        ({"resize_mode": "longest", "fill_color": 0}, Resize.PAD, Interpolation.BICUBIC),
        ({"resize_mode": "shortest", "interpolation": "random"}, Resize.SHORTEST_SIDE, Interpolation.BICUBIC),
    ],
)
def test_preprocessing(checkpoint: Path, changes: dict[str, Any], resize: Resize, interpolation: Interpolation) -> None:
    """Each way of resizing that OpenCLIP has is taken over; without mean and std they are OpenAI's."""
    edit_config(checkpoint, "preprocess_cfg", **changes, mean=None, std=0.5)
    image = open_checkpoint(checkpoint).image
    assert (image.resize, image.interpolation) == (resize, interpolation)
    assert (list(image.mean), list(image.std)) == (MEAN, [0.5] * 3)


# Bad input.


def refused(checkpoint: Path) -> str:
    """Export, expect a CheckpointError and nothing left, and give its message."""
    with pytest.raises(CheckpointError) as caught:
        export_checkpoint(checkpoint, checkpoint.parent / "bundle")
    assert not (checkpoint.parent / "bundle").exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("part", "changes", "word"),
    [
        ("model_cfg", {"multimodal_cfg": {"context_length": 76}}, "multimodal_cfg"),
        ("model_cfg", {"audio_cfg": {"model_type": "htsat"}}, "audio_cfg"),
        ("vision_cfg", {"timm_model_name": "fastvit_mci2"}, "timm_model_name"),
        ("vision_cfg", {"timm_model_name": "vit_base_patch16_siglip_224"}, "google/siglip"),
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, "ResNet"),
        ("vision_cfg", {"attentional_pool": True}, "attentional_pool"),
        ("vision_cfg", {"ls_init_value": 1e-5}, "ls_init_value"),
        ("vision_cfg", {"pool_type": "avg"}, "pool_type"),
        ("vision_cfg", {"no_ln_pre": True}, "no_ln_pre"),
        ("vision_cfg", {"scale_heads": True}, "scale_heads"),
        ("text_cfg", {"hf_model_name": "xlm-roberta-base"}, "hf_model_name"),
        ("text_cfg", {"no_causal_mask": True}, "no_causal_mask"),
        ("text_cfg", {"embed_cls": True}, "embed_cls"),
        ("text_cfg", {"pool_type": "eos", "eos_id": 2}, "pool_type"),
        ("text_cfg", {"proj_bias": True}, "proj_bias"),
        ("text_cfg", {"act_kwargs": {"approximate": "tanh"}}, "act_kwargs"),
        ("text_cfg", {"tokenizer_kwargs": {"clean": "canonicalize"}}, "tokenizer_kwargs"),
        ("text_cfg", {"a_setting_of_tomorrow": 1}, "a_setting_of_tomorrow"),
        ("preprocess_cfg", {"resize_mode": "tile"}, "resize_mode"),
        ("preprocess_cfg", {"interpolation": "lanczos"}, "interpolation"),
        ("preprocess_cfg", {"resize_mode": "longest", "fill_color": 127}, "fill_color"),
    ],
)
def test_setting_that_cannot_be_exported(checkpoint: Path, part: str, changes: dict[str, Any], word: str) -> None:
    """A variant of OpenCLIP that `CLIPModel` cannot compute is refused by the name of its setting."""
    edit_config(checkpoint, part, **changes)
    assert word in refused(checkpoint)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model_cfg": {}}', '{"model_cfg": {"vision_cfg": 1}}'])
def test_malformed_config(checkpoint: Path, content: str) -> None:
    """A config that says nothing is refused."""
    (checkpoint / "open_clip_config.json").write_text(content)
    refused(checkpoint)


def test_missing_tokenizer(checkpoint: Path) -> None:
    """Without the tokenizer's files they are named, as OpenCLIP keeps them with its code."""
    (checkpoint / "vocab.json").unlink()
    message = refused(checkpoint)
    assert "vocab.json" in message
    assert "tokenizer.json" in message


def test_missing_weights(checkpoint: Path) -> None:
    """Pickled weights alone are named and never opened."""
    (checkpoint / WEIGHTS).rename(checkpoint / "open_clip_pytorch_model.bin")
    message = refused(checkpoint)
    assert WEIGHTS in message
    assert "open_clip_pytorch_model.bin" in message


def test_missing_tensor(checkpoint: Path) -> None:
    """A missing tensor is named as OpenCLIP names it."""
    name = "transformer.resblocks.1.attn.in_proj_bias"
    edit_weights(checkpoint, lambda tensors: {each: tensor for each, tensor in tensors.items() if each != name})
    assert name in refused(checkpoint)


def test_unknown_tensor(checkpoint: Path) -> None:
    """A tensor that the config does not explain is refused, not left out."""
    edit_weights(
        checkpoint, lambda tensors: {**tensors, "visual.transformer.resblocks.0.ls_1.gamma": torch.ones(WIDTH)}
    )
    assert "ls_1.gamma" in refused(checkpoint)


@pytest.mark.parametrize("name", ["visual.proj", "visual.transformer.resblocks.0.attn.in_proj_weight"])
def test_tensor_of_another_shape(checkpoint: Path, name: str) -> None:
    """A tensor of another shape is named with both shapes."""
    edit_weights(checkpoint, lambda tensors: {**tensors, name: torch.zeros(5, 7)})
    message = refused(checkpoint)
    assert name in message
    assert "(5, 7)" in message


def test_truncated_weights(checkpoint: Path) -> None:
    """A file that was cut off is named."""
    (checkpoint / WEIGHTS).write_bytes((checkpoint / WEIGHTS).read_bytes()[:1000])
    assert WEIGHTS in refused(checkpoint)
