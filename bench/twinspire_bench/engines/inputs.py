"""What the contestants need on disk: bundles, the graphs of foreign runtimes, images and captions."""

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

from twinspire.bundle import Bundle, Precision, Tower
from twinspire.errors import InputError, MissingDependencyError
from twinspire.images import Preprocessor, load_image
from twinspire_bench.cli_runner import TWINSPIRE, SeededModel, run
from twinspire_eval.datasets import CaptionedImages

# What people photograph; how long the longer side of a file takes to decode matters.
FOLDER_SIZE = (640, 480)
_JPEG_QUALITY = 90
_PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class Material:
    """Paths. `bundle` has int8 engines, `plain` those of the checkpoint as it is: nothing rewritten or quantized.

    `pixels_onnx` is the plain image tower from the point on where pixels are float32 and normalised, as fastembed
    wants it; `openvino_int8` the plain image tower quantized by NNCF for OpenVINO.
    """

    checkpoint: Path
    bundle: Path
    plain: Path
    pixels_onnx: Path
    openvino_int8: Path
    pictures: Path
    captions: Path
    folder: Path

    def plain_engine(self, tower: Tower) -> Path:
        """Return the file of a plain fp32 engine."""
        return Bundle.open(self.plain).engine(tower, Precision.FP32)


def make_material(
    model: SeededModel,
    *,
    data: CaptionedImages,
    captions: Sequence[str],
    say: Callable[[str], None],
) -> Material:
    """Make what is not in the model's folder yet; its bundle has int8 engines.

    Raises EngineError where a command fails, MissingDependencyError where a contestant is not installed.
    """
    bundle = model.bundle
    material = Material(
        checkpoint=model.checkpoint,
        bundle=bundle.path,
        plain=model.folder / "plain",
        pixels_onnx=model.folder / "pixels" / "model.onnx",
        openvino_int8=model.folder / "openvino" / "image.int8.xml",
        pictures=model.folder / "pictures.npy",
        captions=model.folder / "captions.json",
        folder=model.folder / "folder",
    )
    if not material.plain.exists():
        say("exporting the checkpoint as it is")
        run(*TWINSPIRE, "export", model.checkpoint, "-o", material.plain, "--name", bundle.name, "--rewrites", "none")
    pictures = Preprocessor(bundle.image).many(data.images)  # (N, S, S, 3)
    np.save(material.pictures, pictures)
    material.captions.write_text(json.dumps(list(captions)), encoding="utf-8")
    write_folder(data, material.folder)
    if not material.pixels_onnx.exists():
        material.pixels_onnx.parent.mkdir(exist_ok=True)
        (material.pixels_onnx.parent / _PREPROCESSOR).write_bytes((model.checkpoint / _PREPROCESSOR).read_bytes())
        cut_after_normalisation(material.plain_engine(Tower.IMAGE), material.pixels_onnx)
    if not material.openvino_int8.exists():
        say("quantizing the plain image tower for OpenVINO")
        _quantize_for_openvino(material.plain_engine(Tower.IMAGE), pictures, material.openvino_int8)
    return material


def cut_after_normalisation(engine: Path, destination: Path) -> None:
    """Write the part of an image engine that begins with the patch convolution's input, (N, 3, S, S) float32."""
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
            node.input[0] = pixels  # asked for how many there are, the first axis of either
    outputs = [output.name for output in model.graph.output]
    onnx.save(Extractor(model).extract_model([pixels], outputs), destination)


def _quantize_for_openvino(engine: Path, pictures: Any, destination: Path) -> None:  # noqa: ANN401
    """Quantize as NNCF's documentation has it for transformers, on the images that are measured later."""
    try:
        import nncf
        import openvino
    except ImportError as error:
        raise MissingDependencyError("nncf and openvino", "quantize", "OpenVINO's own int8") from error
    plain, samples = openvino.Core().read_model(engine), nncf.Dataset([picture[None] for picture in pictures])
    with redirect_stdout(sys.stderr):  # nncf draws its progress bars there
        model = nncf.quantize(plain, samples, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(pictures))
    destination.parent.mkdir(exist_ok=True)
    openvino.save_model(model, destination, compress_to_fp16=False)


def write_folder(data: CaptionedImages, folder: Path) -> None:
    """Write the images as JPEG files of 640x480."""
    from PIL import Image, ImageOps

    shutil.rmtree(folder, ignore_errors=True)  # may hold those of another data set
    folder.mkdir()
    for position, picture in enumerate(data.images):
        fitted = ImageOps.fit(load_image(picture), FOLDER_SIZE, Image.Resampling.BICUBIC)
        fitted.save(folder / f"{position:05d}.jpg", quality=_JPEG_QUALITY)
