"""bundle.json is read strictly, but for what a later version may add."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from twinspire.bundle import (
    Certificate,
    ImageSettings,
    Interpolation,
    Manifest,
    OutputForm,
    Padding,
    Precision,
    Resize,
    TextSettings,
    Tower,
)
from twinspire.errors import BundleError, InputError

SCHEMA_1, SCHEMA_2 = (Path(__file__).parents[1] / "data" / f"bundle_schema_{version}.json" for version in (1, 2))
"""The sample's manifest as the first schema had it."""
HASH = "0" * 64
RECORD = {"sha256": HASH, "size_bytes": 1}
TENSOR = {"name": "score", "dtype": "float32", "shape": [1]}


@pytest.fixture
def document(tiny: Any) -> dict[str, Any]:
    """The tiny bundle's manifest as plain data."""
    return json.loads(tiny.bundle.manifest.to_json())


def test_round_trip(tiny: Any) -> None:
    """A manifest that was written is read as an equal one, and written as the same text."""
    text = tiny.bundle.manifest.to_json()
    read = Manifest.from_json(text)
    assert read == tiny.bundle.manifest
    assert read.to_json() == text
    assert read.engines[Tower.IMAGE][Precision.INT8].file == "image.int8.onnx"
    assert isinstance(read.text.padding, Padding)
    assert isinstance(read.image.mean, tuple)


def test_an_integer_stands_for_a_float(document: dict[str, Any]) -> None:
    """`100` is read as the number 100.0 where a float is due."""
    document["logit_scale"] = 100
    scale = Manifest.from_json(json.dumps(document)).logit_scale
    assert (scale, type(scale)) == (100.0, float)


@pytest.mark.parametrize("version", [0, 3, "1", 1.0, True, None])
def test_unknown_schema_version(document: dict[str, Any], version: object) -> None:
    """Any schema_version but 1 and 2 is a BundleError: what a reader must not ignore gets a new one."""
    document["schema_version"] = version
    with pytest.raises(BundleError, match="schema_version"):
        Manifest.from_json(json.dumps(document))


def test_schema_1_is_read_as_schema_2() -> None:
    """A manifest in schema 1 gives that of the same bundle in schema 2, without the patches, and so the same space."""
    old = Manifest.from_json(SCHEMA_1.read_text(encoding="utf-8"))
    document = json.loads(SCHEMA_2.read_text(encoding="utf-8"))
    assert document["schema_version"] == 2
    del document["towers"]["image"]["patches"]
    assert old == Manifest.from_json(json.dumps(document))
    assert json.loads(old.to_json()) == document


def test_a_schema_1_bundle_is_upgraded_by_the_tool(tiny: Any, tmp_path: Path) -> None:
    """tools/upgrade_bundle.py writes a bundle of schema 1 again in schema 2, its other files equal."""
    old = Path(shutil.copytree(tiny.bundle.path, tmp_path / "old"))
    document = json.loads((old / "bundle.json").read_text(encoding="utf-8"))
    towers = document.pop("towers")
    settings = towers["image"]["settings"]
    size = settings["height"]
    kept = {name: settings[name] for name in ("interpolation", "mean", "std")}
    document |= {"schema_version": 1, "image": {"size": size, "resize": size, "crop": True, **kept}}
    document["text"] = towers["text"]["settings"]
    (old / "bundle.json").write_text(json.dumps(document), encoding="utf-8")
    tool = Path(__file__).parents[2] / "tools" / "upgrade_bundle.py"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "client")}
    subprocess.run([sys.executable, tool, old, tmp_path / "new"], env=environment, check=True)
    for path in tiny.bundle.path.iterdir():
        assert (tmp_path / "new" / path.name).read_bytes() == path.read_bytes(), path.name


def test_schema_1_without_crop_stretches() -> None:
    """Schema 1's `crop` false is `stretch`; a `resize` other than the size is refused, as it always was."""
    document = json.loads(SCHEMA_1.read_text(encoding="utf-8"))
    document["image"]["crop"] = False
    image = Manifest.from_json(json.dumps(document)).image
    assert (image.height, image.width, image.resize, image.shortest_side) == (112, 112, Resize.STRETCH, None)
    document["image"]["resize"] = 128
    with pytest.raises(BundleError, match="resize"):
        Manifest.from_json(json.dumps(document))


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"image": {}},
        {"image": None},
        {"text": []},
        {"dim": "128"},
        {"dim": None},
        {"towers": {}},
        {"engines": {"video": {}}},
    ],
)
def test_schema_1_is_read_strictly(change: dict[str, Any]) -> None:
    """Schema 1 had no optional keys: an unknown, missing or mistyped one is a BundleError."""
    document = json.loads(SCHEMA_1.read_text(encoding="utf-8"))
    with pytest.raises(BundleError, match=r"bundle\.json"):
        Manifest.from_json(json.dumps(document | change))


