"""Paths of the test data: tests/data, or the larger sets of ../shared/data beside the checkout where they are there."""

from __future__ import annotations

import hashlib
from pathlib import Path

DATA = Path(__file__).parents[1] / "data"
_SHARED = Path(__file__).parents[3] / "shared" / "data"


def _larger(name: str) -> Path:
    return _SHARED / name if (_SHARED / name).is_dir() else DATA / name


VOCABULARY = DATA / "vocab"
TOKENIZATIONS = DATA / "tokenizer" / "clip_tokenizations.json"
PREPROCESSED = DATA / "preprocess"

COCO = _larger("coco")  # 76 photographs instead of 8, 5,000 images with captions instead of 7
PHOTOS = COCO / "images"
PHOTO_CAPTIONS = COCO / "coco_permissive_captions.json"
VAL2017_CAPTIONS = COCO / "captions_val2017.json"

ODD_IMAGES = _larger("odd_images")  # 22 files instead of 9


def hash_of(path: Path) -> str:
    """Return the SHA-256 of a file, as an index keeps it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
