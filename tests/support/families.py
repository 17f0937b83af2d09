"""What the tests of model families share: inputs, weights that hide no mistake, comparisons with a reference."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from support.data import ODD_IMAGES, PHOTOS, VAL2017_CAPTIONS
from twinspire import Client
from twinspire.bundle import Bundle, Padding, Precision, Tower
from twinspire.contract import padded
from twinspire.errors import ImageError, MissingDependencyError
from twinspire.images import Preprocessor, load_image
from twinspire.text import Tokenizer
from twinspire.towers.batching import one_batch
from twinspire_export import export_checkpoint, quantize_bundle
from twinspire_export.engine_check import EngineRunner, certify
from twinspire_export.fp16 import to_fp16
from twinspire_server.repository import build_repository
from twinspire_server.triton import TritonServer, find_triton

MIN_COSINE = 0.99999
TOLERANCE = 1e-5  # of components of unit vectors; float32 sums in another order, which random weights amplify
SERVED_TOLERANCE = 1e-6  # the same engine, with other rows in its batch

CHINESE = [
    "一只猫坐在窗台上。",
    "两艘小船在夜晚的海上，灯光很亮",
    "雪地里有三个人，其中一人拿着黄色的雨伞！",
    "草地上，绿树的左边有一座蓝色的房子；天空中有飞机。",
    "这件红色T恤卖15元（包邮）。",
    "漢字も仮名も混ざった文、한국어도",
]
HARD_TEXTS = [
    "",
    " ",
    "\n\t a cat \r\n",
    "🐱🚗👩‍👩‍👧 a cat ❤️",
    "Ünïcödé CAFÉ naïve Straße İstanbul",
    "UPPER lower MiXeD 123,456.78% & <tag> #hash @name",
    "a\u00a0b\u200bc\ufeffd",
    "[SEP] in the text",
    "super" * 30,
    "a dog " * 300,
    "猫" * 600,
]


def coco_captions(count: int) -> list[str]:
    """Return the first captions of COCO val2017, or the few of the excerpt."""
    annotations = json.loads(VAL2017_CAPTIONS.read_text(encoding="utf-8"))["annotations"]
    return [annotation["caption"] for annotation in annotations[:count]]


def photographs_and_odd_images() -> list[Image.Image]:
    """Return photographs, odd files that can be decoded, and images of 1 x 1, 3 x 500 and grey pixels, all as RGB."""
    generator = np.random.default_rng(0)
    images = []
    for path in [*sorted(PHOTOS.glob("*.jpg"))[:12], *sorted(ODD_IMAGES.glob("*.*"))]:
        with suppress(ImageError):
            images.append(Image.fromarray(np.asarray(load_image(path))))  # the pixels alone, without EXIF
    for height, width in ((1, 1), (3, 500), (500, 3), (33, 32), (31, 47)):
        images.append(Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)))
    images.append(Image.fromarray(generator.integers(0, 256, (40, 70), dtype=np.uint8)).convert("RGB"))
    return images


def fill_weights(model: Any, *, seed: int = 0) -> Any:
    """Fill every parameter of `model`: as initialised, biases are 0 and norms 1, and mistakes in them go unseen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "logit_scale":
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name.lower():
                parameter.copy_(noise * 0.3 + float(name.endswith("weight")))
            elif "embeddings" in name and parameter.dim() == 2:
                parameter.copy_(noise)
            else:
                fan_in = float(np.prod(parameter.shape[1:]))
                parameter.copy_(noise * (0.1 if parameter.dim() == 1 else 1.5 * fan_in**-0.5))
    return model.eval()


def perturb(model: Any, *, seed: int = 0) -> None:
    """Add noise to biases, norms and tokens of a torch model: as initialised, mistakes in them would go unseen."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1 or not parameter.any():
                parameter.add_(torch.randn_like(parameter) * 0.05)


def fill_batch_norms(model: Any, *, seed: int = 0) -> Any:
    """Draw the weights and statistics of every batch norm: as initialised they change nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                for tensor, centre in ((module.weight, 1.0), (module.running_mean, 0.0)):
                    tensor.copy_(centre + 0.3 * torch.randn(tensor.shape, generator=generator))
                module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
    return model


