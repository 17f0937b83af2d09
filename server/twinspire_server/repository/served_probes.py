"""Probes of a served model: inputs with reference embeddings and bounds, in a file beside each version of a tower.

`twinspire serve` sends them through the running server to notice wrong vectors. Embeddings of the bundle's probes are
compared with the fp32 reference. The answers to encoded images and texts, which go through a server's own
preprocessing, are compared with the answers to their tensors, made here by the client's code: the engine is the same on
both ways, so that any difference is one of preprocessing.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinspire.bundle import Bundle, Certificate, DecodeMode, Precision, Tower
from twinspire.contract import padded
from twinspire.errors import BundleError, MissingDependencyError
from twinspire.images import Preprocessor
from twinspire.text import Tokenizer
from twinspire.towers import LocalTowers, Provider
from twinspire.towers.providers import InferencePrecision

PROBES = "probes.npz"
"""The file in a version's folder."""

RAW_TEXTS = (
    "A red car, parked in front of TWO old houses!",
    "don't stop - 3.14 kg of apples & pears (50% off)",
    "Über façade naïve café Ångström",
    "夜晚的海上有两艘小船，a small boat",
    "  several   spaces\tand a\nnew line 🙂",
)
"""What tokenizers treat differently: capitals, contractions, accents, digits, Chinese, white space, emoji."""

_FLOAT_LOSS = {Precision.FP32: 1e-6}
"""The loss that counts as rounding in float32, measured: 1e-7 at most."""
_ROUNDING_LOSS = 1e-5
"""The same of other precisions; measured in fp16: 9e-7 (ViT-B/32)."""
_BF16_LOSS = 5e-3
"""What bf16 may lose, as an int8 engine may by its recipe; measured: 6e-5 (sample), 4e-4 (ViT-B/32)."""
_RUNTIMES_DIFFER, _RUNTIMES_DIFFER_AT_MOST = 2.0, 4.0
"""How many times the loss measured at the build an engine may have in another runtime: twice, or four times where the
certificate allows it, which is twice the angle. int8 of the sample: onnxruntime 5.2e-4, OpenVINO 4.7e-4, OpenVINO in
bf16 7.6e-4."""
_UNCERTIFIED_LOSS = 1e-2
_NOISE_SHARE = 0.1
"""The share of an engine's mean loss by which answers to one input may differ with the batch. Measured on processors:
none beyond 1e-15. A kernel for another batch sums in another order, which turns over few of the roundings that make up
the loss."""
_DECODING_LOSS = 1e-4
"""How much two versions of libjpeg may change a vector; a crop that is off by a pixel changes it 100 times as much."""
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, kw_only=True, eq=False)
class ServedProbes:
    """Inputs of one tower's model as it is served, and what its answers may differ.

    `inputs` (N, ...) are in the form of the model's input, `embedding` (N, D) or (N, Q, D) are their fp32 embeddings.
    An answer is right where its cosine to the fp32 embedding is `min_cosine` or more, and where that to another answer
    to the same input is `min_agreement` or more. `raw` holds R encoded images or texts in UTF-8, `raw_inputs`
    (R, ...) the same after preprocessing, `min_raw_agreement` the bound of the cosine between the answers to both.
    """

    tower: Tower
    inputs: NDArray[Any]
    embedding: NDArray[np.float32]
    min_cosine: float
    min_agreement: float
    raw: Sequence[bytes]
    raw_inputs: NDArray[Any]
    min_raw_agreement: float

    def save(self, path: Path) -> None:
        """Write an .npz without pickled objects; equal probes give equal files."""
        arrays: dict[str, Any] = {name: value for name, value in vars(self).items() if name != "raw"}
        arrays["tower"] = np.array(str(self.tower))
        arrays["raw"] = np.frombuffer(b"".join(self.raw), np.uint8)
        arrays["raw_sizes"] = np.array([len(item) for item in self.raw], np.int64)
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> ServedProbes:
        """Read a file of `save`. Raises BundleError that names the file."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                ends = np.cumsum(stored["raw_sizes"])
                raw = [part.tobytes() for part in np.split(stored["raw"], ends)[:-1]]
                bounds = {name: float(stored[name]) for name in ("min_cosine", "min_agreement", "min_raw_agreement")}
                return cls(
                    tower=Tower(str(stored["tower"])),
                    inputs=stored["inputs"],
                    embedding=stored["embedding"],
                    raw=raw,
                    raw_inputs=stored["raw_inputs"],
                    **bounds,
                )
        except _UNREADABLE as error:
            raise BundleError(f"{path} holds no probes: {error}. Build the repository again") from error


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbesFile:
    """The probes of a tower's model.

    `certificate` is that of the engine that is served, None where it has none; `decode` how encoded images are decoded.
    """

    bundle: Bundle
    tower: Tower
    precision: Precision
    certificate: Certificate | None
    decode: DecodeMode = DecodeMode.EXACT
    name: str = PROBES

    def write(self, path: Path) -> None:
        """Measure the engine on the bundle's probes, prepare the raw ones and write both.

        Raises EngineError where the engine cannot be run, BundleError where the probes cannot be read.
        """
        served_probes(self.bundle, self.tower, self.precision, self.certificate, decode=self.decode).save(path)


def served_probes(
    bundle: Bundle,
    tower: Tower,
    precision: Precision,
    certificate: Certificate | None,
    *,
    decode: DecodeMode = DecodeMode.EXACT,
) -> ServedProbes:
    """Return the probes of a tower's model that serves the engine of `precision`. Raises as `ProbesFile.write` does."""
    inputs, embedding = bundle.probes().towers[tower]
    raw, raw_inputs = _raw_probes(bundle, tower, decode)
    certified = None if certificate is None else (1 - certificate.min_cosine, 1 - certificate.mean_cosine)
    choice = bundle.manifest.auto
    in_bf16 = (
        choice is not None and choice.precision is precision and choice.inference_precision != InferencePrecision.F32
    )
    rounding = _FLOAT_LOSS.get(precision, _ROUNDING_LOSS)
    loss = largest_loss(
        None if certified is None else certified[0],
        _measured_loss(bundle, tower, precision, inputs, embedding),
        at_least=_BF16_LOSS if in_bf16 else rounding,
    )
    noise = max(rounding, _NOISE_SHARE * (loss if certified is None else certified[1]))
    return ServedProbes(
        tower=tower,
        inputs=_dense(bundle, tower, inputs),
        embedding=embedding,
        min_cosine=1 - loss,
        min_agreement=1 - noise,
        raw=raw,
        raw_inputs=_dense(bundle, tower, raw_inputs),
        min_raw_agreement=1 - max(_DECODING_LOSS, noise),
    )


