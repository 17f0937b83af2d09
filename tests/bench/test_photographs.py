"""The benchmark of photographs: its files, and the record that it writes."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twinspire import Client
from twinspire.errors import InputError
from twinspire.images import load_image
from twinspire_bench.photographs import PhotographSettings, measure, measure_recall, show, write_photographs
from twinspire_eval.datasets import open_dataset
from twinspire_eval.recall import R1
from twinspire_eval.recall.benchmark import measure_recall as recall_of
from twinspire_eval.records import Record
from twinspire_eval.tables import figures_console

SMALL = PhotographSettings(rounds=2, photographs=3, width=240, height=180, scenes=6)


def _say(text: str) -> None:
    assert text


def test_photographs_are_of_the_size_and_differ(tmp_path: Path) -> None:
    """Every file is a JPEG of that size, with content of its own and the noise that was asked for."""
    files = write_photographs(tmp_path, SMALL)
    assert [load_image(file).size for file in files] == [(240, 180)] * 3
    assert len({file.read_bytes() for file in files}) == 3
    (tmp_path / "plain").mkdir()
    plain = write_photographs(tmp_path / "plain", replace(SMALL, noise=0))
    noisy, smooth = (np.asarray(load_image(file)).astype(int) for file in (files[0], plain[0]))
    assert 1.5 < np.abs(noisy - smooth).mean() < 5


def test_the_record(tiny: Any, tmp_path: Path) -> None:
    """It has a rate for each round and mode, their ratio, and survives being saved and shown."""
    record = measure(tiny.bundle, None, threads=1, settings=SMALL, say=_say)
    record.save(tmp_path / "record.json")
    read = Record.load(tmp_path / "record.json")
    rates = read.results["adding"]["photographs_per_s"]
    assert {mode: len(found["samples"]) for mode, found in rates.items()} == {"exact": 2, "scaled": 2}
    assert read.results["recall"]["reduced"] == 6
    show(read, figures_console())


def test_recall_is_that_of_two_clients(tiny: Any) -> None:
    """R@1 lost by scaled decoding is that of `bench recall` with a client of each mode."""
    found = measure_recall(tiny.bundle, threads=1, settings=SMALL, say=_say)
    data = open_dataset("scenes:6:101:208")
    figures = []
    for decode in ("exact", "scaled"):
        with Client.local(tiny.bundle, threads=1, decode=decode) as client:
            figures.append(recall_of({decode: client}, data).figures[decode])
    for place, decode in enumerate(("exact", "scaled")):
        for language, both in figures[place].items():
            for direction, expected in both.items():
                assert found["engines"][decode][language][direction.value][R1]["value"] == expected[R1].value


def test_scenes_have_the_size_asked_for() -> None:
    """`scenes:COUNT:SEED:SIDE` are scenes of that side, of the same captions as without it."""
    large, plain = open_dataset("scenes:3:5:1200"), open_dataset("scenes:3:5")
    assert large.captions == plain.captions
    assert large.name != plain.name
    images = [Image.open(io.BytesIO(data.images[1])) for data in (large, plain)]  # type: ignore[arg-type]
    assert [image.size for image in images] == [(1200, 1200), (256, 256)]


@pytest.mark.parametrize("argument", ["3:5:10", "3:5:9000", "3:5:x", "3:5:256:1", "3:5:-1"])
def test_wrong_sizes(argument: str) -> None:
    """A side out of range, and what is no number, are an InputError."""
    with pytest.raises(InputError, match="scenes"):
        open_dataset(f"scenes:{argument}")