def export_without_rewrites(checkpoint: Path, bundle: Bundle, folder: Path) -> tuple[Bundle, set[Tower]]:
    """Export the checkpoint of `bundle` once more, without rewrites; return it and the towers whose engines differ."""
    plain = export_checkpoint(checkpoint, folder / "plain", rewrites=())
    assert plain.space == bundle.space
    before, after = (
        {tower: made.manifest.engines[tower][Precision.FP32].sha256 for tower in made.towers}
        for made in (plain, bundle)
    )
    return plain, {tower for tower in plain.towers if before[tower] != after[tower]}


def assert_pixels(bundle: Bundle, processor: Any) -> None:
    """Compare preprocessing with transformers' slow image processor, byte by byte."""
    images = photographs_and_odd_images()
    found = Preprocessor(bundle.image, threads=1).many(images)
    for image, pixels in zip(images, found, strict=True):
        # Without the layout an image of 1 or 3 rows is taken for one whose channels come first.
        options = {"do_rescale": False, "do_normalize": False, "input_data_format": "channels_last"}
        expected = processor(image, **options, return_tensors="np")["pixel_values"][0]
        assert np.array_equal(pixels.transpose(2, 0, 1), expected), f"an image of {image.size} pixels differs"


def assert_tokens(bundle: Bundle, encode: Callable[[str], list[int]], texts: Sequence[str]) -> None:
    """Compare token ids with `encode`, which cuts overlong texts."""
    found = Tokenizer(bundle.tokenizer_path, bundle.text).encode(texts)
    different = [text for text, ids in zip(texts, found, strict=True) if ids.tolist() != encode(text)]
    assert not different, f"{len(different)} of {len(texts)} texts, the first {different[0]!r}"


def assert_image_embeddings(bundle: Bundle, features: Callable[[list[Image.Image]], torch.Tensor]) -> None:
    """Compare the fp32 engine on images of any shape with `features` of PIL images: (N, D), of any length."""
    images = photographs_and_odd_images()
    runner, preprocessor = EngineRunner(bundle.engine(Tower.IMAGE, Precision.FP32)), Preprocessor(bundle.image)
    for batch in (1, 3, 17):
        chosen = images[-batch:]
        _assert_near(runner.embed([preprocessor.many(chosen)]), features(chosen), f"{batch} images")


def assert_text_embeddings(
    bundle: Bundle, features: Callable[[list[str]], torch.Tensor], *, tolerance: float = TOLERANCE
) -> None:
    """Compare the fp32 engine on texts of mixed lengths, padded in one batch, with `features`: (N, D)."""
    texts = [*coco_captions(10), *CHINESE, *HARD_TEXTS]
    tokenizer, runner = (
        Tokenizer(bundle.tokenizer_path, bundle.text),
        EngineRunner(bundle.engine(Tower.TEXT, Precision.FP32)),
    )
    for batch in (1, 3, 17):
        chosen = texts[-batch:]
        ids = tokenizer.encode(chosen)
        lengths = [bundle.text.context_length]
        for length in lengths if bundle.text.padding is Padding.MAX_LENGTH else [None, *lengths]:
            found = runner.embed([padded(ids, bundle.text.pad_id, length)])
            _assert_near(found, features(chosen), f"{batch} texts", tolerance)


