"""The demo, small: pictures go in and words find them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from twinspire import sample_bundle
from twinspire.errors import InputError
from twinspire_server.demo import QUERIES, run_demo

IMAGES = 40


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the demo."""
    return tmp_path_factory.mktemp("demo") / "out"


def test_the_report_has_the_promised_form(out: Path) -> None:
    """The JSON names runtime, speed, recall both ways in both languages, and seven queries with their hits."""
    stages: dict[str, int] = {}
    report = run_demo(out, bundle=sample_bundle(), images=IMAGES, on_progress=lambda s, d, t: stages.update({s: d}))
    assert stages == {"drawing": IMAGES, "indexing": IMAGES}
    document = json.loads(json.dumps(report.to_json()))
    assert set(document) == {"runtime", "images", "images_per_s", "recall", "queries"}
    assert document["runtime"] == "local"
    assert document["images"] == IMAGES
    assert document["images_per_s"] > 0
    assert set(document["recall"]) == {"en", "zh"}
    for both in document["recall"].values():
        assert set(both) == {"text_to_image", "image_to_text"}
        for recall in both.values():
            assert 0 < recall["r1"] <= recall["r5"] <= recall["r10"] <= 1
    assert [query["query"] for query in document["queries"]] == [*QUERIES, "query.jpg"]
    for query in document["queries"]:
        scores = [hit["score"] for hit in query["hits"]]
        assert scores == sorted(scores, reverse=True)
        assert all((out / "scenes" / hit["file"]).is_file() for hit in query["hits"])
    assert report.sheet.is_file()


def test_the_same_scene_drawn_again_finds_its_picture(out: Path) -> None:
    """The picture query shows the first scene in another drawing, and the first hit is the first picture."""
    report = run_demo(out, bundle=sample_bundle(), images=IMAGES)
    assert Path(report.answers[-1].hits[0].uri).name == "000000.jpg"


def test_a_strangers_folder_is_left_alone(tmp_path: Path) -> None:
    """A folder that no demo made is refused and keeps its files; an earlier demo's keeps what the demo did not make."""
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(InputError, match="not empty"):
        run_demo(tmp_path, bundle=sample_bundle(), images=IMAGES)
    assert [file.name for file in tmp_path.iterdir()] == ["photo.jpg"]
