"""A tiny real bundle, for every test that wants engines that run: milliseconds to make, 40 kB on the disk.

Its towers are random but honour the contract: the text tower is causal and pooled at the end token, so that
trimming is exact, and a word's place matters. `TinyModel` computes the same in NumPy and float64, as the
tests' reference.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from support.rerankers import with_reranker
from twinspire.bundle import (
    AudioPadding,
    AudioSettings,
    Bundle,
    BundleWriter,
    Certificate,
    ImageSettings,
    ManifestDraft,
    MelNorm,
    MelScale,
    Padding,
    Precision,
    Probes,
    Source,
    TextSettings,
    Tower,
    TowerProbes,
    TowerSpecs,
)

# FAISS's threads would spin while others wait for a core: on two busy ones some tests then take ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A shell starts a background job with SIGINT ignored, and commands that tests start and interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

PAD, START, END, UNKNOWN = range(4)
WORDS = ("a", "the", "red", "blue", "green", "large", "cat", "dog", "house", "boat", "left", "of", "on", "snow")
AUDIO = AudioSettings(
    sample_rate=8000,
    max_length_s=1,
    fft_size=256,
    hop=400,
    mels=12,
    min_hz=50,
    max_hz=3800,
    mel_scale=MelScale.SLANEY,
    mel_norm=MelNorm.SLANEY,
    padding=AudioPadding.REPEAT_PAD,
)
_CERTIFICATE = Certificate(
    reference="fp32 engine",
    data="drawn",
    samples=4,
    min_cosine=0.999,
    mean_cosine=0.9999,
    recall=None,
    versions={"numpy": np.__version__},
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts a real Triton, and what runs from end to end, as slow."""
    for item in items:
        if "needs_triton" in getattr(item, "fixturenames", ()) or item.path.parent.name in ("end_to_end", "container"):
            item.add_marker(pytest.mark.slow)


