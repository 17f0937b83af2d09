"""Pickled weights to safetensors: a checkpoint of transformers or OpenCLIP, rewritten so that it can be exported.

The pickles are opened by `convert_worker`, a process that cannot use the network, start programs or change files. What
it sends is checked here like any other input, and written here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from twinspire._arguments import printable
from twinspire._atomic import atomic_folder
from twinspire.errors import CheckpointError, InputError
from twinspire_export import convert_worker
from twinspire_export.checkpoint import CONVERTIBLE_HUB_FILES, locate
from twinspire_export.weights import (
    OPEN_CLIP_PICKLED_FILE,
    OPEN_CLIP_WEIGHTS_FILE,
    WEIGHTS_FILE,
    pickled_weight_files,
    stored_shapes,
)

WORKER = Path(convert_worker.__file__)

MAX_SHARD_BYTES = 5_000_000_000
"""As transformers' `save_pretrained` shards by default."""

MEMORY_BYTES = 256 << 20
"""What the worker may map besides twice the size of the files: once for the files, once for copies of tensors."""

TIME_S = 60.0
"""Time limit for importing torch, added to that for reading the files, which follows from `_MIN_BYTES_PER_S`."""

_MIN_BYTES_PER_S = 10_000_000
_MAX_GROWTH = 2  # tensors that share memory are written each
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
_CHUNK_BYTES = 16 << 20
_MAX_REASON = 600
_COPIED = ("*.json", "*.txt", "*.model", "README.md", "LICENSE*", "*/config.json")
"""Config, tokenizer, preprocessing, and those of the modules of sentence-transformers. No code, no weights."""


def convert_checkpoint(
    checkpoint: str | Path,
    destination: str | Path,
    *,
    revision: str | None = None,
    on_step: Callable[[str], None] | None = None,
) -> Path:
    """Write the checkpoint, a local folder or a hub id with pickled weights, to the new folder `destination`.

    Tensors keep their names, shapes, dtypes and bytes; a nested state dict and the prefix of parallel training are
    unwrapped. Above `MAX_SHARD_BYTES` there are several files and an index. Config, tokenizer and preprocessing files
    are copied; code and pickles are not. `revision` is a branch, tag or commit on the hub. Returns `destination`.

    Raises CheckpointError for weights that are refused and where `destination` cannot be written, InputError where it
    exists or its parent does not; nothing is left behind.
    """
    step = on_step or (lambda _: None)
    target = Path(os.path.abspath(destination))  # noqa: PTH100 - resolve() would follow a link
    if os.path.lexists(target):
        raise InputError(f"{target} exists: give another name or remove it", option="output")
    if not target.parent.is_dir():
        raise InputError(f"{target.parent} is not a folder: create it first", option="output")
    step("finding the checkpoint")
    folder = locate(checkpoint, revision=revision, files=CONVERTIBLE_HUB_FILES).folder
    files = pickled_weight_files(folder)
    name = WEIGHTS_FILE
    if files[0].name == OPEN_CLIP_PICKLED_FILE or (
        (folder / "open_clip_config.json").is_file() and not (folder / "config.json").is_file()
    ):
        name = OPEN_CLIP_WEIGHTS_FILE
    try:
        with atomic_folder(target) as draft:
            step(f"reading {len(files)} pickled file{'s' if len(files) > 1 else ''} in a confined process")
            with _worker(files) as stream:
                _write(stream, draft / name, max_bytes=_MAX_GROWTH * _size(files) + _MAX_HEADER_BYTES)
            step("copying the other files")
            _copy_others(folder, draft)
    except OSError as exc:
        raise CheckpointError(f"{target} was not written: {exc}") from exc
    return target


