"""The benchmark of an index that grows, measured small."""

from __future__ import annotations

import io
import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
import typer
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from twinspire.errors import EngineError
from twinspire.index import Index
from twinspire_bench import growth
from twinspire_bench.index.growth import GrowthTask, growing, killed
from twinspire_bench.index.inputs import Distribution
from twinspire_eval.records import Record


@pytest.fixture
def task(tmp_path: Path) -> GrowthTask:
    """Describe an index of 900, then 2,500 items, the second of which cuts a batch."""
    return GrowthTask(
        folder=str(tmp_path),
        sizes=(900, 2_500),
        dim=32,
        distribution=Distribution.CLUSTERS,
        dtype="float32",
        spec="ivf,sq8",
        threads=1,
        query_count=64,
    )


@pytest.mark.slow
def test_an_index_is_measured_at_each_size(task: GrowthTask, tmp_path: Path) -> None:
    """A record has each size's figures and what a kill left, reads back, prints and is drawn."""
    record = growth.measure(task, say=lambda _: None)
    record.save(tmp_path / "growth.json")
    rows = Record.load(tmp_path / "growth.json").results["sizes"]
    assert [row["items"] for row in rows] == list(task.sizes)
    assert rows[1]["vectors_bytes"] - rows[0]["vectors_bytes"] == (2_500 - 900) * 32 * 4
    for row in rows:
        assert row["search"]["recall"] >= 0.9
        assert row["search"]["queries_per_s"]["median"] > 0
        assert row["built"]["spec"] == "ivf,sq8"
        assert row["search"]["memory"]["anonymous_bytes"] > 0
    with Index.open(task.index) as index:
        assert len(index) == record.results["after_a_kill"]["items"] > 2_500
    printed = io.StringIO()
    growth.show(record, Console(file=printed, width=200))
    assert "2,500" in printed.getvalue()
    growth.plot(record, tmp_path / "growth.png")
    with Image.open(tmp_path / "growth.png") as drawn:
        assert drawn.width > 1000


@pytest.mark.slow
def test_a_damaged_index_is_no_measurement(task: GrowthTask) -> None:
    """An index that a process cannot add to, here for a changed byte, ends the measurement with an error."""
    document = json.loads(json.dumps(asdict(task)))
    grow = growing(document)
    for _ in task.sizes:
        grow()
    (file,) = task.index.glob("vectors*")
    with file.open("r+b") as opened:
        opened.seek(-1, os.SEEK_END)
        (byte,) = opened.read(1)
        opened.seek(-1, os.SEEK_END)
        opened.write(bytes([byte ^ 0xFF]))
    with pytest.raises(EngineError, match="ended by itself"):
        killed(task)


def test_sizes_that_do_not_rise_are_refused() -> None:
    """Sizes that fall, or are no numbers, end the benchmark with their option's name."""
    app = typer.Typer()
    app.command()(growth.main)
    for sizes in ("1000,10", "many", ""):
        result = CliRunner().invoke(app, ["--sizes", sizes])
        assert result.exit_code == 1
        assert "sizes" in result.stderr