@dataclass(frozen=True)
class TinyModel:
    """The weights of both towers, and what they give in float64."""

    image_weight: NDArray[np.float32]  # (S * S * 3, D)
    token_table: NDArray[np.float32]  # (V, H)
    place_table: NDArray[np.float32]  # (context, H)
    text_weight: NDArray[np.float32]  # (H, D)
    audio_weight: NDArray[np.float32]  # (F * M, D)
    size: int

    @classmethod
    def draw(cls, *, seed: int, size: int, context_length: int, dim: int) -> TinyModel:
        """Draw the weights."""
        generator = np.random.default_rng(seed)

        def normal(*shape: int) -> NDArray[np.float32]:
            return generator.normal(size=shape).astype(np.float32)

        vocabulary = 4 + len(WORDS)
        return cls(
            normal(size * size * 3, dim),
            normal(vocabulary, 8),
            normal(context_length, 8),
            normal(8, dim),
            normal(AUDIO.frames * AUDIO.mels, dim),
            size,
        )

    def rounded(self) -> TinyModel:
        """Make a model that differs a little, as an int8 engine does from its reference."""
        return TinyModel(
            self.image_weight.round(1),
            self.token_table,
            self.place_table,
            self.text_weight.round(1),
            self.audio_weight.round(1),
            self.size,
        )

    def encode_images(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Encode (N, S, S, 3) uint8 to (N, D), L2-normalised."""
        flat = images.reshape(len(images), -1).astype(np.float64) / 255 - 0.5
        return _normalised(flat @ self.image_weight.astype(np.float64))

    def encode_audio(self, spectrograms: NDArray[np.float32]) -> NDArray[np.float64]:
        """Encode (N, F, M) float32 to (N, D), L2-normalised."""
        flat = spectrograms.reshape(len(spectrograms), -1).astype(np.float64) / 50 + 1
        return _normalised(flat @ self.audio_weight.astype(np.float64))

    def encode_texts(self, sequences: Sequence[NDArray[np.int32]]) -> NDArray[np.float64]:
        """Encode ragged ids to (N, D), L2-normalised; one by one and without padding."""
        rows = []
        for ids in sequences:
            states = self.token_table[ids].astype(np.float64) * self.place_table[: len(ids)]
            pooled = states[: list(ids).index(END) + 1].sum(axis=0)
            rows.append(pooled @ self.text_weight.astype(np.float64))
        return _normalised(np.array(rows).reshape(len(rows), -1))

    def image_graph(self, output: str = "embedding") -> onnx.ModelProto:
        """Build the image tower in ONNX."""
        nodes = [
            helper.make_node("Cast", ["image"], ["real"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["real", "scale"], ["unit"]),
            helper.make_node("Sub", ["unit", "half"], ["centred"]),
            helper.make_node("Flatten", ["centred"], ["flat"], axis=1),
            helper.make_node("MatMul", ["flat", "weight"], ["raw"]),
            *_normalise(output),
        ]
        constants = {"scale": np.float32(255), "half": np.float32(0.5), "weight": self.image_weight}
        shape = ["batch", self.size, self.size, 3]
        return self._graph(nodes, ("image", TensorProto.UINT8, shape), constants, output)

    def audio_graph(self) -> onnx.ModelProto:
        """Build the audio tower in ONNX."""
        nodes = [
            helper.make_node("Div", ["audio", "scale"], ["scaled"]),
            helper.make_node("Add", ["scaled", "one"], ["centred"]),
            helper.make_node("Flatten", ["centred"], ["flat"], axis=1),
            helper.make_node("MatMul", ["flat", "weight"], ["raw"]),
            *_normalise("embedding"),
        ]
        constants = {"scale": np.float32(50), "one": np.float32(1), "weight": self.audio_weight}
        shape = ["batch", AUDIO.frames, AUDIO.mels]
        return self._graph(nodes, ("audio", TensorProto.FLOAT, shape), constants, "embedding")

    def text_graph(self, output: str = "embedding") -> onnx.ModelProto:
        """Build the text tower in ONNX: CumSum is its causal mask, the first end token is gathered."""
        nodes = [
            helper.make_node("Gather", ["tokens", "input_ids"], ["words"]),  # (N, L, H)
            helper.make_node("Shape", ["input_ids"], ["length"], start=1, end=2),
            helper.make_node("Slice", ["places", "zero", "length", "zero"], ["place"]),  # (L, H)
            helper.make_node("Mul", ["words", "place"], ["states"]),
            helper.make_node("CumSum", ["states", "one"], ["causal"]),
            helper.make_node("Equal", ["input_ids", "end"], ["is_end"]),
            helper.make_node("Cast", ["is_end"], ["end_mask"], to=TensorProto.INT32),
            helper.make_node("ArgMax", ["end_mask"], ["end_place"], axis=1, keepdims=1),  # (N, 1), the first
            helper.make_node("GatherND", ["causal", "end_place"], ["pooled"], batch_dims=1),  # (N, H)
            helper.make_node("MatMul", ["pooled", "weight"], ["raw"]),
            *_normalise(output),
        ]
        constants = {
            "tokens": self.token_table,
            "places": self.place_table,
            "weight": self.text_weight,
            "zero": np.array([0], np.int64),
            "one": np.array(1, np.int64),
            "end": np.array(END, np.int32),
        }
        return self._graph(nodes, ("input_ids", TensorProto.INT32, ["batch", "length"]), constants, output)

    def _graph(
        self,
        nodes: list[onnx.NodeProto],
        given: tuple[str, int, list[Any]],
        constants: dict[str, Any],
        output: str,
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            nodes,
            "tower",
            [helper.make_tensor_value_info(*given)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", self.image_weight.shape[1]])],
            [
                numpy_helper.from_array(np.asarray(value), name)
                for name, value in {**constants, "last": np.array([-1])}.items()
            ],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        return model


def _normalise(output: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("ReduceL2", ["raw", "last"], ["norm"], keepdims=1),
        helper.make_node("Div", ["raw", "norm"], [output]),
    ]


def _normalised(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    norms: NDArray[np.float64] = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / norms


def tokenizer_json() -> str:
    """Build a word-level tokenizer of `WORDS` that writes start and end, in Hugging Face's format."""
    specials = {"<pad>": PAD, "<start>": START, "<end>": END, "<unknown>": UNKNOWN}
    vocabulary = {**specials, **{word: 4 + place for place, word in enumerate(WORDS)}}
    added = [
        {"id": token, "content": word, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for word, token in specials.items()
    ]
    pieces = [{"SpecialToken": {"id": name, "type_id": 0}} for name in ("<start>", "<end>")]
    single = [pieces[0], {"Sequence": {"id": "A", "type_id": 0}}, pieces[1]]
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                name: {"id": name, "ids": [token], "tokens": [name]} for name, token in specials.items()
            },
        },
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unknown>"},
    }
    return json.dumps(document)


@dataclass(frozen=True)
class Tiny:
    """A tiny bundle and the model that it was made of; `int8` is the model of its int8 engines."""

    bundle: Bundle
    model: TinyModel
    int8: TinyModel


