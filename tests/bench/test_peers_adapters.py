"""The adapters of the peers that the development environment has, run in it: their vectors and their searches."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.commands import run_twinspire
from support.peers import write_catalogue
from twinspire.bundle import CropRounding, ImageSettings, Interpolation, Resize
from twinspire.images import Preprocessor
from twinspire_bench.peers.adapters.bundle_inputs import fitted
from twinspire_bench.peers.catalogue import BUILT_IN, PeerKind, open_catalogue
from twinspire_eval.records import Record

NOT_INSTALLED = {"scann", "lancedb", "sqlite-vec", "milvus-lite"}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write JPEG and PNG files of several shapes."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for number, (width, height) in enumerate([(50, 40), (40, 51), (200, 90), (33, 33), (64, 300), (120, 121)]):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(
            folder / f"{number}.{'png' if number % 2 else 'jpg'}"
        )
    return folder


@pytest.mark.slow
def test_built_in_peers_give_the_vectors_of_the_bundle(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Peers that run the sample have cosines of 0.999 or more, int8 0.95; stores find what exact search does."""
    peers = {
        f"{peer.name}-here": {
            "kind": peer.kind,
            "adapter": str(peer.adapter),
            "options": peer.options,
            "min_cosine": peer.min_cosine,
        }
        for peer in open_catalogue(BUILT_IN).values()
        if peer.environment is not None and not peer.needs_checkpoint and peer.name not in NOT_INSTALLED
    }
    catalogue = write_catalogue(tmp_path / "here.toml", peers)
    arguments = ["--data", photographs, "--catalogue", catalogue]
    arguments += ["--peers", ",".join(peers), "--rounds", 1, "--k", 2, "--environments", tmp_path / "environments"]
    ran = run_twinspire(capsys, "bench", "peers", *arguments, "--json", tmp_path / "record.json")
    results = Record.load(tmp_path / "record.json").results
    assert ran.status == 0, ran.err
    assert results["not_measured"] == {}
    assert {*results[PeerKind.EMBEDDING], *results[PeerKind.STORE]} == {*peers, "twinspire", "twinspire-index"}
    for name, row in results[PeerKind.EMBEDDING].items():
        found = min(cosine["min"] for cosine in row["cosine_to_fp32"].values())
        assert found > (0.95 if "int8" in name or name == "twinspire" else 0.999), (name, found)  # ours is int8
    for name, row in results[PeerKind.STORE].items():
        assert row["recall"] == 1, name
        assert row["filtered_recall"] == (None if "usearch" in name else 1), name


@pytest.mark.parametrize("rounding", CropRounding)
@pytest.mark.parametrize("resize", Resize)
def test_adapters_fit_images_as_bundles_say(photographs: Path, resize: Resize, rounding: CropRounding) -> None:
    """The peers' own preprocessing gives the pixels of ours for every kind of resizing."""
    cropped = resize in (Resize.SHORTEST_SIDE, Resize.STRETCH_AND_CROP)
    settings = ImageSettings(
        height=31,
        width=28,
        resize=resize,
        shortest_side=37 if cropped else None,
        crop_rounding=rounding if cropped else None,
        interpolation=Interpolation.BICUBIC,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    files = sorted(photographs.iterdir())
    expected = Preprocessor(settings).many(files)
    found = np.stack([fitted(str(file), asdict(settings)) for file in files])
    np.testing.assert_array_equal(found, expected)
