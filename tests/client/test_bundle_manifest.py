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
    with pytest.raises(BundleError, match=r"has schema_version .* reads 1"):
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_put("extra", value=1), r"bundle\.json has keys .*: extra"),
        (_put("image", "extra", value=1), r"bundle\.json\.image has keys .*: extra"),
        (_drop("schema_version"), "schema_version None"),
        (_drop("space"), r"bundle\.json lacks space"),
        (_drop("logit_bias"), "lacks logit_bias"),
        (_drop("text", "eos_id"), r"bundle\.json\.text lacks eos_id"),
        (_drop(*ENGINE, "certificate"), r"engines\.image\.fp32 lacks certificate"),
        (_put("name", value="../up"), "plain name"),
        (_put("name", value=""), "plain name"),
        (_put("name", value=7), "expected a string"),
        (_put("family", value=""), "family is empty"),
        (_put("space", value="abc"), "64 lower-case"),
        (_put("space", value=HASH + "\n"), "64 lower-case"),
        (_put("dim", value=0), "dim 0"),
        (_put("dim", value=True), "expected an integer"),
        (_put("dim", value=512.0), "expected an integer"),
        (_put("image", value=[]), r"bundle\.json\.image is \[\]: expected an object"),
        (_put("image", "crop", value=1), "true or false"),
        (_put("image", "interpolation", value="nearest"), "expected bilinear"),
        (_put("image", "mean", value=[0.5, 0.5]), "a list of 3"),
        (_put("image", "std", value=[0.5, 0.5, 0]), "positive"),
        (_put("image", "size", value=-1), "at least 1 pixel"),
        (_put("text", "padding", value="none"), "expected one of trim, max_length"),
        (_put("text", "padding", value=[]), "expected one of trim, max_length"),
        (_put("text", "context_length", value=1), "at least 2"),
        (_put("logit_scale", value="1"), "expected a number"),
        (_put("logit_scale", value=-1.0), "positive"),
        (_put("logit_scale", value=10**400), "expected a number"),
        (_put("engines", value={}), "no engine for the image tower"),
        (_put("engines", "text", value={}), "no engine for the text tower"),
        (_put("engines", "audio", value={}), "a key of bundle.json.engines"),
        (_put("engines", "image", "int4", value=None), "a key of bundle.json.engines.image"),
        (_put(*ENGINE, "file", value="../image.onnx"), "plain name"),
        (_put(*ENGINE, "file", value="/etc/passwd"), "plain name"),
        (_put(*ENGINE, "file", value="a\\b"), "plain name"),
        (_put(*ENGINE, "file", value=".."), "plain name"),
        (_put(*ENGINE, "file", value=".hidden"), "plain name"),
        (_put(*ENGINE, "file", value="bundle.json"), "named twice"),
        (_put(*ENGINE, "file", value="text.fp32.onnx"), "named twice"),
        (_put(*ENGINE, "sha256", value="0" * 63), "sha256"),
        (_put(*ENGINE, "size_bytes", value=-1), "size_bytes"),
        (_put(*ENGINE, "certificate", "min_cosine", value=1.5), "from -1 to 1"),
        (_put(*ENGINE, "certificate", "mean_cosine", value=0.5), "above mean_cosine"),
        (_put(*ENGINE, "certificate", "samples", value=0), "samples 0"),
        (_put(*ENGINE, "certificate", "versions", value={"numpy": 1}), "expected a string"),
        (_drop("files", "tokenizer.json"), "files lack tokenizer.json"),
        (_drop("files", "probes.npz"), r"files lack probes\.npz"),
        (_put("files", "../../x", value=RECORD), "plain name"),
        (_put("files", "a/b", value=RECORD), "plain name"),
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
        ("", "no valid JSON"),
        ("[]", "no object"),
        ("{", "no valid JSON"),
        ('{"schema_version": 1, "schema_version": 1}', "stands twice"),
        ('{"schema_version": NaN}', "NaN is no JSON number"),
        ("[" * 100_000, "no valid JSON"),
        ("1" * 10_000, "no valid JSON"),
    ],
)
def test_no_json(text: str, message: str) -> None:
    """What is no JSON object is a BundleError, nothing else."""
    with pytest.raises(BundleError, match=message):
        Manifest.from_json(text)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ImageSettings(size=8, resize=9, interpolation="bicubic", crop=False, mean=(0, 0, 0), std=(1, 1, 1)),
        lambda: ImageSettings(size=8, resize=8, interpolation="box", crop=True, mean=(0, 0, 0), std=(1, 1, 1)),
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
