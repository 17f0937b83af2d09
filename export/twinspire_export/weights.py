"""The weight files of a checkpoint: which they are, and the tensors of safetensors files as stored.

Pickled weights (`*.bin`, `*.pt`, `*.ckpt`, ...) can run code when they are loaded and are never opened here:
`twinspire_export.convert` reads them in a process of its own.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twinspire.errors import CheckpointError
from twinspire.ingest.tables import listed

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLED_FILE = "pytorch_model.bin"
PICKLED_INDEX_FILE = "pytorch_model.bin.index.json"
OPEN_CLIP_WEIGHTS_FILE = "open_clip_model.safetensors"
OPEN_CLIP_PICKLED_FILE = "open_clip_pytorch_model.bin"

_PICKLED_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
_TRAINING_STATE = ("optimizer", "scheduler", "scaler", "rng_state", "training_args")
"""How the names of files begin that transformers' Trainer writes beside the weights."""

StoredTensor = tuple[str, str, tuple[int, ...], memoryview]
"""Name, dtype as safetensors writes it (`F32`, `BF16`, ...), shape, little-endian bytes."""


def weight_files(folder: Path) -> tuple[Path, ...]:
    """List the safetensors files of the checkpoint in `folder`: one, or the shards that its index names.

    Raises CheckpointError where there are none (saying so if the weights are pickled), where the index is malformed,
    and where a shard that it names is missing or not a safetensors file.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return (folder / WEIGHTS_FILE,)
    if (folder / INDEX_FILE).is_file():
        return shards(folder / INDEX_FILE)
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLED_SUFFIXES)
    if pickled:
        raise CheckpointError(
            f"the checkpoint {folder} holds pickled weights only ({', '.join(pickled)}). Pickles can run code when "
            f"they are loaded, so they are never opened here; expected {WEIGHTS_FILE}. Write that with "
            f"`twinspire convert {folder} -o NEW`, which reads them in a process without network, and export NEW"
        )
    raise CheckpointError(
        f"the checkpoint {folder} has no weights: expected {WEIGHTS_FILE}, or {INDEX_FILE} with its shards. A "
        "repository on the hub may keep them in a branch of its own: name it with --revision"
    )


def pickled_weight_files(folder: Path) -> tuple[Path, ...]:
    """List the pickled files that hold the weights of the checkpoint in `folder`, without opening one.

    Those of transformers come first, one or the shards that their index names, then OpenCLIP's, then a single other
    file. Raises CheckpointError where there are none, or several of which none is known by its name, and where the
    checkpoint has safetensors.
    """
    if ready := sorted(folder.glob("*.safetensors")):
        raise CheckpointError(f"the checkpoint {folder} has {ready[0].name} already: export it as it is")
    if (folder / PICKLED_FILE).is_file():
        return (folder / PICKLED_FILE,)
    if (folder / PICKLED_INDEX_FILE).is_file():
        return shards(folder / PICKLED_INDEX_FILE)
    if (folder / OPEN_CLIP_PICKLED_FILE).is_file():
        return (folder / OPEN_CLIP_PICKLED_FILE,)
    others = sorted(
        file
        for file in folder.iterdir()
        if file.suffix in _PICKLED_SUFFIXES and not file.stem.startswith(_TRAINING_STATE) and file.is_file()
    )
    if len(others) == 1:
        return (others[0],)
    expected = (
        f"expected {PICKLED_FILE}, {PICKLED_INDEX_FILE} with its shards, or one *.bin, *.pt, *.pth or *.ckpt file"
    )
    if not others:
        raise CheckpointError(f"the checkpoint {folder} has no pickled weights: {expected}")
    raise CheckpointError(
        f"the checkpoint {folder} has {len(others)} pickled files ({listed([file.name for file in others])}): "
        f"{expected}. Put the one to convert into a folder with config.json and the tokenizer's files"
    )


def stored_shapes(files: tuple[Path, ...]) -> dict[str, tuple[int, ...]]:
    """Read the shape of every tensor of `files`, by name. Raises CheckpointError where a file is damaged."""
    return {name: tuple(entry["shape"]) for file in files for name, entry in _header(file)[0].items()}


def stored_tensors(files: tuple[Path, ...]) -> Iterator[StoredTensor]:
    """Yield every tensor of `files` as stored, without conversion, so that bfloat16 needs no torch.

    The bytes are views of the mapped file, valid until the next tensor is yielded.
    Raises CheckpointError where a file is damaged.
    """
    for file in files:
        header, data_offset = _header(file)
        with (
            file.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as view,
        ):
            for name, entry in header.items():
                begin, end = entry["data_offsets"]
                with view[data_offset + begin : data_offset + end] as data:
                    yield name, entry["dtype"], tuple(entry["shape"]), data


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file, checked by that library, and the offset of its data."""
    from safetensors import SafetensorError, safe_open

    try:
        # Checks the header against the file: offsets without gaps, sizes that fit dtype and shape, no truncation.
        with safe_open(file, framework="np"):
            pass
    except (SafetensorError, OSError) as exc:
        raise CheckpointError(
            f"{file} is not an intact safetensors file ({exc}). Copy or download the checkpoint again"
        ) from exc
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(size))
    header.pop("__metadata__", None)
    return header, 8 + size


def shards(index: Path) -> tuple[Path, ...]:
    """List the files that an index in transformers' format names, which are beside it and of the same suffix.

    Raises CheckpointError where the index is malformed, and where a file is missing.
    """
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({str(name) for name in weight_map.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise CheckpointError(
            f"{index} is not an index of shards: expected JSON with a 'weight_map' from tensor to file name ({exc})"
        ) from exc
    if not names:
        raise CheckpointError(f"{index} names no shards: its 'weight_map' is empty")
    suffix = Path(index.name.removesuffix(".index.json")).suffix
    for name in names:
        if Path(name).name != name or Path(name).suffix != suffix:
            raise CheckpointError(f"{index} names the shard {name!r}; expected a *{suffix} file in the same folder")
        if not (index.parent / name).is_file():
            raise CheckpointError(
                f"{index} names the shard {name!r}, which is missing. Copy or download the checkpoint again"
            )
    return tuple(index.parent / name for name in names)
