"""Any vision with any text: each backbone of `VisionTextDualEncoderModel` becomes a bundle that computes the same."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the export needs torch")

import onnx
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    BertConfig,
    BertTokenizer,
    BertTokenizerFast,
    BitImageProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    ConvNextImageProcessor,
    Dinov2Config,
    EfficientNetConfig,
    EfficientNetImageProcessor,
    PreTrainedTokenizerFast,
    ResNetConfig,
    RobertaConfig,
    RobertaTokenizer,
    RobertaTokenizerFast,
    SwinConfig,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
    ViTImageProcessor,
    XLMRobertaConfig,
    XLMRobertaTokenizer,
    XLMRobertaTokenizerFast,
)

from support.families import (
    CHINESE,
    HARD_TEXTS,
    assert_image_embeddings,
    assert_pixels,
    assert_probabilities,
    assert_served_like_local,
    assert_text_embeddings,
    assert_tokens,
    coco_captions,
    export_without_rewrites,
    fill_batch_norms,
    fill_weights,
    photographs_and_odd_images,
)
from twinspire.bundle import Bundle, Interpolation, Precision, Resize, Tower
from twinspire.errors import CheckpointError
from twinspire.images import Preprocessor
from twinspire_export import export_checkpoint, quantize_bundle
from twinspire_export.checkpoint import open_checkpoint
from twinspire_export.families.bert_text import load_bert_tokenizer
from twinspire_export.families.image_processors import backbone_image_settings
from twinspire_export.quantization.node_roles import roles_of

DIM, POSITIONS = 24, 80
LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


# Tokenizers, each with the one in Python that is its reference


def bert_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Save vocab.txt, of characters and pieces of words."""
    texts = " ".join([*coco_captions(200), *CHINESE]).lower()
    characters = sorted({character for character in texts if not character.isspace()} | set(ascii_lowercase))
    words = sorted({word for word in texts.split() if word.isalpha() and word.isascii()})[::2]
    pieces = [f"##{character}" for character in ascii_lowercase]
    vocabulary = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *words, *pieces])
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    return BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64)


def roberta_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on captions."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        coco_captions(100), vocab_size=400, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    )
    bpe.save_model(str(folder))
    return RobertaTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=64)


def xlm_roberta_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Train a sentencepiece model with the normaliser of XLM-RoBERTa's."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="trains the tokenizer")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*coco_captions(200), *CHINESE, *ascii_lowercase]),
        model_prefix=str(folder / "sentencepiece.bpe"),
        vocab_size=300,
        hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc",
        character_coverage=1.0,
        minloglevel=2,
        num_threads=1,
    )
    XLMRobertaTokenizer(str(folder / "sentencepiece.bpe.model"), model_max_length=64).save_pretrained(folder)
    return load_bert_tokenizer(folder, XLMRobertaTokenizerFast)


SLOW = {
    "bert": lambda folder: BertTokenizer(str(folder / "vocab.txt")),
    "roberta": lambda folder: RobertaTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")),
    "xlm-roberta": lambda folder: XLMRobertaTokenizer(str(folder / "sentencepiece.bpe.model")),
}
TOKENIZERS = {
    "bert": (bert_tokenizer, BertConfig, {}),
    "roberta": (roberta_tokenizer, RobertaConfig, {"pad_token_id": 1}),
    "xlm-roberta": (xlm_roberta_tokenizer, XLMRobertaConfig, {"pad_token_id": 1}),
}

# Models


@dataclass(frozen=True, kw_only=True)
class Model:
    """A pair of towers: the config and image processor of a backbone, and a text encoder."""

    vision: Callable[[], Any]
    processor: Callable[[], Any]
    text: str
    options: dict[str, Any] = field(default_factory=dict)


def square(side: int) -> dict[str, int]:
    """Return a size as processors have it."""
    return {"height": side, "width": side}


