"""An opened bundle is exactly what was written, or an error that names what is wrong."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import twinspire.bundle
import twinspire.sample
from twinspire import Client
from twinspire.bundle import MANIFEST_NAME, Bundle, Precision, Probes, Tower, TowerProbes, TowerSpecs
from twinspire.errors import BundleError, InputError
from twinspire.sample import sample_bundle

ENGINES = ["image.fp32.onnx", "image.int8.onnx", "text.fp32.onnx", "text.int8.onnx"]
NPY = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '|u1', 'fortran_order': False, 'shape': (2,), }".ljust(117) + b"\n12"
FILES = ["bundle.json", "tokenizer.json", "probes.npz", *ENGINES]


@pytest.fixture
def copied(tiny: Any, tmp_path: Path) -> Path:
    """A copy of the tiny bundle, to damage."""
    return Path(shutil.copytree(tiny.bundle.path, tmp_path / "copied"))


def test_exports() -> None:
    """The package's public names are exactly these."""
    assert sorted(twinspire.bundle.__all__) == [
        "AudioCut", "AudioPadding", "AudioSettings", "AudioTowerSpec", "Bundle", "BundleDescription", "BundleWriter",
        "Certificate", "CropRounding", "DecodeCertificate", "DecodeMode", "EngineRecord",
        "FileRecord", "ImageSettings", "ImageTowerSpec", "Interpolation",
        "MANIFEST_NAME", "Manifest", "ManifestDraft", "MelNorm", "MelScale", "OutputForm", "PROBES_NAME", "Padding",
        "Precision", "Probes", "RecommendedRuntime", "Reranker", "Resize", "SCHEMA_VERSION", "Source", "TOKENIZER_NAME",
        "TextSettings", "TextTowerSpec", "Tower", "TowerProbes", "TowerSpec", "TowerSpecs", "space_id",
    ]  # fmt: skip


def test_open_gives_what_was_written(tiny: Any) -> None:
    """Opening a written bundle gives the manifest that the writer returned."""
    opened = Bundle.open(str(tiny.bundle.path))
    assert opened.manifest == tiny.bundle.manifest
    assert (opened.name, opened.dim, opened.space) == ("tiny", 12, "0" * 64)
    assert opened.image.size == 16
    assert opened.text.context_length == 20
    assert opened.tokenizer_path.is_file()
    assert sorted(path.name for path in opened.path.iterdir()) == sorted(FILES)


