"""`twinspire bench recall --reproduce` and published figures, on tiny folders of the distributed forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twinspire.cli.app import application
from twinspire.errors import InputError
from twinspire_eval.datasets import published_sizes
from twinspire_eval.datasets.published_sizes import TestSetSize as Size
from twinspire_eval.published import check_published_checkpoint, published_recall
from twinspire_eval.recall import Direction
from twinspire_eval.records import Record

WORDS = ("red cat", "blue dog", "green house", "large boat", "a dog on snow", "the red boat")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """COCO of Karpathy with six images in its test split, and COCO-CN with four, as whole test sets."""
    rng = np.random.default_rng(0)
    names = [f"COCO_val2014_{place:012}" for place in range(len(WORDS))]
    (tmp_path / "val2014").mkdir()
    for name in names:
        pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "val2014" / f"{name}.jpg")
    entries = [
        {"filepath": "val2014", "filename": f"{name}.jpg", "split": "test", "sentences": [{"raw": words}]}
        for name, words in zip(names, WORDS, strict=True)
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": entries}))
    chinese = tmp_path / "coco-cn-version1805v1.1"
    chinese.mkdir()
    (chinese / "coco-cn_test.txt").write_text("\n".join(names[:4]))
    captions = "".join(f"{name}#0\t{words}\n" for name, words in zip(names, WORDS, strict=True))
    (chinese / "imageid.human-written-caption.txt").write_text(captions)
    monkeypatch.setitem(published_sizes.TEST_SETS, "coco", Size(6, 6))
    monkeypatch.setitem(published_sizes.TEST_SETS, "coco-cn", Size(4, 4))
    return [str(tmp_path / "dataset_coco.json"), str(chinese)]


def run(*arguments: object) -> None:
    """Run the command."""
    application()(["bench", "recall", *map(str, arguments)], standalone_mode=False)


def test_one_command_measures_all_precisions_on_all_sets(
    tiny: Any, folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One run measures each precision on each set and writes a record, a table and a plot, which agree."""
    out = tmp_path / "out"
    data = [option for folder in folders for option in ("--data", folder)]
    run("--reproduce", "-b", tiny.bundle.path, *data, "-o", out, "--published", "OFA-Sys/chinese-clip-vit-base-patch16")
    record = Record.load(out / "recall.json")
    engines = record.results["data"][folders[0]]["engines"]
    assert {"fp32", "int8"} <= set(engines)
    table = (out / "recall.md").read_text()
    assert table.count("| coco-cn | zh |") == 2 * len(engines)
    share = 100 * engines["int8"]["und"]["text_to_image"]["r1"]["value"]
    assert f"| coco | und | text to image | int8 | {share:.1f} (" in table
    assert "62.2, 86.6, 94.9" in table  # Chinese-CLIP's Results.md: ViT-B/16 on COCO-CN
    assert "Chinese-CLIP" in capsys.readouterr().out
    with Image.open(out / "recall.png") as plot:
        assert plot.width > 500
    row = next(row for row in record.results["published"] if row["engine"] == "fp32")
    measured = record.results["data"][folders[1]]["engines"]["fp32"]["zh"][row["direction"]]["r1"]["value"]
    assert row["measured_minus_published"]["r1"] == pytest.approx(measured - row["recall"]["r1"], abs=1e-12)


def test_the_differences_are_paired(tiny: Any, folders: list[str], tmp_path: Path) -> None:
    """The table's record holds the difference of int8 to fp32 on the same queries."""
    run("--reproduce", "-b", tiny.bundle.path, "--data", folders[0], "--json", tmp_path / "r.json")
    results = Record.load(tmp_path / "r.json").results["data"][folders[0]]
    above = results["above"]["fp32"]["int8"]["und"]["text_to_image"]["r1"]["value"]
    ranks = [results["engines"][name]["und"]["text_to_image"]["first_ranks"]["samples"] for name in ("int8", "fp32")]
    shares = [np.mean(np.array(found) == 1) for found in ranks]
    assert above == pytest.approx(shares[0] - shares[1], abs=1e-12)


def test_published_figures_stand_beside_ones_own(
    tiny: Any, folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """`bench recall` shows OpenAI's ViT-B/32 on COCO as OpenCLIP publishes it, of the whole test set alone."""
    options = ["-b", tiny.bundle.path, "--data", folders[0], "--split", "test", "--published", "clip-vit-base-patch32"]
    run(*options)
    printed = capsys.readouterr().out
    assert "30.4" in printed
    assert "openclip_retrieval_results.csv" in printed
    run(*options, "--limit", "5")
    assert "published" not in capsys.readouterr().out


def test_a_checkpoint_is_found_by_its_id_or_folder() -> None:
    """An id, its last part and a path give the same figures, another organisation's id none."""
    found = published_recall("openai/clip-vit-base-patch32", "coco")
    assert found[0].recall[Direction.TEXT_TO_IMAGE] == pytest.approx((0.3044, 0.5594, 0.6687))
    assert found[0].source.endswith("openclip_retrieval_results.csv")
    assert published_recall("CLIP-ViT-Base-Patch32", "coco") == found
    assert published_recall("/models/clip-vit-base-patch32/", "coco") == found
    assert published_recall("someone/clip-vit-base-patch32", "coco") == []
    assert published_recall("twinspire_export.sample", "coco") == []


def test_every_published_figure_is_a_share_that_rises_with_k() -> None:
    """R@1, R@5 and R@10 of every figure ascend from 0 to 1, and each names a test set that can be opened."""
    from twinspire_eval.published import _document

    for model in _document()["models"]:
        for entry in model["figures"]:
            assert entry["test_set"] in published_sizes.TEST_SETS
            for figures in published_recall(model["checkpoints"][0], entry["test_set"]):
                for shares in figures.recall.values():
                    assert 0 <= shares[0] <= shares[1] <= shares[2] <= 1


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--data", "scenes:3", "--data", "scenes:4"], "--reproduce"),
        (["--data", "scenes:3", "-o", "x"], "--reproduce"),
        (["--data", "scenes:3", "--published", "nobody/knows"], "checkpoint"),
        (["--reproduce", "--data", "muge:/nowhere"], "folder"),
        (["--data", "/nowhere", "--format", "coco-cn"], "folder"),
    ],
)
def test_wrong_options_are_refused(options: list[str], word: str) -> None:
    """Options that do not fit raise InputError before anything is measured."""
    with pytest.raises(InputError) as raised:
        run(*options)
    assert word in str(raised.value)


def test_an_unknown_checkpoint_names_the_known_ones() -> None:
    """The error lists checkpoints with published figures."""
    with pytest.raises(InputError, match="clip-vit-base-patch32"):
        check_published_checkpoint("nobody/knows")