def _assert_near(found: NDArray[np.float32], features: torch.Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    expected = torch.nn.functional.normalize(features.detach().double(), dim=-1).numpy()
    difference, cosine = np.abs(found - expected).max(), (found * expected).sum(axis=1).min()
    print(f"{what}: largest difference {difference:.1e}, smallest cosine {cosine:.7f}")
    assert difference <= tolerance, f"{what}: largest difference {difference}"
    assert cosine >= MIN_COSINE, f"{what}: smallest cosine {cosine}"


def assert_probabilities(bundle: Bundle, expected: torch.Tensor, images: list[Image.Image], texts: list[str]) -> None:
    """Compare the probabilities of `texts` for each of `images` with the model's own, (images, texts)."""
    with Client.local(bundle, precision=Precision.FP32, provider="cpu") as client:
        cosines = client.encode_images(images) @ client.encode_texts(texts).T
    bias = bundle.manifest.logit_bias
    logits = torch.from_numpy(cosines * bundle.manifest.logit_scale + (bias or 0.0))
    found = logits.softmax(dim=-1) if bias is None else logits.sigmoid()
    difference = (found - expected).abs().max().item()
    print(f"largest difference of probabilities {difference:.1e}")
    assert expected.std() > 1e-3, "the model's probabilities are all the same: the comparison says nothing"
    assert difference <= 1e-4, f"largest difference {difference}"


def assert_quantizes(bundle: Bundle, folder: Path, *, minimum_cosine: float) -> None:
    """Make int8 and fp16 engines; compare the int8 engines' certificates and the fp16 engines with `minimum_cosine`."""
    images = photographs_and_odd_images()
    quantized = quantize_bundle(bundle, folder, images=images * 2, captions=[*coco_captions(30), *CHINESE, *HARD_TEXTS])
    feeds = {Tower.IMAGE: Preprocessor(bundle.image).many(images), Tower.TEXT: _inputs(bundle, CHINESE + HARD_TEXTS)}
    for tower, feed in feeds.items():
        engine = bundle.engine(tower, Precision.FP32)
        half = folder.parent / f"{folder.name}.{tower}.fp16.onnx"
        onnx.save(to_fp16(onnx.load(engine)), half)
        expected = EngineRunner(engine).embed([feed])
        found = certify(EngineRunner(half).embed([feed]), expected, reference="fp32", data="odd inputs", packages=())
        int8 = quantized.manifest.engines[tower][Precision.INT8].certificate
        assert int8 is not None
        print(f"{tower}: smallest cosine to fp32 {int8.min_cosine:.5f} of int8, {found.min_cosine:.7f} of fp16")
        assert found.min_cosine >= 0.9999
        assert int8.min_cosine >= minimum_cosine


def _inputs(bundle: Bundle, texts: Sequence[str]) -> NDArray[np.int32]:
    return one_batch(Tokenizer(bundle.tokenizer_path, bundle.text).encode(texts), bundle.text)


def minimum_cosine(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the smallest cosine of the vectors of both, (..., D), in float64; print the largest difference."""
    assert found.shape == expected.shape
    a, b = found.astype(np.float64), expected.astype(np.float64)
    print(f"{a.shape}: largest difference {np.abs(a - b).max():.2e}")
    cosines = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    return float(cosines.min())


@contextmanager
def served(bundle: Bundle, folder: Path, **options: Any) -> Iterator[Client]:
    """Serve a bundle by Triton from its wheel and give a client of it; the repository is written into `folder`."""
    try:
        find_triton()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    repository = folder / "repository"
    build_repository([bundle.path], repository, threads=1, **options)
    with TritonServer(repository) as server, Client.connect(server.grpc_url, bundle) as client:
        yield client


def assert_served_like_local(bundle: Bundle, folder: Path) -> None:
    """Serve the fp32 engines through Triton from its wheel, and compare with the engines in this process."""
    images, texts = photographs_and_odd_images()[-6:], [*CHINESE, *HARD_TEXTS]
    with (
        served(bundle, folder, precision=Precision.FP32) as remote,
        Client.local(bundle, precision=Precision.FP32, provider="cpu") as local,
    ):
        pairs: list[tuple[str, NDArray[np.float32], NDArray[np.float32]]] = []
        if Tower.IMAGE in bundle.towers:
            pairs.append(("images", remote.encode_images(images), local.encode_images(images)))
        if Tower.TEXT in bundle.towers:
            pairs.append(("texts", remote.encode_texts(texts), local.encode_texts(texts)))
        for what, found, expected in pairs:
            difference = np.abs(found - expected).max()
            print(f"{what} served: largest difference {difference:.1e}")
            assert difference <= SERVED_TOLERANCE, f"{what}: largest difference {difference}"