def test_what_this_version_does_not_know_is_ignored(document: dict[str, Any]) -> None:
    """An unknown key, a third tower and an engine of an unknown precision leave the manifest as it is."""
    expected = Manifest.from_json(json.dumps(document))
    document["extra"] = document["towers"]["text"]["extra"] = {"any": "thing"}
    document["towers"]["video"] = {"settings": {"frame_rate": 25}}
    document["engines"]["video"] = {"fp32": {}}
    document["engines"]["image"]["fp8"] = None
    assert Manifest.from_json(json.dumps(document)) == expected


def test_what_later_families_need_can_be_said(document: dict[str, Any]) -> None:
    """Every kind of resizing, several vectors an item, shorter embeddings and rerankers survive a round trip."""
    tensor = {"name": "pair", "dtype": "int64", "shape": [-1]}
    image = document["towers"]["image"]
    image["settings"] |= {"height": 20, "width": 24, "resize": "pad", "interpolation": "nearest"}
    del image["settings"]["shortest_side"], image["settings"]["crop_rounding"]
    image |= {"output": {"name": "embedding", "dtype": "float32", "shape": [32, 12]}, "output_form": "max_of_vectors"}
    document |= {"dims": [4, 8, 12]}
    document["files"]["pairs.onnx"] = RECORD
    document["rerankers"] = {"itm": {"inputs": [tensor], "output": tensor, "engines": {"fp32": "pairs.onnx"}}}
    manifest = Manifest.from_json(json.dumps(document))
    assert json.loads(manifest.to_json()) == document
    assert (manifest.image.resize, manifest.image.interpolation) == (Resize.PAD, Interpolation.NEAREST)
    assert manifest.towers.image.output_form is OutputForm.MAX_OF_VECTORS
    assert manifest.dims == (4, 8, 12)
    assert manifest.vectors_per_item == 32
    assert "image" in (manifest.unsupported() or "")  # the input is not of the settings' size


def _put(*path: str | int, value: object) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        target: Any = document
        for step in path[:-1]:
            target = target[step]
        target[path[-1]] = value

    return change


def _drop(*path: str) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        target = document
        for step in path[:-1]:
            target = target[step]
        del target[path[-1]]

    return change


