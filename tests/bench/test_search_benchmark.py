"""`twinspire bench search` at a small size."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from twinspire.cli import main
from twinspire_bench.search.inputs import named_scenes, scene_queries
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
        main(["bench", "search", "-n", "24", "--filter-items", "2000", "--json", str(tmp_path / "r.json")])
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
