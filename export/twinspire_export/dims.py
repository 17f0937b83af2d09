"""Lengths that embeddings may be cut to: those that a checkpoint states, or that its user knows it was trained for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from twinspire._arguments import as_list, as_whole
from twinspire._dims import shown_dims
from twinspire.errors import CheckpointError, InputError

_KEY = "matryoshka_dimensions"


def allowed_dims(folder: Path, dim: int, given: Sequence[int] | None) -> tuple[int, ...] | None:
    """Return a manifest's `dims` for the checkpoint in `folder`, whose embeddings have `dim` numbers; None: whole ones.

    They are those that config.json states as `matryoshka_dimensions`, as Jina's models do and vLLM reads
    (https://docs.vllm.ai/en/latest/models/pooling_models.html), else those `given`.

    Raises InputError for lengths that no embedding can be cut to and for others than config.json states,
    CheckpointError where that is malformed.
    """
    stated = _stated(folder, dim)
    if given is None:
        return stated
    wanted = _checked(given, dim)
    if stated not in (None, wanted):
        assert stated is not None
        raise InputError(
            f"--dims {','.join(map(str, given))}: the checkpoint {folder} states that its embeddings may have "
            f"{shown_dims(stated)} numbers ({_KEY!r} in config.json). Leave --dims out",
            option="--dims",
        )
    return wanted


def parse_dims(text: str) -> list[int]:
    """Parse lengths such as `256,128`. Raises InputError for anything else."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise InputError(f"--dims {text!r}: expected lengths such as 256,128", option="--dims") from None


def _checked(given: Sequence[int], dim: int) -> tuple[int, ...]:
    wanted = [as_whole(length, "--dims", minimum=1) for length in as_list(given, "--dims")]
    if not wanted or len({*wanted}) < len(wanted) or max(wanted) > dim or wanted == [dim]:
        raise InputError(
            f"--dims {','.join(map(str, wanted)) or 'without a length'}: expected different lengths below {dim}, the "
            "model's own, that it was trained to be cut to",
            option="--dims",
        )
    return tuple(sorted({*wanted, dim}))


def _stated(folder: Path, dim: int) -> tuple[int, ...] | None:
    file = folder / "config.json"
    if not file.is_file():  # OpenCLIP's own layout
        return None
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {error}. Download the checkpoint again") from error
    stated = document.get(_KEY) if isinstance(document, dict) else None
    if not stated:  # null and [] where it is not such a model
        return None
    if not isinstance(stated, list) or not all(type(length) is int and 1 <= length <= dim for length in stated):
        raise CheckpointError(
            f"{file} has {_KEY!r} {stated!r}: expected a list of lengths from 1 to {dim}, that of its embeddings"
        )
    lengths = tuple(sorted({*stated, dim}))
    return lengths if len(lengths) > 1 else None