ENGINE = ("engines", "image", "fp32")
IMAGE, TEXT = ("towers", "image", "settings"), ("towers", "text", "settings")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop("schema_version"), "schema_version"),
        (_drop("space"), r"\bspace\b"),
        (_drop("logit_bias"), "logit_bias"),
        (_drop(*TEXT, "eos_id"), "eos_id"),
        (_drop(*ENGINE, "certificate"), "certificate"),
        (_put("name", value="../up"), r"\.\./up"),
        (_put("name", value=""), "''"),
        (_put("name", value=7), r"\bname\b"),
        (_put("family", value=""), "family"),
        (_put("space", value="abc"), "abc"),
        (_put("space", value=HASH + "\n"), "64 lower-case"),
        (_put("dim", value=0), r"\bdim\b"),
        (_put("dim", value=True), r"\bdim\b"),
        (_put("dim", value=512.0), r"\bdim\b"),
        (_put("dims", value=[8, 4, 12]), "dims"),
        (_put("dims", value=[4, 8]), "dims"),
        (_put("dims", value=[]), "dims"),
        (_put("dims", value=[0, 12]), "dims"),
        (
            _put("rerankers", value={"itm": {"inputs": [], "output": TENSOR, "engines": {"fp32": "x"}}}),
            "x",
        ),
        (_put("towers", value=[]), "towers"),
        (_drop("towers", "image"), "image"),
        (_put("towers", "image", "output_form", value="list"), "output_form"),
        (_put("towers", "image", "input", "shape", value=[1.5]), "shape"),
        (_put(*IMAGE, "resize", value="crop"), "resize"),
        (_put(*IMAGE, "resize", value="stretch"), "shortest_side"),
        (_put(*IMAGE, "shortest_side", value=0), "shortest_side"),
        (_drop(*IMAGE, "shortest_side"), "shortest_side"),
        (_drop(*IMAGE, "crop_rounding"), "crop_rounding"),
        (_put(*IMAGE, "interpolation", value="box"), "interpolation"),
        (_put(*IMAGE, "mean", value=[0.5, 0.5]), "mean"),
        (_put(*IMAGE, "std", value=[0.5, 0.5, 0]), r"\bstd\b"),
        (_put(*IMAGE, "width", value=-1), "width"),
        (_put(*TEXT, "padding", value="none"), "padding"),
        (_put(*TEXT, "padding", value=[]), "padding"),
        (_put(*TEXT, "context_length", value=1), "context_length"),
        (_put("logit_scale", value="1"), "logit_scale"),
        (_put("logit_scale", value=-1.0), "logit_scale"),
        (_put("logit_scale", value=10**400), "logit_scale"),
        (_put("engines", value={}), "image tower"),
        (_put("engines", "text", value={}), "text tower"),
        (_put(*ENGINE, "file", value="../image.onnx"), r"\.\./image\.onnx"),
        (_put(*ENGINE, "file", value="/etc/passwd"), "/etc/passwd"),
        (_put(*ENGINE, "file", value="a\\b"), r"a\\\\b"),
        (_put(*ENGINE, "file", value=".."), r"'\.\.'"),
        (_put(*ENGINE, "file", value=".hidden"), r"\.hidden"),
        (_put(*ENGINE, "file", value="bundle.json"), "twice"),
        (_put(*ENGINE, "file", value="text.fp32.onnx"), r"text\.fp32\.onnx"),
        (_put(*ENGINE, "sha256", value="0" * 63), "sha256"),
        (_put(*ENGINE, "size_bytes", value=-1), "size_bytes"),
        (_put(*ENGINE, "certificate", "min_cosine", value=1.5), r"1\.5"),
        (_put(*ENGINE, "certificate", "mean_cosine", value=0.5), "mean_cosine"),
        (_put(*ENGINE, "certificate", "samples", value=0), "samples"),
        (_put(*ENGINE, "certificate", "versions", value={"numpy": 1}), "numpy"),
        (_drop("files", "tokenizer.json"), r"tokenizer\.json"),
        (_drop("files", "probes.npz"), r"probes\.npz"),
        (_put("files", "../../x", value=RECORD), r"\.\./\.\./x"),
        (_put("files", "a/b", value=RECORD), "a/b"),
    ],
)
def test_strict(document: dict[str, Any], change: Callable[[dict[str, Any]], None], message: str) -> None:
    """A key that is missing, of the wrong type or out of range is a BundleError that says where."""
    change(document)
    with pytest.raises(BundleError, match=message):
        Manifest.from_json(json.dumps(document))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "JSON"),
        ("[]", "object"),
        ("{", "JSON"),
        ('{"schema_version": 2, "schema_version": 2}', "twice"),
        ('{"schema_version": NaN}', "NaN"),
        ("[" * 100_000, "JSON"),
        ("1" * 10_000, "JSON"),
    ],
)
def test_no_json(text: str, message: str) -> None:
    """What is no JSON object is a BundleError, nothing else."""
    with pytest.raises(BundleError, match=message):
        Manifest.from_json(text)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ImageSettings.centre_crop(8, shortest_side=0, mean=(0, 0, 0), std=(1, 1, 1)),
        lambda: ImageSettings.centre_crop(0, mean=(0, 0, 0), std=(1, 1, 1)),
        lambda: TextSettings(context_length=8, pad_id=-1, eos_id=1, padding=Padding.TRIM),
        lambda: Certificate(
            reference="x", data="x", samples=1, min_cosine=float("nan"), mean_cosine=1.0, recall=None, versions={}
        ),
    ],
)
def test_settings_are_checked_when_made(make: Callable[[], object]) -> None:
    """Settings out of range cannot be made: InputError."""
    with pytest.raises(InputError, match="expected"):
        make()


def test_draft_leaves_the_files_out(tiny: Any) -> None:
    """A manifest's draft has its model's settings, so that a further bundle of the model has its space."""
    draft = tiny.bundle.manifest.draft()
    assert draft.space == tiny.bundle.space
    assert draft.image == tiny.bundle.image
    assert not hasattr(draft, "engines")
