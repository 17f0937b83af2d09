"""The decoding mode of clients, commands and indexes: who chooses it, and where it is written down."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.commands import Ran, run_twinspire
from twinspire import AsyncClient, Client, Index
from twinspire.bundle import Bundle, DecodeMode, Manifest, Precision, RecommendedRuntime
from twinspire.errors import InputError
from twinspire.images import Preprocessor
from twinspire.ingest import add_images
from twinspire.migration import migrate

RUNTIME = RecommendedRuntime(
    precision=Precision.FP32,
    provider="cpu",
    inference_precision="f32",
    streams=1,
    threads=1,
    speed=1.0,
    cpu_model="some processor",
    instruction_sets=(),
    gpu=None,
    data="scenes",
    max_recall_drop=0.005,
    recall_drop=0.0,
    recall_drop_high=0.0,
    rejected=(),
    measured="2026-11-30T05:00:00+00:00",
)


def _jpeg(number: int = 0, side: int = 200) -> bytes:
    """Encode noise that scaled decoding changes."""
    file = io.BytesIO()
    noise = np.random.default_rng(number).integers(0, 256, (side, side + 10 * number, 3), np.uint8)
    Image.fromarray(noise).save(file, "JPEG", quality=90)
    return file.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Write three JPEG files and a PNG."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(_jpeg(number))
    Image.open(io.BytesIO(_jpeg())).save(folder / "other.png")
    return folder


def _recommending(bundle: Bundle, folder: Path, decode: DecodeMode | None) -> Bundle:
    """Copy a bundle, its `auto` with a decoding mode."""
    shutil.copytree(bundle.path, folder)
    manifest = replace(bundle.manifest, auto=replace(RUNTIME, decode=decode))
    (folder / "bundle.json").write_text(manifest.to_json())
    return Bundle.open(folder)


def _local(bundle: Bundle, **options: Any) -> Client:
    return Client.local(bundle, precision="fp32", provider="cpu", threads=1, **options)


def test_a_client_decodes_as_told(tiny: Any) -> None:
    """`decode` of a client is that of its preprocessing; the default is exact."""
    pixels = {}
    for decode in DecodeMode:
        with _local(tiny.bundle, decode=decode.value) as client:
            assert client.decode is decode
            pixels[decode] = client.preprocess([_jpeg()])
        expected = Preprocessor(tiny.bundle.image, decode=decode).many([_jpeg()])
        np.testing.assert_array_equal(pixels[decode], expected)
    assert (pixels[DecodeMode.EXACT] != pixels[DecodeMode.SCALED]).any()
    with _local(tiny.bundle) as client:
        assert client.decode is DecodeMode.EXACT


def test_an_async_client_decodes_as_told(tiny: Any) -> None:
    """An AsyncClient with `decode="scaled"` gives the vectors of such a Client."""

    async def encode() -> Any:
        async with await AsyncClient.local(tiny.bundle, precision="fp32", provider="cpu", decode="scaled") as client:
            assert client.decode is DecodeMode.SCALED
            return await client.encode_images([_jpeg()])

    with _local(tiny.bundle, decode="scaled") as client:
        np.testing.assert_array_equal(asyncio.run(encode()), client.encode_images([_jpeg()]))


def test_a_connection_decodes_as_told(tiny: Any, start_fake: Any) -> None:
    """A client of a server sends pixels that were decoded in its own mode."""
    server = start_fake()
    with (
        _local(tiny.bundle, decode="scaled") as local,
        Client.connect(server.url, tiny.bundle, decode="scaled") as client,
    ):
        np.testing.assert_allclose(client.encode_images([_jpeg()]), local.encode_images([_jpeg()]), atol=1e-6)


@pytest.mark.parametrize(("recommended", "mode"), [(None, "exact"), ("exact", "exact"), ("scaled", "scaled")])
def test_auto_follows_the_bundle(tiny: Any, tmp_path: Path, recommended: Any, mode: str) -> None:
    """`auto` is what the bundle recommends, else exact; without `auto` a recommendation changes nothing."""
    bundle = _recommending(tiny.bundle, tmp_path / "bundle", None if recommended is None else DecodeMode(recommended))
    with _local(bundle, decode="auto") as client:
        assert client.decode == mode
    with _local(bundle) as client:
        assert client.decode is DecodeMode.EXACT


def test_auto_without_measurement_is_exact(tiny: Any) -> None:
    """`auto` of a bundle that nobody measured is exact."""
    assert tiny.bundle.manifest.auto is None
    with _local(tiny.bundle, decode="auto") as client:
        assert client.decode is DecodeMode.EXACT


def test_older_manifests_are_unchanged(tiny: Any) -> None:
    """A manifest without the new fields is written as before, and one with them read back equal."""
    document = json.loads(replace(tiny.bundle.manifest, auto=RUNTIME).to_json())
    assert "scaled_decoding" not in document
    assert "decode" not in document["auto"]
    manifest = replace(tiny.bundle.manifest, auto=replace(RUNTIME, decode="scaled"))
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize("decode", ["fast", "Scaled", None, 2])
def test_unknown_modes_of_clients(tiny: Any, decode: Any) -> None:
    """Another word is an InputError that lists the modes."""
    with pytest.raises(InputError, match="scaled") as caught:
        _local(tiny.bundle, decode=decode)
    assert caught.value.option == "decode"


def test_items_say_how_they_were_decoded(tiny: Any, photos: Path, tmp_path: Path) -> None:
    """Items of JPEG files that were added with scaled decoding have it in their metadata, others do not."""
    with (
        _local(tiny.bundle, decode="scaled") as client,
        Index.create(tmp_path / "idx", space=client.space, dim=12) as index,
    ):
        assert add_images(index, client, sorted(photos.iterdir())).added == 4
        assert {Path(item.uri).name: item.metadata.get("decode") for item in index.items()} == {
            **dict.fromkeys(["0.jpg", "1.jpg", "2.jpg"], "scaled"),
            "other.png": None,
        }
        rows = index.vectors([item.id for item in index.items()])
        expected = client.encode_images([item.uri for item in index.items()])
        np.testing.assert_allclose(rows, expected, atol=1e-6)


def test_both_modes_share_an_index(tiny: Any, photos: Path, tmp_path: Path) -> None:
    """Exact decoding adds to an index of scaled items, leaves what it has, and decodes a copy of its own."""
    with Index.create(tmp_path / "idx", space=tiny.bundle.space, dim=12) as index:
        with _local(tiny.bundle, decode="scaled") as client:
            add_images(index, client, [photos / "0.jpg"])
        shutil.copy(photos / "0.jpg", photos / "copy.jpg")
        with _local(tiny.bundle) as client:
            report = add_images(index, client, [photos / "0.jpg", photos / "copy.jpg", photos / "1.jpg"])
            assert (report.added, report.already) == (2, 1)
            exact = client.encode_images([photos / "copy.jpg"])
        modes = {Path(item.uri).name: item for item in index.items()}
        assert {name: item.metadata.get("decode") for name, item in modes.items()} == {
            "0.jpg": "scaled",
            "copy.jpg": None,
            "1.jpg": None,
        }
        np.testing.assert_allclose(index.vectors([modes["copy.jpg"].id]), exact, atol=1e-6)


@pytest.mark.parametrize("before", list(DecodeMode))
def test_a_migration_notes_its_own_mode(make_tiny: Any, photos: Path, tmp_path: Path, before: DecodeMode) -> None:
    """After a migration the items say how the new model's images were decoded, not the old one's."""
    old, new = make_tiny("old", seed=1), make_tiny("new", seed=2)
    after = next(mode for mode in DecodeMode if mode is not before)
    with (
        _local(old.bundle, decode=before) as client,
        Index.create(tmp_path / "idx", space=client.space, dim=12) as index,
    ):
        add_images(index, client, sorted(photos.iterdir()))
    with _local(new.bundle, decode=after) as client:
        migrate(tmp_path / "idx", client)
        with Index.open(tmp_path / "idx") as index:
            items = list(index.items())
            assert {item.metadata.get("decode") for item in items if item.uri.endswith(".jpg")} == {
                "scaled" if after is DecodeMode.SCALED else None
            }
            expected = client.encode_images([item.uri for item in items])
            np.testing.assert_allclose(index.vectors([item.id for item in items]), expected, atol=1e-6)


class TestCommand:
    """`--decode` of the commands that encode."""

    @pytest.fixture
    def run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> Callable[..., Ran]:
        """Run `twinspire` in the folder of the test."""
        monkeypatch.chdir(tmp_path)
        return lambda *arguments: run_twinspire(capfd, *arguments)

    @pytest.mark.parametrize("decode", [None, "exact", "scaled", "auto"])
    def test_index_add(
        self, run: Callable[..., Ran], tiny: Any, photos: Path, tmp_path: Path, decode: str | None
    ) -> None:
        """`index add --decode` decodes in that mode; `auto` is the bundle's, here exact."""
        options = [] if decode is None else ["--decode", decode]
        done = run("index", "add", "idx", photos, "--bundle", tiny.bundle.path, "--precision", "fp32", *options)
        assert done.status == 0, done.err
        mode = "scaled" if decode == "scaled" else "exact"
        with _local(tiny.bundle, decode=mode) as client, Index.open(tmp_path / "idx") as index:
            items = list(index.items())
            expected = client.encode_images([item.uri for item in items])
            np.testing.assert_allclose(index.vectors([item.id for item in items]), expected, atol=1e-5)

    def test_unknown(self, run: Callable[..., Ran], photos: Path, tmp_path: Path) -> None:
        """An unknown mode ends with status 2 before anything is created, and names the option."""
        done = run("index", "add", "idx", photos, "--decode", "fast")
        assert done.status == 2
        assert "--decode" in done.err
        assert not (tmp_path / "idx").exists()
