"""What the tests of model families share: captions, awkward texts and images, parameters, cosines, serving."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from support.data import ODD_IMAGES, PHOTOS, VAL2017_CAPTIONS
from twinspire import Client
from twinspire.bundle import Bundle
from twinspire.errors import MissingDependencyError

ODD_TEXTS = [
    "",
    " ",
    "a",
    "A CAT, in the Snow!",
    "café naïve Ünïcode",
    "一只猫在雪地里",
    "夜晚的海上有两艘小船。",
    "👍🏽 two 🐈‍⬛ cats",
    "tab\tand\nnew line",
    "word " * 700,
    "一" * 700,
]
"""Texts that tokenizers treat differently: empty, accented, Chinese, emoji, and longer than any context."""


def captions(count: int = 2_000) -> list[str]:
    """Return up to `count` COCO captions."""
    document = json.loads(VAL2017_CAPTIONS.read_text(encoding="utf-8"))
    return [annotation["caption"] for annotation in document["annotations"]][:count]


def pictures() -> list[Image.Image]:
    """Return photographs, readable odd images and generated ones: non-square, tiny and grey; all RGB."""
    found: list[Image.Image] = []
    for path in [*sorted(PHOTOS.iterdir())[:8], *sorted(ODD_IMAGES.iterdir())]:
        if path.suffix in (".jpg", ".png", ".webp") and path.name != "broken.png":
            try:
                with Image.open(path) as image:
                    found.append(Image.fromarray(np.asarray(image.convert("RGB"))))  # pixels alone, no orientation
            except (OSError, SyntaxError):
                continue
    draw = np.random.default_rng(0)
    for height, width in ((1, 1), (3, 500), (500, 3), (31, 33), (224, 640)):
        found.append(Image.fromarray(draw.integers(0, 256, (height, width, 3), np.uint8)))
    return [*found, Image.new("RGB", (50, 40), (127, 127, 127))]


def perturb(model: Any, *, seed: int = 0) -> None:
    """Add noise to biases, norms and tokens of a torch model: as initialised, mistakes in them would go unseen."""
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1 or not parameter.any():
                parameter.add_(torch.randn_like(parameter) * 0.05)


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
    from twinspire_server.repository import build_repository
    from twinspire_server.triton import TritonServer, find_triton

    try:
        find_triton()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    repository = folder / "repository"
    build_repository([bundle.path], repository, threads=1, **options)
    with TritonServer(repository) as server, Client.connect(server.grpc_url, bundle) as client:
        yield client