def make_tiny_bundle(
    destination: Path,
    *,
    seed: int = 0,
    size: int = 16,
    context_length: int = 20,
    dim: int = 12,
    padding: Padding = Padding.TRIM,
    precisions: Sequence[Precision] = (Precision.FP32, Precision.INT8),
    certified: bool = True,
    graphs: dict[Tower, onnx.ModelProto] | None = None,
    models: Mapping[Precision, TinyModel] | None = None,
    towers: Sequence[Tower] = (Tower.IMAGE, Tower.TEXT),
    dims: tuple[int, ...] | None = None,
) -> Tiny:
    """Write a tiny bundle named `tiny`; another seed gives another space, `dims` are lengths that it allows.

    `graphs` replaces a tower's engine at every precision, `models` both engines of a precision, for tests of broken
    ones; `certified=False` leaves the certificates out; `towers` are those that the bundle has.
    """
    model = TinyModel.draw(seed=seed, size=size, context_length=context_length, dim=dim)
    int8 = model.rounded()
    image = ImageSettings.centre_crop(size, mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0))
    text = TextSettings(context_length=context_length, pad_id=PAD, eos_id=END, padding=padding)
    draft = ManifestDraft(
        name="tiny",
        family="tiny",
        space=f"{seed:064x}",
        dim=dim,
        towers=TowerSpecs.of_contract(
            image if Tower.IMAGE in towers else None,
            text if Tower.TEXT in towers else None,
            audio=AUDIO if Tower.AUDIO in towers else None,
            dim=dim,
        ),
        logit_scale=10.0,
        logit_bias=None,
        source=Source(checkpoint="drawn by the tests"),
        dims=dims,
    )
    engines = {}
    with BundleWriter(destination) as writer:
        for precision in precisions:
            source = (models or {Precision.INT8: int8}).get(precision, model)
            own = {
                Tower.IMAGE: source.image_graph(),
                Tower.TEXT: source.text_graph(),
                Tower.AUDIO: source.audio_graph(),
                **(graphs or {}),
            }
            for tower, graph in ((tower, own[tower]) for tower in towers):
                name = f"{tower}.{precision}.onnx"
                writer.path(name).write_bytes(graph.SerializeToString())
                engines[tower, precision] = (name, _CERTIFICATE if certified else None)
        if Tower.TEXT in towers:
            writer.path("tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
        images = np.random.default_rng(seed).integers(0, 256, (2, size, size, 3), np.uint8)
        texts = [np.array([START, *words, END], np.int32) for words in ([], [6, 11])]
        audio = np.random.default_rng(seed).normal(-40, 20, (2, AUDIO.frames, AUDIO.mels)).astype(np.float32)
        probes = {
            Tower.AUDIO: TowerProbes(audio, model.encode_audio(audio).astype(np.float32)),
            Tower.IMAGE: TowerProbes(images, model.encode_images(images).astype(np.float32)),
            Tower.TEXT: TowerProbes(texts, model.encode_texts(texts).astype(np.float32)),
        }
        Probes({tower: probes[tower] for tower in towers}).save(writer.path("probes.npz"))
        return Tiny(writer.commit(draft, engines), model, int8)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Make the tiny bundle with fp32 and int8 engines once: bundles never change."""
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def rerank(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Make the tiny bundle with a reranker once (see support/rerankers.py)."""
    return with_reranker(tiny.bundle, tmp_path_factory.mktemp("rerank") / "tiny")


@pytest.fixture(scope="session")
def make_tiny_at() -> Callable[..., Tiny]:
    """Write a tiny bundle into a folder, for fixtures that several tests share."""
    return make_tiny_bundle


@pytest.fixture
def make_tiny(tmp_path: Path) -> Callable[..., Tiny]:
    """Write further tiny bundles: `make_tiny(name, **options)`, with the options of `make_tiny_bundle`."""

    def make(name: str = "tiny", **options: Any) -> Tiny:
        return make_tiny_bundle(tmp_path / name, **options)

    return make


@pytest.fixture(scope="session")
def fake_cuda_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile a `libcuda.so.1` that reports one GPU, or what the variables in `cuda_driver.c` say.

    In this process load it by its path, in others through LD_LIBRARY_PATH. It has no SONAME: otherwise the linker would
    take it for the driver in every later test of this process.
    """
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    library = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    source = Path(__file__).with_name("cuda_driver.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
    return library