MODELS = {
    "vit": Model(
        vision=lambda: ViTConfig(**LAYERS, image_size=32, patch_size=8),
        processor=lambda: ViTImageProcessor(size=square(32)),
        text="bert",
    ),
    "vit without biases, remainder": Model(
        vision=lambda: ViTConfig(**LAYERS, image_size=35, patch_size=8, qkv_bias=False, pooler_act="relu"),
        processor=lambda: ViTImageProcessor(size=square(35), resample=3),
        text="bert",
        options={"text_pooling": "mean"},
    ),
    "clip": Model(
        vision=lambda: CLIPVisionConfig(**LAYERS, image_size=32, patch_size=8),
        processor=lambda: CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square(32)),
        text="bert",
    ),
    "dinov2": Model(
        vision=lambda: Dinov2Config(
            **{name: LAYERS[name] for name in LAYERS if name != "intermediate_size"}, image_size=28, patch_size=7
        ),
        processor=lambda: BitImageProcessor(size={"shortest_edge": 48}, crop_size=square(42)),
        text="xlm-roberta",
    ),
    "swin": Model(  # grids of 10, 5 and 3 tokens: padded to 12, padded to 6 and merged as 6, and one window
        vision=lambda: SwinConfig(
            image_size=40, patch_size=4, embed_dim=16, depths=[2, 2, 1], num_heads=[2, 4, 4], window_size=3
        ),
        processor=lambda: ViTImageProcessor(size=square(40), image_mean=[0.485, 0.456, 0.406]),
        text="roberta",
    ),
    "resnet": Model(
        vision=lambda: ResNetConfig(embedding_size=16, hidden_sizes=[32, 64], depths=[2, 2]),
        processor=lambda: ConvNextImageProcessor(size={"shortest_edge": 49}, crop_pct=0.875, resample=3),
        text="bert",
    ),
    "resnet basic": Model(
        vision=lambda: ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[2, 1], layer_type="basic"),
        processor=lambda: ViTImageProcessor(size=square(32)),
        text="bert",
        options={"text_pooling": "mean"},
    ),
    "efficientnet": Model(
        vision=lambda: EfficientNetConfig(
            image_size=33, width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320, depthwise_padding=[3]
        ),
        processor=lambda: EfficientNetImageProcessor(
            size=square(33),
            rescale_factor=1 / 127.5,
            rescale_offset=True,
            image_std=[0.47853944, 0.4732864, 0.47434163],
        ),
        text="bert",
    ),
    "efficientnet, maximum": Model(
        vision=lambda: EfficientNetConfig(
            image_size=32, width_coefficient=0.25, depth_coefficient=0.1, hidden_dim=320, pooling_type="max"
        ),
        processor=lambda: EfficientNetImageProcessor(size=square(39), do_center_crop=True, crop_size=square(32)),
        text="bert",
    ),
}


def save_checkpoint(folder: Path, name: str) -> Path:
    """Save a random model whose every parameter and batch norm is drawn, its tokenizer and its processor."""
    folder.mkdir(parents=True)
    model = MODELS[name]
    make_tokenizer, text_class, options = TOKENIZERS[model.text]
    tokenizer = make_tokenizer(folder)
    tokenizer.save_pretrained(folder)
    vision = model.vision()
    if not hasattr(vision, "hidden_size"):  # without it transformers cannot make the model
        vision.hidden_size = vision.hidden_sizes[-1] if vision.model_type == "resnet" else vision.hidden_dim
    text = text_class(**LAYERS, vocab_size=len(tokenizer) + 3, max_position_embeddings=POSITIONS, **options)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=DIM, **model.options)
    fill_batch_norms(fill_weights(VisionTextDualEncoderModel(config))).save_pretrained(folder)
    model.processor().save_pretrained(folder)
    return folder


Exported = tuple[str, Path, Bundle]


@pytest.fixture(scope="session")
def export_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """Give the function that saves and exports a model once, to be read only."""

    @cache
    def export(name: str) -> Exported:
        folder = tmp_path_factory.mktemp("dual")
        checkpoint = save_checkpoint(folder / "checkpoint", name)
        return name, checkpoint, export_checkpoint(checkpoint, folder / "bundle")

    return export


