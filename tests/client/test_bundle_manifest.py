"""bundle.json is read strictly."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from twinspire.bundle import Certificate, ImageSettings, Manifest, Padding, Precision, TextSettings, Tower
from twinspire.errors import BundleError, InputError


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


@pytest.mark.parametrize("version", [0, 2, "1", 1.0, True, None])
def test_unknown_schema_version(document: dict[str, Any], version: object) -> None:
    """Any schema_version but 1 is a BundleError that says both."""
    document["schema_version"] = version
    with pytest.raises(BundleError, match="schema_version"):
        Manifest.from_json(json.dumps(document))


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


HASH = "0" * 64
RECORD = {"sha256": HASH, "size_bytes": 1}
ENGINE = ("engines", "image", "fp32")
MEAN, STD = (0, 0, 0), (1, 1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_put("extra", value=1), "extra"),
        (_put("image", "surplus", value=1), "surplus"),
        (_drop("schema_version"), "schema_version"),
        (_drop("space"), r"\bspace\b"),
        (_drop("logit_bias"), "logit_bias"),
        (_drop("text", "eos_id"), "eos_id"),
        (_drop(*ENGINE, "certificate"), "certificate"),
        (_put("name", value="../up"), r"\.\./up"),
        (_put("name", value=""), "''"),
        (_put("name", value=7), r"\bname\b"),
        (_put("family", value=""), "family"),
        (_put("space", value="abc"), "abc"),
        (_put("space", value=HASH + "\n"), HASH),
        (_put("dim", value=0), r"\bdim\b"),
        (_put("dim", value=True), r"\bdim\b"),
        (_put("dim", value=512.0), r"\bdim\b"),
        (_put("image", value=[]), r"bundle\.json\.image\b"),
        (_put("image", "crop", value=1), "crop"),
        (_put("image", "interpolation", value="nearest"), "nearest"),
        (_put("image", "mean", value=[0.5, 0.5]), "mean"),
        (_put("image", "std", value=[0.5, 0.5, 0]), r"\bstd\b"),
        (_put("image", "size", value=-1), "-1"),
        (_put("text", "padding", value="none"), "padding"),
        (_put("text", "padding", value=[]), "padding"),
        (_put("text", "context_length", value=1), "context_length"),
        (_put("logit_scale", value="1"), "logit_scale"),
        (_put("logit_scale", value=-1.0), "logit_scale"),
        (_put("logit_scale", value=10**400), "logit_scale"),
        (_put("engines", value={}), "image tower"),
        (_put("engines", "text", value={}), "text tower"),
        (_put("engines", "audio", value={}), "audio"),
        (_put("engines", "image", "int4", value=None), "int4"),
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
    """A key that is missing, unknown, of the wrong type or out of range is a BundleError that says where."""
    change(document)
    with pytest.raises(BundleError, match=message):
        Manifest.from_json(json.dumps(document))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "JSON"),
        ("[]", "object"),
        ("{", "JSON"),
        ('{"schema_version": 1, "schema_version": 1}', "twice"),
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
    ("make", "word"),
    [
        (lambda: ImageSettings(size=8, resize=9, interpolation="bicubic", crop=False, mean=MEAN, std=STD), "resize"),
        (lambda: ImageSettings(size=8, resize=8, interpolation="box", crop=True, mean=MEAN, std=STD), "box"),
        (lambda: TextSettings(context_length=8, pad_id=-1, eos_id=1, padding=Padding.TRIM), "pad_id"),
        (
            lambda: Certificate(
                reference="x", data="x", samples=1, min_cosine=float("nan"), mean_cosine=1.0, recall=None, versions={}
            ),
            "nan",
        ),
    ],
)
def test_settings_are_checked_when_made(make: Callable[[], object], word: str) -> None:
    """Settings out of range cannot be made: InputError."""
    with pytest.raises(InputError, match=word):
        make()


def test_draft_leaves_the_files_out(tiny: Any) -> None:
    """A manifest's draft has its model's settings, so that a further bundle of the model has its space."""
    draft = tiny.bundle.manifest.draft()
    assert draft.space == tiny.bundle.space
    assert draft.image == tiny.bundle.image
    assert not hasattr(draft, "engines")
