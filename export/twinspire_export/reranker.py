"""A reranker, which scores pairs of an image and a text, as an fp32 engine that is compared with torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from twinspire.bundle import ImageSettings, Precision, Reranker
from twinspire.contract import IMAGE, INPUT_IDS, PROBABILITY, padded
from twinspire.errors import CheckpointError
from twinspire.text import Tokenizer
from twinspire_export.engine_check import check_graph, open_engine, run_engine
from twinspire_export.onnx_export import Exporter, export_graph
from twinspire_export.probes import probe_captions, probe_images

RERANKER_FILE = f"reranker.{Precision.FP32}.onnx"
"""The name of the engine's file in a bundle."""

MAX_ERROR = 0.01
"""The largest difference from torch, as a part of the distance to the nearer of 0 and 1.

Not an absolute one: of a model that is sure of all probes, a wrong graph would differ by little too.
"""

PROBES = 24
"""Pairs that are compared: each image with three captions, each caption with two images."""

_BATCH = 8

ScorePairs = Callable[[NDArray[np.uint8], Sequence[str]], NDArray[np.float32]]
"""Score image n (N, H, W, 3), resized and cropped, with caption n: (N,), from 0 to 1."""


def export_reranker(
    module: nn.Module,
    destination: Path,
    *,
    image: ImageSettings,
    tokenizer: Tokenizer,
    reference: ScorePairs | None = None,
) -> Reranker:
    """Write `module` as the ONNX file `destination`; return what the manifest says of it.

    Its `forward(image, input_ids)` takes uint8 (N, H, W, 3) RGB, of the size in `image`, resized and cropped, and int32
    (N, C), padded to the context of `tokenizer` with its padding id; it normalises and masks by itself and returns
    float32 (N, 1), the probability that text n is true of image n. The file is compared with `reference`, the original
    code, on generated images and captions; by default with `module` itself.

    Leaves no file where it raises: CheckpointError where torch gives no probabilities, where the file differs from the
    reference, and where the module does not fit one ONNX file; EngineError where the file does not keep the contract.
    """
    text = tokenizer.settings
    spec = Reranker.of_contract(image, text, {Precision.FP32: destination.name})
    images, captions = _pairs(image, tokenizer)
    input_ids = padded(tokenizer.encode(captions), text.pad_id, text.context_length)
    module.eval()  # before it is run, and traced: dropout and batch norms would change it
    expected = _run_module(module, images, input_ids) if reference is None else reference(images, captions)
    _check_reference(expected)
    try:
        export_graph(
            module,
            destination,
            inputs={IMAGE: torch.from_numpy(images[:2]), INPUT_IDS: torch.from_numpy(input_ids[:2])},
            exporter=Exporter.TORCH,
            output=PROBABILITY,
            free_lengths=(),
        )
        check_graph(destination, spec.inputs, spec.output, of="a reranker")
        _compare(destination, images, input_ids, expected)
    except BaseException:
        destination.unlink(missing_ok=True)
        raise
    return spec


def _pairs(image: ImageSettings, tokenizer: Tokenizer) -> tuple[NDArray[np.uint8], list[str]]:
    """Return PROBES images (N, H, W, 3) and as many captions."""
    images, captions = probe_images(image.height, image.width), probe_captions(tokenizer)
    rows = range(PROBES)
    return images[[row % len(images) for row in rows]], [captions[row % len(captions)] for row in rows]


def _run_module(module: nn.Module, images: NDArray[np.uint8], input_ids: NDArray[np.int32]) -> NDArray[np.float32]:
    """Score pairs with torch: (N,)."""
    scores = []
    with torch.inference_mode():
        for start in range(0, len(images), _BATCH):
            rows = slice(start, start + _BATCH)
            found = module(torch.from_numpy(images[rows]), torch.from_numpy(input_ids[rows])).numpy()
            if found.dtype != np.float32 or found.shape != (len(images[rows]), 1):
                raise CheckpointError(
                    f"the reranker {type(module).__name__} gives {found.shape} {found.dtype} for {len(images[rows])} "
                    f"pairs: expected ({len(images[rows])}, 1) float32"
                )
            scores.append(found[:, 0])
    return np.concatenate(scores)


def _check_reference(scores: NDArray[np.float32]) -> None:
    """Raise CheckpointError unless torch gave probabilities."""
    unusable = ~((scores >= 0) & (scores <= 1))  # NaN is neither
    if unusable.any():
        raise CheckpointError(
            f"the reranker gives {scores[unusable][0]:g} in torch itself for a pair of a generated image and a "
            "caption: expected a probability, 0 to 1. Its last step must be a sigmoid or a softmax, and its weights "
            "must be finite"
        )


def _compare(
    engine: Path, images: NDArray[np.uint8], input_ids: NDArray[np.int32], expected: NDArray[np.float32]
) -> None:
    """Raise CheckpointError where the engine differs from `expected` (N,), in one batch or for a pair alone."""
    session = open_engine(engine, engine.name)
    allowed = MAX_ERROR * np.minimum(expected, 1 - expected) + np.finfo(np.float32).eps
    for count in (len(images), 1):
        feed: dict[str, NDArray[Any]] = {IMAGE: images[:count], INPUT_IDS: input_ids[:count]}
        (found,) = run_engine(session, [PROBABILITY], feed, engine.name)
        difference = np.abs(found.reshape(-1) - expected[:count])
        if not (difference <= allowed[:count]).all():  # NaN is not
            worst = int(np.argmax(difference - allowed[:count]))
            raise CheckpointError(
                f"the exported reranker differs from torch: it gives {found.flat[worst]:.6f} in place of "
                f"{expected[worst]:.6f} in a batch of {count}; expected a difference of at most {allowed[worst]:.1g}. "
                "Nothing was written. The model has a feature that this export does not support: please report it"
            )