@pytest.fixture(
    scope="module", params=[name if name == "vit" else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def exported(request: pytest.FixtureRequest, export_model: Callable[[str], Exported]) -> Exported:
    """Give each model: its name, checkpoint and bundle."""
    return export_model(request.param)


@pytest.fixture
def checkpoint(export_model: Callable[[str], Exported], tmp_path: Path) -> Path:
    """Give a checkpoint, ViT with BERT, that the test may damage."""
    return Path(shutil.copytree(export_model("vit")[1], tmp_path / "vit-bert"))


def reference(folder: Path) -> Any:
    """Open a checkpoint by transformers."""
    return VisionTextDualEncoderModel.from_pretrained(folder).eval()


def image_features(name: str, folder: Path) -> Callable[[list[Image.Image]], torch.Tensor]:
    """Return transformers' image features, pixels by its slow processor."""
    model, processor = reference(folder), type(MODELS[name].processor()).from_pretrained(folder)

    def features(images: list[Image.Image]) -> torch.Tensor:
        pixels = processor(images, input_data_format="channels_last", return_tensors="pt")["pixel_values"]
        if name.startswith("resnet"):  # its pooled map is (N, W, 1, 1), on which `get_image_features` fails
            return model.visual_projection(model.vision_model(pixels).pooler_output.flatten(1))
        return model.get_image_features(pixel_values=pixels)

    return features


def slow_ids(name: str, folder: Path) -> Callable[[str], list[int]]:
    """Return transformers' tokenizer in Python, cut to the context."""
    tokenizer = SLOW[MODELS[name].text](folder)
    context = open_checkpoint(folder).text.context_length
    return lambda text: tokenizer(text, truncation=True, max_length=context)["input_ids"]


def text_features(name: str, folder: Path) -> Callable[[list[str]], torch.Tensor]:
    """Return transformers' text features of padded texts; the mean by sentence-transformers' formula."""
    model, encode = reference(folder), slow_ids(name, folder)
    pad_id = model.config.text_config.pad_token_id

    def features(texts: list[str]) -> torch.Tensor:
        rows = [torch.tensor(encode(text)) for text in texts]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_id)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        if MODELS[name].options.get("text_pooling") != "mean":
            return model.get_text_features(input_ids=ids, attention_mask=mask)
        hidden = model.text_model(input_ids=ids, attention_mask=mask).last_hidden_state
        expanded = mask.unsqueeze(-1).expand(hidden.size()).float()
        mean = torch.sum(hidden * expanded, 1) / torch.clamp(expanded.sum(1), min=1e-9)
        return model.text_projection(mean)

    return features


def test_embeddings(exported: Exported) -> None:
    """Both engines give transformers' embeddings for any batch size, shape and length."""
    name, checkpoint, bundle = exported
    with torch.no_grad():
        assert_image_embeddings(bundle, image_features(name, checkpoint))
        assert_text_embeddings(bundle, text_features(name, checkpoint))


def test_patches(exported: Exported) -> None:
    """The manifest counts the patches that transformers' transformer attends to; convolutional networks have none."""
    _, checkpoint, bundle = exported
    assert bundle.manifest.towers.image is not None
    vision = reference(checkpoint).vision_model
    vision = getattr(vision, "vision_model", vision)
    if vision.config.model_type in ("resnet", "efficientnet"):
        assert bundle.manifest.towers.image.patches is None
        return
    tokens = vision.embeddings(torch.zeros(1, 3, bundle.image.height, bundle.image.width))
    tokens = tokens[0] if isinstance(tokens, tuple) else tokens
    has_class = vision.config.model_type != "swin"
    assert bundle.manifest.towers.image.patches == tokens.shape[1] - has_class


def test_pixels(exported: Exported) -> None:
    """Pixels are those of transformers' slow processor."""
    name, checkpoint, bundle = exported
    processor = type(MODELS[name].processor()).from_pretrained(checkpoint)
    if isinstance(processor, EfficientNetImageProcessor):
        processor.include_top = False  # a normalisation that is not under `do_normalize`
    assert_pixels(bundle, processor)


def test_token_ids(exported: Exported) -> None:
    """Token ids are those of the tokenizer in Python, for captions, Chinese, emoji, empty and overlong texts."""
    name, checkpoint, bundle = exported
    assert_tokens(bundle, slow_ids(name, checkpoint), [*coco_captions(2000), *CHINESE, *HARD_TEXTS])


def test_rewrites_change_no_embedding(exported: Exported, tmp_path: Path) -> None:
    """Without rewrites the engines give the same embeddings, and the space is the same."""
    name, checkpoint, bundle = exported
    plain, changed = export_without_rewrites(checkpoint, bundle, tmp_path)
    with torch.no_grad():
        assert_image_embeddings(plain, image_features(name, checkpoint))
        assert_text_embeddings(plain, text_features(name, checkpoint))
    has_blocks = not name.startswith(("resnet", "efficientnet"))
    assert changed == ({Tower.IMAGE, Tower.TEXT} if has_blocks else {Tower.TEXT})


def test_probabilities(exported: Exported) -> None:
    """The scaled cosines' softmax is the model's own."""
    name, checkpoint, bundle = exported
    images, texts = photographs_and_odd_images()[:5], CHINESE[:4]
    model = reference(checkpoint)
    with torch.no_grad():
        left, right = (
            torch.nn.functional.normalize(features, dim=-1)
            for features in (image_features(name, checkpoint)(images), text_features(name, checkpoint)(texts))
        )
    assert math.isclose(bundle.manifest.logit_scale, model.logit_scale.exp().item(), rel_tol=1e-6)
    assert_probabilities(bundle, (model.logit_scale.exp() * left @ right.T).softmax(dim=-1), images, texts)


@pytest.mark.slow
def test_other_precisions(exported: Exported, tmp_path: Path) -> None:
    """int8 engines, TensorRT's too, and fp16 ones have a certificate whose mean is at least 0.99 and 0.9999."""
    pytest.importorskip("nncf", reason="quantizing needs nncf")
    name, _, bundle = exported
    images, captions = photographs_and_odd_images(), [*coco_captions(24), *CHINESE]
    minima = {Precision.INT8: 0.99, Precision.INT8_TENSORRT: 0.99, Precision.FP16: 0.9999}
    for precision, smallest in minima.items():
        made = quantize_bundle(bundle, tmp_path / precision, precision=precision, images=images, captions=captions)
        for tower in made.towers:
            certificate = made.manifest.engines[tower][precision].certificate
            assert certificate is not None
            print(name, precision, tower, certificate.min_cosine, certificate.mean_cosine)
            assert certificate.mean_cosine >= smallest


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin", "efficientnet"])
def test_served(export_model: Callable[[str], Exported], name: str, tmp_path: Path) -> None:
    """A Triton from its wheel gives the embeddings that the engines give in this process."""
    assert_served_like_local(export_model(name)[2], tmp_path / "repository")


# Image processors


OFFSETS = [
    EfficientNetImageProcessor(rescale_factor=1 / 127.5, rescale_offset=True, do_normalize=False, include_top=False),
    EfficientNetImageProcessor(rescale_factor=1 / 127.5, rescale_offset=True, do_normalize=False, include_top=True),
    EfficientNetImageProcessor(rescale_factor=1 / 127.5, rescale_offset=True, image_mean=[0.1, 0.2, 0.3]),
    EfficientNetImageProcessor(rescale_factor=1 / 100, rescale_offset=True, image_std=[0.2, 0.3, 0.4]),
    EfficientNetImageProcessor(image_mean=[0.485, 0.456, 0.406], image_std=[0.47, 0.48, 0.49]),
    ViTImageProcessor(size=square(64)),
]


@pytest.mark.parametrize("processor", OFFSETS, ids=range(len(OFFSETS)))
def test_rescaling_folds_into_mean_and_standard_deviation(processor: Any) -> None:
    """Offset, a second normalisation and any factor come out as mean and standard deviation, to 1e-6 of the range."""
    processor.size = square(64)
    config = ViTConfig(image_size=64)
    settings = backbone_image_settings(processor, config, Path("folder"))
    images = photographs_and_odd_images()
    pixels = Preprocessor(settings, threads=1).many(images).astype(np.float64)
    found = (pixels / 255 - np.array(settings.mean)) / np.array(settings.std)
    largest = 0.0
    for values, image in zip(found, images, strict=True):
        options = {"input_data_format": "channels_last", "data_format": "channels_last"}
        expected = processor(image, **options, return_tensors="np")["pixel_values"][0]
        largest = max(largest, float(np.abs(values - expected).max() / np.abs(expected).max()))
    print(f"largest difference {largest:.1e}")
    assert largest <= 1e-6


def settings_of(processor: Any, size: int | None) -> Any:
    """Translate a processor for a model of images of `size` pixels, None for any."""
    return backbone_image_settings(processor, ViTConfig(image_size=size), Path("folder"))


def test_crop_share() -> None:
    """`crop_pct` enlarges what the crop is cut from; from 384 pixels on there is no crop."""
    found = settings_of(ConvNextImageProcessor(size={"shortest_edge": 224}, crop_pct=0.95), None)
    assert (found.resize, found.shortest_side, found.size) == (Resize.SHORTEST_SIDE, 235, 224)
    found = settings_of(ConvNextImageProcessor(size={"shortest_edge": 384}), None)
    assert (found.resize, found.shortest_side, found.size) == (Resize.STRETCH, None, 384)
    with pytest.raises(CheckpointError, match="crop_pct"):
        settings_of(ConvNextImageProcessor(size={"shortest_edge": 224}, crop_pct=-1.0), None)


@pytest.mark.slow
@pytest.mark.parametrize("side", [97, 383, 384])
@pytest.mark.parametrize("share", [0.875, 0.95, 1.0, 1.2])
def test_pixels_of_crop_shares(side: int, share: float) -> None:
    """Pixels are those of the slow processor, whichever share of the image the crop keeps."""
    processor = ConvNextImageProcessor(
        size={"shortest_edge": side}, crop_pct=share, do_rescale=False, do_normalize=False
    )
    settings = settings_of(
        ConvNextImageProcessor(size={"shortest_edge": side}, crop_pct=share, resample=processor.resample), None
    )
    for image in photographs_and_odd_images()[-8:]:
        expected = processor(image, input_data_format="channels_last", data_format="channels_last", return_tensors="np")
        assert np.array_equal(Preprocessor(settings, threads=1).one(image), expected["pixel_values"][0])


def test_fast_processors_are_read_as_the_slow_ones(checkpoint: Path) -> None:
    """A fast processor and a feature extractor of old name the same settings."""
    expected = open_checkpoint(checkpoint).image
    assert expected.interpolation is Interpolation.BILINEAR
    for key, name in (
        ("image_processor_type", "ViTImageProcessorFast"),
        ("feature_extractor_type", "ViTFeatureExtractor"),
    ):
        edit(checkpoint / "preprocessor_config.json", {"image_processor_type": None, key: name})
        assert open_checkpoint(checkpoint).image == expected


# Graphs


@pytest.mark.slow
def test_roles_in_convolutional_networks(export_model: Callable[[str], Exported]) -> None:
    """Convolutions are not patches: stem, depthwise, squeeze and excitation, and the projection are told apart."""

    def roles(name: str) -> dict[str, int]:
        found = [str(role.role) for role in roles_of(load(export_model(name)[2])).values()]
        return {role: found.count(role) for role in sorted(set(found))}

    assert roles("resnet") == {"convolution": 14, "projection": 1, "stem": 1}
    blocks = 8
    assert roles("efficientnet") == {
        "convolution": 2 * blocks - 1 + 1,  # the first block has no expansion, and a last convolution follows
        "depthwise": blocks,
        "projection": 1,
        "squeeze-excite": 2 * blocks,
        "stem": 1,
    }
    assert set(roles("swin")) >= {"patches", "attention-in", "mlp-down", "projection"}


def load(bundle: Bundle) -> onnx.ModelProto:
    """Load the fp32 image engine."""
    return onnx.load(bundle.engine(Tower.IMAGE, Precision.FP32))


@pytest.mark.slow
def test_batch_norms_are_folded(export_model: Callable[[str], Exported]) -> None:
    """In evaluation mode each batch norm is part of its convolution."""
    for name in ("resnet", "efficientnet"):
        operators = {node.op_type for node in load(export_model(name)[2]).graph.node}
        assert "BatchNormalization" not in operators
        assert "Conv" in operators


# What config.json says


def edit(file: Path, change: dict[str, Any]) -> None:
    """Change the top level of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **change}), encoding="utf-8")


def edit_part(folder: Path, part: str, change: dict[str, Any]) -> None:
    """Change the config of a tower."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    edit(folder / "config.json", {part: {**config[part], **change}})


@pytest.mark.slow
def test_width_of_the_pooled_map(export_model: Callable[[str], Exported], tmp_path: Path) -> None:
    """A config of ResNet or EfficientNet without the `hidden_size` that transformers asks for is opened."""
    for name, width in (("resnet", 64), ("efficientnet", 320)):
        folder = Path(shutil.copytree(export_model(name)[1], tmp_path / name))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        assert config["vision_config"].pop("hidden_size") == width
        edit(folder / "config.json", config)
        assert open_checkpoint(folder).dim == DIM


def test_pooling_is_part_of_the_space(
    checkpoint: Path, export_model: Callable[[str], Exported], tmp_path: Path
) -> None:
    """`text_pooling` "mean" is another space than transformers' pooler; "pooler" by name is the same."""
    space = export_model("vit")[2].space
    edit(checkpoint / "config.json", {"text_pooling": "pooler"})
    assert export_checkpoint(checkpoint, tmp_path / "pooler").space == space
    edit(checkpoint / "config.json", {"text_pooling": "mean"})
    assert export_checkpoint(checkpoint, tmp_path / "mean").space != space


def without(name: str) -> Callable[[Path], None]:
    """Return what removes a file."""
    return lambda folder: (folder / name).unlink()


def without_tokenizer(folder: Path) -> None:
    """Remove all of the tokenizer."""
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink()


def without_normaliser(folder: Path) -> None:
    """Drop the tokenizer's normaliser."""
    edit(folder / "tokenizer.json", {"normalizer": None})


def cut_projection(folder: Path) -> None:
    """Cut a weight."""
    weights = load_file(folder / "model.safetensors")
    weights["visual_projection.weight"] = weights["visual_projection.weight"][:, :-1].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def drop_pooler(folder: Path) -> None:
    """Leave the text pooler out, as sentence encoders are often saved."""
    weights = load_file(folder / "model.safetensors")
    del weights["text_model.pooler.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def changed(name: str, **change: Any) -> Callable[[Path], None]:
    """Return what changes the top level of a JSON file."""
    return lambda folder: edit(folder / name, change)


def changed_part(part: str, **change: Any) -> Callable[[Path], None]:
    """Return what changes the config of a tower."""
    return lambda folder: edit_part(folder, part, change)


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (without("preprocessor_config.json"), "preprocessor_config.json"),
        (without_tokenizer, "vocab.txt"),
        (without_normaliser, "normalizer"),
        (cut_projection, "visual_projection"),
        (drop_pooler, "pooler"),
        (changed_part("vision_config", model_type="convnext"), "'convnext'"),
        (changed_part("vision_config", model_type=None), "None"),
        (changed_part("text_config", model_type="distilbert"), "'distilbert'"),
        (changed_part("text_config", model_type="clip_text_model"), "'clip_text_model'"),
        (changed_part("vision_config", image_size=64), "position"),
        (changed_part("vision_config", num_channels=1), "projection"),
        (changed_part("text_config", is_decoder=True), "decoder"),
        (changed_part("text_config", pad_token_id=3), "pad_token_id"),
        (changed("config.json", vision_config="vit"), "vision_config"),
        (changed("config.json", text_pooling="max"), "text_pooling"),
        (changed("config.json", model_type="align"), "AlignModel"),
        (changed("config.json", model_type="chinese_clip", architectures=["ChineseCLIPModel"]), "missing"),
        (changed("preprocessor_config.json", image_processor_type="Siglip2ImageProcessor"), "Siglip2"),
        (changed("preprocessor_config.json", image_processor_type=None), "image_processor_type"),
        (changed("preprocessor_config.json", rescale_factor=1 / 127.5), "rescale_factor"),
        (changed("preprocessor_config.json", size={"height": 32, "width": 40}), "size"),
        (changed("preprocessor_config.json", size={"height": 40, "width": 40}), "image_size"),
    ],
)
def test_unusable_checkpoints(checkpoint: Path, tmp_path: Path, damage: Callable[[Path], None], word: str) -> None:
    """A checkpoint that lacks a part, or has one of another model, is a CheckpointError; nothing is written."""
    damage(checkpoint)
    with pytest.raises(CheckpointError, match=word):
        export_checkpoint(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_the_supported_backbones_are_listed(checkpoint: Path, tmp_path: Path) -> None:
    """A backbone that is not supported is refused with the list of those that are."""
    edit_part(checkpoint, "vision_config", {"model_type": "convnext"})
    with pytest.raises(CheckpointError) as caught:
        export_checkpoint(checkpoint, tmp_path / "bundle")
    assert all(name in str(caught.value) for name in ("vit", "swin", "resnet", "efficientnet", "dinov2"))
