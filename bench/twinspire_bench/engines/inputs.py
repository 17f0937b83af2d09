"""Input files of the peers: bundles, models for other runtimes, images and captions."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire.bundle import Bundle, Precision, Tower
from twinspire.errors import InputError, MissingDependencyError
from twinspire.images import Preprocessor, load_image
from twinspire_bench.scripts import TWINSPIRE, RandomModel, run
from twinspire_eval.datasets import CaptionedImages

# A common size of photographs: the time to decode a file depends on it.
FOLDER_SIZE = (640, 480)
_JPEG_QUALITY = 90
_PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class PeerInputs:
    """Paths. `bundle` has int8 engines, `plain` the checkpoint's fp32 engines without rewrites.

    `fastembed_onnx` is the plain image tower without its normalisation, which fastembed does itself; `openvino_int8` is
    the plain image tower quantized by NNCF for OpenVINO. `images` is a .npy file, (N, S, S, 3) uint8; `captions` a JSON
    list of strings; `folder` holds JPEG files.
    """

    checkpoint: Path
    bundle: Path
    plain: Path
    fastembed_onnx: Path
    openvino_int8: Path
    images: Path
    captions: Path
    folder: Path

    def plain_engine(self, tower: Tower) -> Path:
        """Return the file of a plain fp32 engine."""
        return Bundle.open(self.plain).engine(tower, Precision.FP32)


def make_inputs(
    model: RandomModel,
    *,
    data: CaptionedImages,
    captions: Sequence[str],
    say: Callable[[str], None],
) -> PeerInputs:
    """Make the inputs that the model's folder lacks.

    Raises EngineError where a command fails, MissingDependencyError where the package of a peer is not installed.
    """
    bundle = model.bundle
    inputs = PeerInputs(
        checkpoint=model.checkpoint,
        bundle=bundle.path,
        plain=model.folder / "plain",
        fastembed_onnx=model.folder / "pixels" / "model.onnx",
        openvino_int8=model.folder / "openvino" / "image.int8.xml",
        images=model.folder / "images.npy",
        captions=model.folder / "captions.json",
        folder=model.folder / "folder",
    )
    if not inputs.plain.exists():
        say("exporting the checkpoint without rewrites")
        run(*TWINSPIRE, "export", model.checkpoint, "-o", inputs.plain, "--name", bundle.name, "--rewrites", "none")
    images = Preprocessor(bundle.image).many(data.images)  # (N, S, S, 3)
    np.save(inputs.images, images)
    inputs.captions.write_text(json.dumps(list(captions)), encoding="utf-8")
    write_folder(data, inputs.folder)
    if not inputs.fastembed_onnx.exists():
        inputs.fastembed_onnx.parent.mkdir(exist_ok=True)
        (inputs.fastembed_onnx.parent / _PREPROCESSOR).write_bytes((model.checkpoint / _PREPROCESSOR).read_bytes())
        cut_after_normalisation(inputs.plain_engine(Tower.IMAGE), inputs.fastembed_onnx)
    if not inputs.openvino_int8.exists():
        say("quantizing the plain image tower for OpenVINO")
        quantize_for_openvino(inputs.plain_engine(Tower.IMAGE), images, inputs.openvino_int8)
    return inputs


def cut_after_normalisation(engine: Path, destination: Path) -> None:
    """Write the part of an image engine from the input of the patch convolution on, (N, 3, S, S) float32."""
    try:
        import onnx
        from onnx.utils import Extractor
    except ImportError as error:
        raise MissingDependencyError("onnx", "bench", "Preparing an engine for fastembed") from error
    model = onnx.shape_inference.infer_shapes(onnx.load(engine))
    convolution = next((node for node in model.graph.node if node.op_type == "Conv"), None)
    if convolution is None:
        raise InputError(f"{engine} has no convolution: expected the image tower of a vision transformer")
    pixels, image = convolution.input[0], model.graph.input[0].name
    for node in model.graph.node:
        if node.op_type == "Shape" and node.input[0] == image:
            node.input[0] = pixels  # it reads the batch size, which both tensors have
    outputs = [output.name for output in model.graph.output]
    onnx.save(Extractor(model).extract_model([pixels], outputs), destination)


def quantize_for_openvino(engine: Path, inputs: Sequence[NDArray[Any]] | NDArray[Any], destination: Path) -> None:
    """Quantize as NNCF documents it for transformers, calibrated on `inputs`, images or token ids without a batch."""
    try:
        import nncf
        import openvino
    except ImportError as error:
        raise MissingDependencyError("nncf and openvino", "quantize", "OpenVINO's own int8") from error
    plain, samples = openvino.Core().read_model(engine), nncf.Dataset([each[None] for each in inputs])
    with redirect_stdout(sys.stderr):  # nncf prints progress bars
        model = nncf.quantize(plain, samples, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(inputs))
    destination.parent.mkdir(exist_ok=True)
    openvino.save_model(model, destination, compress_to_fp16=False)


def write_folder(data: CaptionedImages, folder: Path) -> None:
    """Write the images as JPEG files of 640x480 pixels, in place of what the folder holds."""
    from PIL import Image, ImageOps

    shutil.rmtree(folder, ignore_errors=True)  # may hold files of another data set
    folder.mkdir()
    for position, image in enumerate(data.images):
        fitted = ImageOps.fit(load_image(image), FOLDER_SIZE, Image.Resampling.BICUBIC)
        fitted.save(folder / f"{position:05d}.jpg", quality=_JPEG_QUALITY)
