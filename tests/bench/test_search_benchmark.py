"""`twinspire bench search` at a small size."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.arrays import noise_images
from twinspire import Client, sample_bundle
from twinspire.cli import main
from twinspire_bench.search.copies import CopyChange, write_copies
from twinspire_bench.search.duplicates import measure_duplicates
from twinspire_bench.search.inputs import named_scenes, scene_queries
from twinspire_bench.search.perceptual_hash import hash_of
from twinspire_eval.records import Record


def test_queries_say_names_that_their_images_have() -> None:
    """A named query has the name that stands in its image's caption or file name; none is a caption."""
    scenes = named_scenes(40, seed=3)
    queries = scene_queries(scenes, seed=3)
    assert len(queries) == 160
    for query in queries:
        scene = scenes[query.image]
        name = scene.names[query.language]
        assert (name in query.text) is query.named
        assert name in scene.caption + scene.file_name
        assert query.text not in scene.caption.split("\n")
    assert scenes == named_scenes(40, seed=3)


@pytest.mark.slow
def test_the_record_has_every_search_and_filter(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The table and the record come; names are found by keyword, and filters find what NumPy does."""
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "bench",
                "search",
                "-n",
                "24",
                "--filter-items",
                "2000",
                "--copies",
                "0",
                "--json",
                str(tmp_path / "r.json"),
            ]
        )
    sys.stdout.flush()
    assert ended.value.code == 0
    assert "hybrid" in capfd.readouterr().out
    results = Record.load(tmp_path / "r.json").results
    named = {name: found["named"]["en"]["recall"]["r1"]["value"] for name, found in results["searches"].items()}
    assert named["keyword"] > named["vector"]
    assert all(row["exact"] == 1 for row in results["filters_by_share_kept"].values())
    assert results["filters_by_share_kept"]["0.001"]["kept"] == 2


def test_too_few_scenes_are_refused(capfd: pytest.CaptureFixture[str]) -> None:
    """Below 8 there is nothing to tell apart."""
    with pytest.raises(SystemExit) as ended:
        main(["bench", "search", "-n", "7"])
    assert ended.value.code == 2
    assert "8" in capfd.readouterr().err


def test_copies_show_the_picture_of_their_scene(tmp_path: Path) -> None:
    """Each scene has an original, four copies, one for each change, and one or two other pictures; a seed repeats."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    files = write_copies(tmp_path / "a", 6, seed=3)
    for scene in range(6):
        own = [file for file in files if file.scene == scene]
        assert [file.change for file in own[:5]] == [None, *CopyChange]
        assert len({file.picture for file in own[:5]}) == 1
        assert len({file.picture for file in own}) == len(own) - 4 in (2, 3)
    with Image.open(files[0].path) as original, Image.open(files[3].path) as cropped:
        assert all(0.84 < part / whole < 0.96 for part, whole in zip(cropped.size, original.size, strict=True))
    assert len({file.picture for file in files}) == len(files) - 24
    again = write_copies(tmp_path / "b", 6, seed=3)
    assert [file.path.read_bytes() for file in again] == [file.path.read_bytes() for file in files]


def test_the_hash_is_that_of_its_definition() -> None:
    """A bit says whether one of the 64 lowest frequencies of the cosine transform is above their median."""
    image = Image.fromarray(noise_images(1, 12, 1)[0]).resize((96, 96), Image.Resampling.BICUBIC)
    pixels = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), np.float64)
    place = np.arange(32)
    frequencies = np.array(
        [
            [
                (
                    pixels
                    * np.outer(np.cos(np.pi * u * (2 * place + 1) / 64), np.cos(np.pi * v * (2 * place + 1) / 64))
                ).sum()
                for v in range(8)
            ]
            for u in range(8)
        ]
    )
    assert hash_of(image).tolist() == (frequencies > np.median(frequencies)).ravel().tolist()


@pytest.mark.slow
def test_groups_of_copies_are_measured(tmp_path: Path) -> None:
    """With pixels more groups are right than with vectors alone, and re-encoded copies are all found."""
    with Client.local(sample_bundle()) as client:
        found = measure_duplicates(client, count=12, seed=5, on_progress=lambda *_: None)
    product, vectors = found["index duplicates"], found["vectors"]
    assert product.f1.value > vectors.f1.value
    assert product.by_change[CopyChange.JPEG_75] == 1
    assert product.precision.interval.low <= product.precision.value <= product.precision.interval.high
    # Recall by pairs, counted one by one: an original with its four copies has ten pairs.
    assert product.recall.value == pytest.approx(round(product.recall.value * 120) / 120)
