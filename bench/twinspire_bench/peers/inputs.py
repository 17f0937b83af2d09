"""What all peers get: the images and texts of the user, and the vectors that the bundle's fp32 engines give them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire import Client
from twinspire.bundle import Bundle, Precision, Tower
from twinspire.errors import InputError
from twinspire.ingest import find_images
from twinspire.towers import Provider
from twinspire_eval.datasets import open_dataset
from twinspire_eval.datasets.captioned import sample_positions

CAPTIONS = "captions.json"
BUILT_IN_TEXTS = (
    "a dog",
    "two people talking",
    "a red car on a street",
    "food on a plate",
    "a child playing outside",
    "a building at night",
    "flowers in a vase",
    "a cat lying on a bed",
    "mountains and a lake",
    "a person riding a bicycle",
    "a crowd in a city square",
    "an empty room with a window",
)
MARKED_EVERY = 10
"""Every tenth item has the mark that filters ask for."""


@dataclass(frozen=True, kw_only=True)
class UserData:
    """The image files and the texts that are measured; `name` describes them for people."""

    name: str
    files: tuple[Path, ...]
    texts: tuple[str, ...]
    texts_from: str


@dataclass(frozen=True, kw_only=True)
class ComparisonInputs:
    """Inputs in the folder `work`: `task` is the part of a peer's task that does not depend on the peer.

    `images` (N, D) and `texts` (M, D) are float32, L2-normalised; `skipped` counts images that cannot be read.
    """

    data: UserData
    work: Path
    images: NDArray[np.float32]
    texts: NDArray[np.float32]
    marks: NDArray[np.int64]
    skipped: int
    task: dict[str, Any]


def check_bundle(bundle: Bundle) -> None:
    """Raise InputError unless the bundle is of images and texts, with a vector each and fp32 engines."""
    needed = (Tower.IMAGE, Tower.TEXT)
    if not all(tower in bundle.towers for tower in needed):
        raise InputError(
            f"the bundle {bundle.name} has the towers {', '.join(bundle.towers)}: expected one of images and texts, "
            "which the peers encode"
        )
    if bundle.vectors_per_item > 1:
        raise InputError(
            f"the bundle {bundle.name} has {bundle.vectors_per_item} vectors an image: expected one, which is what the "
            "peers compare"
        )
    if lacking := [tower for tower in needed if Precision.FP32 not in bundle.precisions(tower)]:
        raise InputError(
            f"the bundle {bundle.name} has no fp32 engine for {' and '.join(lacking)}: the peers run that, and are "
            "compared with it. Export the checkpoint anew: twinspire export"
        )


def check_checkpoint(folder: Path | None) -> None:
    """Raise InputError unless `folder` is None or holds a checkpoint in Hugging Face's layout."""
    if folder is not None and not (folder / "config.json").is_file():
        raise InputError(
            f"--checkpoint {folder} has no config.json: expected the folder of a checkpoint in Hugging Face's layout, "
            "the one that the bundle was exported from",
            option="--checkpoint",
        )


def read_data(folder: Path, *, limit: int, texts: int) -> UserData:
    """Find the images of a folder, at most `limit` sampled ones, and at most `texts` captions of theirs.

    The captions are those of `captions.json` in the folder, if there is one, else a few built-in texts are taken.
    Raises InputError for a folder that does not exist or has no images, and captions that do not fit them.
    """
    if not folder.is_dir():
        raise InputError(f"--data {folder}: there is no such folder: expected one with images", option="--data")
    if (folder / CAPTIONS).is_file():
        dataset = open_dataset(folder / CAPTIONS, limit=limit)
        files = tuple(Path(str(image)).absolute() for image in dataset.images)
        captions = [caption.text for captions in dataset.captions for caption in captions]
        chosen = sample_positions(len(captions), texts, seed=0)
        return UserData(
            name=dataset.name, files=files, texts=tuple(captions[place] for place in chosen), texts_from=CAPTIONS
        )
    found = find_images([folder])
    places = sample_positions(len(found), limit, seed=0)
    name = (
        f"{folder.name}/" if len(places) == len(found) else f"{folder.name}/, {len(places):,} of {len(found):,} files"
    )
    return UserData(
        name=name,
        files=tuple(found[place] for place in places),
        texts=BUILT_IN_TEXTS[:texts],
        texts_from="built-in texts",
    )


def make_inputs(
    bundle: Bundle,
    data: UserData,
    work: Path,
    *,
    checkpoint: Path | None,
    threads: int,
    k: int,
    say: Callable[[str], None],
) -> ComparisonInputs:
    """Encode the data with the bundle's fp32 engines and write what peers read.

    Images that cannot be read are left out. Raises InputError where fewer than two can be read, EngineError where the
    engines fail.
    """
    say(f"encoding {len(data.files)} images with the fp32 engines, whose vectors are compared with")
    with Client.local(bundle, precision=Precision.FP32, provider=Provider.CPU, threads=threads) as client:
        images, failed = client.encode_images(data.files, on_error="skip")
        texts = client.encode_texts(data.texts)
    unread = {error.position for error in failed}
    for error in failed[:3]:
        say(f"left out: {error}")
    if len(images) < 2:
        raise InputError(f"{len(images)} of {len(data.files)} images can be read: expected at least 2")
    files = tuple(file for place, file in enumerate(data.files) if place not in unread)
    marks = (np.arange(len(images)) % MARKED_EVERY == 0).astype(np.int64)
    another = np.random.default_rng(0).standard_normal(bundle.dim).astype(np.float32)
    arrays = {"vectors": images, "queries": texts, "marks": marks, "another": another / np.linalg.norm(another)}
    for name, array in arrays.items():
        np.save(work / f"{name}.npy", array)
    inputs = work / "inputs.json"
    inputs.write_text(json.dumps({"files": [str(file) for file in files], "texts": data.texts}), encoding="utf-8")
    return ComparisonInputs(
        data=data,
        work=work,
        images=images,
        texts=texts,
        marks=marks,
        skipped=len(failed),
        task={
            "bundle": str(bundle.path.absolute()),
            "checkpoint": None if checkpoint is None else str(checkpoint.absolute()),
            "image_engine": str(bundle.engine(Tower.IMAGE, Precision.FP32).absolute()),
            "text_engine": str(bundle.engine(Tower.TEXT, Precision.FP32).absolute()),
            "tokenizer": str(bundle.tokenizer_path.absolute()),
            "image": asdict(bundle.image),
            "text": asdict(bundle.text),
            "dim": bundle.dim,
            "k": k,
        },
    )