def largest_loss(certified: float | None, measured: float | None, *, at_least: float) -> float:
    """Return the largest loss, 1 minus the cosine to fp32, that a right answer to a probe may have.

    It is the `certified` one: the largest over the certificate's data. The probes are other inputs, on which the engine
    had the loss `measured` at the build: where that is close to the certified one or above, twice that is allowed, and
    where it is far below, four times. None is unknown.
    """
    if certified is None:
        loss = _UNCERTIFIED_LOSS if measured is None else _RUNTIMES_DIFFER * measured
    elif measured is None:
        loss = _RUNTIMES_DIFFER * certified
    else:
        # Int8 sums overflow on a processor without VNNI: what is measured there is no measure for others.
        measured = min(measured, _RUNTIMES_DIFFER * certified)
        loss = min(max(certified, _RUNTIMES_DIFFER * measured), _RUNTIMES_DIFFER_AT_MOST * measured)
    return max(loss, at_least)


def _measured_loss(
    bundle: Bundle,
    tower: Tower,
    precision: Precision,
    inputs: Sequence[NDArray[Any]] | NDArray[Any],
    embedding: NDArray[np.float32],
) -> float | None:
    """Return the largest loss of the engine on the probes, None where onnxruntime is not installed."""
    try:
        towers = LocalTowers(bundle, precision=precision, provider=Provider.CPU, towers=(tower,))
    except MissingDependencyError:  # the container's engines run elsewhere
        return None
    encode: Any = {
        Tower.IMAGE: towers.encode_images, Tower.TEXT: towers.encode_texts, Tower.AUDIO: towers.encode_audio
    }[tower]  # fmt: skip
    try:
        return float(1 - smallest_cosines(encode(inputs), embedding).min())
    finally:
        towers.close()


def smallest_cosines(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosine of each item of `left` with the same one of `right`, (N, D): (N,) float64.

    Of items of several vectors, (N, Q, D), the smallest over them. NaN where a vector is zero or not finite.
    """
    a, b = left.astype(np.float64), right.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        cosines = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))  # (N,) or (N, Q)
    smallest: NDArray[np.float64] = cosines.reshape(len(cosines), -1).min(axis=1)
    return smallest


def _dense(bundle: Bundle, tower: Tower, rows: Sequence[NDArray[Any]] | NDArray[Any]) -> NDArray[Any]:
    """Return rows in the form of the served model's input: texts are padded to the context."""
    if tower is Tower.TEXT:
        return padded(list(rows), bundle.text.pad_id, bundle.text.context_length)
    return np.asarray(rows)


def _raw_probes(
    bundle: Bundle, tower: Tower, decode: DecodeMode
) -> tuple[list[bytes], Sequence[NDArray[Any]] | NDArray[Any]]:
    """Return encoded inputs and what the client's code makes of them; none for sounds."""
    if tower is Tower.TEXT:
        return [text.encode() for text in RAW_TEXTS], Tokenizer(bundle.tokenizer_path, bundle.text).encode(RAW_TEXTS)
    if tower is Tower.IMAGE:
        images = raw_images()
        return images, Preprocessor(bundle.image, decode=decode, threads=1).many(images)
    return [], np.zeros((0, *bundle.input_spec(tower).shape), bundle.input_spec(tower).dtype)


def raw_images() -> list[bytes]:
    """Generate images that resizing and cropping change: detailed, wide and tall, with odd margins; PNG and JPEG."""
    encoded = []
    for number, (width, height, kind) in enumerate([(187, 132, "PNG"), (131, 190, "PNG"), (301, 226, "JPEG")]):
        down, right = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
        noise = np.random.default_rng(number).integers(0, 64, (height, width, 3))
        stripes = 48 * ((down // 3 + right // 2) % 2) + 72 * ((down // 24 + right // 32) % 2)
        pixels = (noise + stripes[..., None] + np.array([0, 30, 60])).astype(np.uint8)
        file = BytesIO()
        Image.fromarray(pixels).save(file, kind, **({"quality": 95} if kind == "JPEG" else {}))
        encoded.append(file.getvalue())
    return encoded
