"""Faults put into a served model: damaged, stale and worse engines, exchanged rows, weights changed in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from twinspire.bundle import MANIFEST_NAME, TOKENIZER_NAME, Tower
from twinspire.bundle.folder import file_record
from twinspire_server.triton import TritonServer
from twinspire_server.triton.reaper import model_processes

_LARGE_BYTES = 4096
_FLIPPED = 0x40
"""A bit in the upper half of a float's mantissa, in its third byte: a change by up to a quarter."""


def change_engine(model: Path, tower: Tower, precision: str, change: Callable[[onnx.ModelProto], None]) -> None:
    """Change an installed engine and its checksum, so that loading does not notice."""
    bundle = model / "1" / "bundle"
    document = json.loads((bundle / MANIFEST_NAME).read_text(encoding="utf-8"))
    record = document["engines"][tower][precision]
    engine = onnx.load(bundle / record["file"])
    change(engine)
    _replace(bundle / record["file"], engine.SerializeToString())
    record.update(vars(file_record(bundle / record["file"])))
    _replace(bundle / MANIFEST_NAME, json.dumps(document).encode())


def _replace(file: Path, content: bytes) -> None:
    file.unlink()  # the models of a bundle share its files by hard links
    file.write_bytes(content)


def flip_bytes(engine: onnx.ModelProto) -> None:
    """Flip a bit in 64 bytes of the weights."""
    random = np.random.default_rng(7)
    large = [weights for weights in engine.graph.initializer if len(weights.raw_data) >= _LARGE_BYTES]
    for _ in range(64):
        weights = large[random.integers(len(large))]
        content = bytearray(weights.raw_data)
        content[4 * int(random.integers(len(content) // 4)) + 2] ^= _FLIPPED
        weights.raw_data = bytes(content)


def retrain(engine: onnx.ModelProto) -> None:
    """Give the engine the weights of another checkpoint with the same shapes: its own in another order."""
    random = np.random.default_rng(7)
    for weights in engine.graph.initializer:
        values = numpy_helper.to_array(weights)
        if values.dtype == np.float32 and values.size > 64:
            changed = random.permutation(values.reshape(-1)).reshape(values.shape)
            weights.CopyFrom(numpy_helper.from_array(changed, weights.name))


def round_weights(engine: onnx.ModelProto) -> None:
    """Round the large weights to 5 bits, as a worse quantization would."""
    for weights in engine.graph.initializer:
        values = numpy_helper.to_array(weights)
        if values.dtype == np.float32 and values.ndim > 1:
            scale = np.abs(values).max() / 15
            weights.CopyFrom(
                numpy_helper.from_array((np.round(values / scale) * scale).astype(np.float32), weights.name)
            )


def patch(file: Path, old: str, new: str) -> None:
    """Replace code of an installed model; fail where the code is not there."""
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {file}"
    _replace(file, text.replace(old, new).encode())


def exchange_rows(model: Path, flag: Path) -> None:
    """Let a model mix up the rows of batches of several requests while a file exists."""
    patch(
        model / "1" / "model.py",
        "        outputs = compute(requests)\n",
        "        outputs = compute(requests)\n"
        f"        if len(requests) > 1 and os.path.exists({str(flag)!r}):\n"
        '            outputs = __import__("numpy").roll(outputs, 1, axis=0)\n',
    )


def crop_pictures(model: Path) -> None:
    """Let a model that decodes pictures cut off the leftmost column of pixels before it resizes them."""
    file = model / "1" / "model.py"
    code = (
        "\nfrom twinspire.images import preprocess\n"
        "fit = preprocess.fit\n"
        "preprocess.fit = lambda image, settings: fit(image.crop((1, 0, *image.size)), settings)\n"
    )
    _replace(file, file.read_bytes() + code.encode())


def keep_capitals(model: Path) -> None:
    """Give a model another tokenizer: one that does not make texts lower case."""
    file = model / "1" / TOKENIZER_NAME
    document = json.loads(file.read_text(encoding="utf-8"))
    steps = document["normalizer"]["normalizers"]
    steps.remove({"type": "Lowercase"})
    _replace(file, json.dumps(document).encode())


def change_weights_in_memory(server: TritonServer, model: str, engine: Path) -> int:
    """Flip bits of 16 numbers of each weight in the memory of a model's process; return how many places had them.

    Runtimes keep copies in other orders, of which some are never read again; hence every weight, wherever it lies.
    """
    samples = [weights.raw_data[:64] for weights in onnx.load(engine).graph.initializer if len(weights.raw_data) >= 64]
    (process,) = [found for found in model_processes(server.pid) if found.instance.rsplit("_", 2)[0] == model]
    maps = Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8")
    changed = 0
    with Path(f"/proc/{process.pid}/mem").open("r+b", buffering=0) as memory:
        for start, end in re.findall(r"^(\w+)-(\w+) rw", maps, re.MULTILINE):
            try:
                memory.seek(int(start, 16))
                content = memory.read(int(end, 16) - int(start, 16))
            except OSError:  # a device's memory
                continue
            for sample in samples:
                if len(set(sample)) < 16 or (place := content.find(sample)) < 0:
                    continue
                memory.seek(int(start, 16) + place)
                memory.write(bytes(byte ^ (_FLIPPED if at % 4 == 2 else 0) for at, byte in enumerate(sample)))
                changed += 1
    return changed