def test_files_that_the_manifest_does_not_name_are_left_alone(copied: Path) -> None:
    """A further file in the folder is no error."""
    (copied / "README.md").write_text("notes")
    Bundle.open(copied)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_flipped_byte(copied: Path, name: str, place: str) -> None:
    """One flipped byte in any file is a BundleError that names the file."""
    path = copied / name
    data = bytearray(path.read_bytes())
    data[{"first": 0, "middle": len(data) // 2, "last": len(data) - 1}[place]] ^= 0x80
    path.write_bytes(data)
    with pytest.raises(BundleError, match=name):
        Bundle.open(copied)


def test_flipped_bits_of_the_manifest(copied: Path) -> None:
    """A flipped bit in bundle.json is a BundleError, unless it made another valid manifest; never another error."""
    original = (copied / "bundle.json").read_bytes()
    for place in range(0, len(original), 5):
        data = bytearray(original)
        data[place] ^= 1 << (place % 8)
        (copied / "bundle.json").write_bytes(data)
        with contextlib.suppress(BundleError):
            Bundle.open(copied)


@pytest.mark.parametrize("name", FILES)
def test_missing_file(copied: Path, name: str) -> None:
    """A file that the manifest names and that is not there is a BundleError that names it."""
    (copied / name).unlink()
    with pytest.raises(BundleError, match=re.escape(name)):
        Bundle.open(copied)


@pytest.mark.parametrize("name", FILES)
def test_truncated_file(copied: Path, name: str) -> None:
    """A file cut to half its length is a BundleError that names it."""
    path = copied / name
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(BundleError, match=re.escape(name)):
        Bundle.open(copied)


@pytest.mark.parametrize("name", ["tokenizer.json", "image.fp32.onnx"])
def test_folder_in_place_of_a_file(copied: Path, name: str) -> None:
    """A folder with a file's name is a BundleError."""
    (copied / name).unlink()
    (copied / name).mkdir()
    with pytest.raises(BundleError, match=name):
        Bundle.open(copied)


@pytest.mark.parametrize("kind", ["absent", "file", "empty"])
def test_no_bundle(tmp_path: Path, kind: str) -> None:
    """A path that is absent, a file or an empty folder is a BundleError that says what was expected."""
    path = tmp_path / kind
    if kind == "file":
        path.write_text("x")
    elif kind == "empty":
        path.mkdir()
    with pytest.raises(BundleError, match=r"bundle\.json"):
        Bundle.open(path)


def test_engine_names_what_there_is(make_tiny: Callable[..., Any]) -> None:
    """Asking for a precision that is not there says which are and how to make one."""
    bundle = make_tiny(precisions=(Precision.FP32,)).bundle
    assert bundle.precisions(Tower.IMAGE) == (Precision.FP32,)
    assert bundle.engine(Tower.TEXT, Precision.FP32).name == "text.fp32.onnx"
    with pytest.raises(BundleError, match="fp32") as caught:
        bundle.engine(Tower.IMAGE, Precision.INT8)
    assert "twinspire quantize" in str(caught.value)
    with pytest.raises(BundleError, match="fp16"):
        bundle.engine(Tower.TEXT, Precision.FP16)


def test_precisions_come_in_order(tiny: Any) -> None:
    """Precisions are listed from fp32 down."""
    assert tiny.bundle.precisions(Tower.TEXT) == (Precision.FP32, Precision.INT8)


def test_sample_bundle_is_there_or_says_so(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sample_bundle` gives the folder that comes with the package, or raises BundleError where there is none."""
    monkeypatch.setattr(twinspire.sample, "_FOLDER", tiny.bundle.path)
    assert sample_bundle() == tiny.bundle.path
    monkeypatch.setattr(twinspire.sample, "_FOLDER", tiny.bundle.path / "gone")
    with pytest.raises(BundleError, match="gone"):
        sample_bundle()


class TestProbes:
    """Inputs with reference embeddings."""

    def probes(self, **changes: object) -> Probes:
        """Draw probes; `changes` replaces fields."""
        generator = np.random.default_rng(0)
        rows = generator.normal(size=(5, 4))
        unit = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        fields: dict[str, Any] = {
            "image": generator.integers(0, 256, (2, 8, 8, 3), np.uint8),
            "input_ids": [np.arange(n, dtype=np.int32) for n in (2, 7, 3)],
            "image_embedding": unit[:2],
            "text_embedding": unit[2:],
            **changes,
        }
        return Probes(
            {
                Tower.IMAGE: TowerProbes(fields["image"], fields["image_embedding"]),
                Tower.TEXT: TowerProbes(fields["input_ids"], fields["text_embedding"]),
            }
        )

    def test_round_trip(self, tmp_path: Path) -> None:
        """Saved probes are loaded bit for bit."""
        probes = self.probes()
        probes.save(tmp_path / "p.npz")
        loaded = Probes.load(tmp_path / "p.npz")
        assert [row.tolist() for row in loaded.towers[Tower.TEXT].inputs] == [
            row.tolist() for row in probes.towers[Tower.TEXT].inputs
        ]
        assert all(row.dtype == np.int32 for row in loaded.towers[Tower.TEXT].inputs)
        np.testing.assert_array_equal(loaded.towers[Tower.IMAGE].inputs, probes.towers[Tower.IMAGE].inputs)
        for tower in (Tower.IMAGE, Tower.TEXT):
            np.testing.assert_array_equal(loaded.towers[tower].embedding, probes.towers[tower].embedding)

    def test_same_probes_same_bytes(self, tmp_path: Path) -> None:
        """Saving the same probes twice gives the same file."""
        for name in "ab":
            self.probes().save(tmp_path / name)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    @pytest.mark.parametrize(
        "changes",
        [
            {"image": np.zeros((2, 8, 8, 3), np.float32)},
            {"image": np.zeros((2, 3, 8, 8), np.uint8)},
            {"input_ids": [np.arange(3)] * 3},
            {"input_ids": [np.zeros(0, np.int32)] * 3},
            {"text_embedding": np.eye(4, dtype=np.float32)},
            {"image_embedding": np.eye(2, 5, dtype=np.float32)},
            {"image_embedding": np.full((2, 4), np.nan, np.float32)},
            {"image_embedding": np.ones((2, 4), np.float32)},
        ],
    )
    def test_wrong_arrays(self, changes: dict[str, object]) -> None:
        """A wrong shape, dtype or norm is an InputError."""
        with pytest.raises(InputError, match=next(iter(changes))):
            self.probes(**changes)

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"no zip", NPY])
    def test_no_npz(self, tmp_path: Path, content: bytes) -> None:
        """A file that is no .npz is a BundleError that names it."""
        (tmp_path / "p.npz").write_bytes(content)
        with pytest.raises(BundleError, match=r"p\.npz"):
            Probes.load(tmp_path / "p.npz")

    def test_pickled_arrays_are_refused(self, tmp_path: Path) -> None:
        """An .npz with pickled objects is a BundleError: nothing in it is run."""
        with (tmp_path / "p.npz").open("wb") as file:
            np.savez(file, lengths=np.array([{}], object), ids=np.array([{}], object), text_embedding=np.eye(2))
        with pytest.raises(BundleError, match="allow_pickle"):
            Probes.load(tmp_path / "p.npz")

    def test_of_the_bundle(self, tiny: Any) -> None:
        """A bundle's probes have its image size and dimension."""
        probes = tiny.bundle.probes()
        assert probes.towers[Tower.IMAGE].inputs.shape == (2, 16, 16, 3)
        assert probes.towers[Tower.TEXT].embedding.shape == (2, 12)


class TestOneTower:
    """Bundles with one of the towers."""

    def test_texts_alone(self, make_tiny: Any) -> None:
        """A bundle with a text tower alone opens, and encodes texts as a bundle with both towers does."""
        both, alone = make_tiny("both"), make_tiny("alone", towers=(Tower.TEXT,))
        assert Bundle.open(alone.bundle.path).towers == (Tower.TEXT,)
        with (
            Client.local(both.bundle, provider="cpu") as expected,
            Client.local(alone.bundle.path, provider="cpu") as found,
        ):
            np.testing.assert_array_equal(found.encode_texts(["a b"]), expected.encode_texts(["a b"]))

    def test_images_alone(self, make_tiny: Any) -> None:
        """A bundle with an image tower alone has no tokenizer, and encodes images as a bundle with both towers does."""
        both, alone = make_tiny("both"), make_tiny("alone", towers=(Tower.IMAGE,))
        assert not alone.bundle.tokenizer_path.exists()
        image = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
        with (
            Client.local(both.bundle, provider="cpu") as expected,
            Client.local(alone.bundle.path, provider="cpu") as found,
        ):
            np.testing.assert_array_equal(found.encode_images([image]), expected.encode_images([image]))

    @pytest.mark.parametrize(
        "use",
        [
            lambda client: client.encode_images([np.zeros((4, 4, 3), np.uint8)]),
            lambda client: client.preprocess([np.zeros((4, 4, 3), np.uint8)]),
            lambda client: client.towers.encode_images(np.zeros((1, 16, 16, 3), np.uint8)),
            lambda client: client.bundle.engine("image", "fp32"),
            lambda client: client.bundle.precisions("image"),
        ],
    )
    def test_the_absent_tower(self, make_tiny: Any, use: Callable[[Client], object]) -> None:
        """Using the tower that a bundle lacks is a BundleError that names it."""
        bundle = make_tiny(towers=(Tower.TEXT,)).bundle
        with Client.local(bundle, provider="cpu") as client, pytest.raises(BundleError, match="image tower"):
            use(client)

    def test_no_tower(self) -> None:
        """A model without towers is an InputError."""
        with pytest.raises(InputError, match="no towers"):
            TowerSpecs()


@pytest.mark.parametrize("family", ["made-in-2031", "模型"])
def test_family_that_this_version_does_not_know(copied: Path, family: str) -> None:
    """`family` is for people: a bundle of an unknown one encodes as before, since its towers are described in full."""
    images, texts = np.zeros((1, 16, 16, 3), np.uint8), ["a cat"]
    with Client.local(copied) as client:
        expected = [client.encode_images(images), client.encode_texts(texts)]
    manifest = copied / MANIFEST_NAME
    document = json.loads(manifest.read_text(encoding="utf-8")) | {"family": family}
    manifest.write_text(json.dumps(document), encoding="utf-8")
    with Client.local(copied) as client:
        assert client.bundle.manifest.family == family
        encoded = [client.encode_images(images), client.encode_texts(texts)]
    assert all(np.array_equal(found, before) for found, before in zip(encoded, expected, strict=True))