@contextmanager
def _worker(files: tuple[Path, ...]) -> Iterator[IO[bytes]]:
    """Run the worker on `files` and give its stream. Raises CheckpointError where it refuses, fails or takes too long.

    Its reason is told in place of an error of the block, which a stream that ends early raises.
    """
    size = _size(files)
    limit_s = TIME_S + size / _MIN_BYTES_PER_S
    numbers = (2 * size + MEMORY_BYTES, int(limit_s) + 1, _MAX_GROWTH * size)
    environment = {"PATH": os.defpath, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    if "LD_LIBRARY_PATH" in os.environ:  # where torch's own libraries may be
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    what = ", ".join(file.name for file in files[:1]) + (f" and {len(files) - 1} more" if len(files) > 1 else "")
    expired = threading.Event()
    process = subprocess.Popen(  # noqa: S603 - our own program, on files that it treats as hostile
        [sys.executable, "-I", WORKER, *map(str, numbers), *(file.absolute() for file in files)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
        env=environment,
        start_new_session=True,  # without the terminal
    )

    def expire() -> None:
        expired.set()
        process.kill()

    timer = threading.Timer(limit_s, expire)
    timer.daemon = True
    timer.start()
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            failure: CheckpointError | None = None
            try:
                yield process.stdout
            except CheckpointError as exc:
                failure = exc
                process.stdout.close()
            reason = process.stderr.read(1 << 16).decode(errors="replace").strip()
            status = process.wait()
        finally:
            timer.cancel()
            process.kill()
    if status == 0 and failure is None:
        return
    if expired.is_set():
        reason = f"reading takes longer than {limit_s:.0f} s, more than weights of {size:,} bytes need"
    elif status < 0:
        reason = f"the process that reads it was ended by signal {-status}: it is damaged, or made to do harm"
    elif status == 0 or not reason:
        reason = str(failure)
    raise CheckpointError(
        f"{files[0].parent}: {what} was not converted: {printable(reason, limit=_MAX_REASON)}"
    ) from failure


def _write(stream: IO[bytes], file: Path, *, max_bytes: int) -> None:
    """Write a stream in the format of safetensors to `file`, or to shards and an index beside it."""
    header_bytes = int.from_bytes(_read(stream, 8), "little")
    if header_bytes > _MAX_HEADER_BYTES:
        raise CheckpointError(f"its names and shapes take {header_bytes:,} bytes")
    try:
        header: dict[str, Any] = json.loads(_read(stream, header_bytes))
        metadata = header.pop("__metadata__")
        entries = sorted(header.items(), key=lambda entry: int(entry[1]["data_offsets"][0]))
        sizes = {name: int(entry["data_offsets"][1]) - int(entry["data_offsets"][0]) for name, entry in entries}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as exc:
        raise CheckpointError(f"the process that reads it sent a malformed header ({exc!r})") from exc
    total = sum(sizes.values())
    if min(sizes.values(), default=0) < 0 or total > max_bytes:
        raise CheckpointError(f"the process that reads it announced {total:,} bytes of tensors")
    groups = _grouped(sizes)
    weight_map: dict[str, str] = {}
    for position, names in enumerate(groups):
        shard = file
        if len(groups) > 1:
            shard = file.with_name(f"{file.stem}-{position + 1:05d}-of-{len(groups):05d}{file.suffix}")
        _write_shard(stream, shard, {name: header[name] for name in names}, metadata)
        stored_shapes((shard,))  # checks dtypes, shapes and offsets
        weight_map.update(dict.fromkeys(names, shard.name))
    if stream.read(1):
        raise CheckpointError("the process that reads it sent more than it announced")
    if len(groups) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        file.with_name(f"{file.name}.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _grouped(sizes: dict[str, int]) -> list[list[str]]:
    """Split tensors, in the order of the stream, into shards of at most `MAX_SHARD_BYTES` or one tensor."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if groups[-1] and filled + size > MAX_SHARD_BYTES:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def _write_shard(stream: IO[bytes], file: Path, entries: dict[str, Any], metadata: object) -> None:
    """Write one safetensors file, with the next tensors of the stream, which begin at 0 there."""
    start = min((entry["data_offsets"][0] for entry in entries.values()), default=0)
    for entry in entries.values():
        entry["data_offsets"] = [offset - start for offset in entry["data_offsets"]]
    encoded = json.dumps({"__metadata__": metadata, **entries}, ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    left = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    with file.open("wb") as out:
        out.write(len(encoded).to_bytes(8, "little") + encoded)
        while left > 0:
            chunk = _read(stream, min(left, _CHUNK_BYTES))
            out.write(chunk)
            left -= len(chunk)


def _read(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise CheckpointError("the process that reads it ended early")
    return data


def _copy_others(folder: Path, target: Path) -> None:
    for pattern in _COPIED:
        for file in sorted(folder.glob(pattern)):
            copy = target / file.relative_to(folder)
            if file.is_file() and not file.name.endswith(".index.json"):
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, copy)


def _size(files: tuple[Path, ...]) -> int:
    return sum(file.stat().st_size for file in files)
