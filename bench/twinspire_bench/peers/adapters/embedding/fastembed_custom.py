"""fastembed on the bundle's fp32 engines, as models of its own.

fastembed gives images as uint8 (N, 3, H, W), where it does not normalise them, and token ids as int64: a transposition
and a conversion are put in front of the engines. Its settings are written from the bundle's. It neither fits
images into a square nor rounds crops as torchvision does, and pads texts to the longest alone: models that need one of
these, as SigLIP needs texts of full length, get other vectors.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from fastembed import ImageEmbedding, TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
from onnx import TensorProto, helper
from PIL import Image
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

_IMAGE_MODEL = "Qdrant/clip-ViT-B-32-vision"  # a name that fastembed knows, whose files are replaced
_TEXT_MODEL = "peers/text"
_BATCH = 32


class FastembedCustom:
    """Decodes and encodes batches of 32 in turn, as fastembed does in one process."""

    description = "fp32 engines of the bundle, CPUExecutionProvider; decodes in between"

    def __init__(self, task: dict[str, Any]) -> None:
        work = Path(task["work"])
        common = {"threads": task["threads"], "providers": ["CPUExecutionProvider"]}
        self._images = ImageEmbedding(_IMAGE_MODEL, specific_model_path=str(_image_folder(task, work)), **common)
        TextEmbedding.add_custom_model(
            model=_TEXT_MODEL,
            pooling=PoolingType.DISABLED,
            normalization=False,
            sources=ModelSource(hf=_TEXT_MODEL),
            dim=1,  # only told to users
            model_file="model.onnx",
        )
        self._texts = TextEmbedding(_TEXT_MODEL, specific_model_path=str(_text_folder(task, work)), **common)

    def encode_images(self, files: list[str]) -> NDArray[np.float32]:
        """Encode N image files: (N, D) float32."""
        return np.stack(list(self._images.embed(files, batch_size=_BATCH)))

    def encode_text(self, text: str) -> NDArray[np.float32]:
        """Encode one text: (D,) float32."""
        vector: NDArray[np.float32] = next(iter(self._texts.embed([text])))
        return vector


def _image_folder(task: dict[str, Any], work: Path) -> Path:
    settings, folder = task["image"], work / "image"
    folder.mkdir()
    size = {"height": settings["height"], "width": settings["width"]}
    scaled = {"shortest_edge": settings["shortest_side"]} if settings["resize"] == "shortest_side" else size
    config = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": scaled,
        "resample": int(Image.Resampling[settings["interpolation"].upper()]),
        "do_center_crop": settings["resize"] == "shortest_side",
        "crop_size": size,
        "do_rescale": False,
        "do_normalize": False,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    model = onnx.load(task["image_engine"])
    name = model.graph.input[0].name
    shape = model.graph.input[0].type.tensor_type.shape
    batch, height, width, channels = ((axis.dim_param or axis.dim_value) for axis in shape.dim)
    given = helper.make_tensor_value_info("pixels", TensorProto.UINT8, [batch, channels, height, width])
    model.graph.input[0].CopyFrom(given)
    model.graph.node.insert(0, helper.make_node("Transpose", ["pixels"], [name], perm=[0, 2, 3, 1]))
    onnx.save(model, folder / "model.onnx")
    return folder


def _text_folder(task: dict[str, Any], work: Path) -> Path:
    settings, folder = task["text"], work / "text"
    folder.mkdir()
    shutil.copy(task["tokenizer"], folder / "tokenizer.json")
    pad = Tokenizer.from_file(task["tokenizer"]).id_to_token(settings["pad_id"])
    documents = {
        "config": {"pad_token_id": settings["pad_id"]},
        "tokenizer_config": {"model_max_length": settings["context_length"], "pad_token": pad},
        "special_tokens_map": {"pad_token": pad},
    }
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document))
    model = onnx.load(task["text_engine"])
    name = model.graph.input[0].name
    shape = [(axis.dim_param or axis.dim_value) for axis in model.graph.input[0].type.tensor_type.shape.dim]
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("input_ids", TensorProto.INT64, shape))
    for node in model.graph.node:
        node.input[:] = ["ids_int32" if value == name else value for value in node.input]
    model.graph.node.insert(0, helper.make_node("Cast", ["input_ids"], ["ids_int32"], to=TensorProto.INT32))
    onnx.save(model, folder / "model.onnx")
    return folder


def open_peer(task: dict[str, Any]) -> FastembedCustom:
    """Write the models as fastembed reads them, and load them."""
    return FastembedCustom(task)
