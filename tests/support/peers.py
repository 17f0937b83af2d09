"""Catalogues of peers and images for `twinspire bench peers`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

IMAGES = 12


def write_catalogue(file: Path, peers: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write a catalogue of peers that run in twinspire's own environment; return its path."""
    lines = []
    for name, fields in peers.items():
        plain = {key: value for key, value in fields.items() if key != "options"}
        for table, values in ((f"peers.{name}", plain), (f"peers.{name}.options", fields.get("options", {}))):
            lines += [f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def write_photographs(folder: Path) -> Path:
    """Write `IMAGES` small PNG files into a folder; return it."""
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        Image.fromarray(rng.integers(0, 256, (30, 24, 3), np.uint8)).save(folder / f"{number:02}.png")
    return folder
