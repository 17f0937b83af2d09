"""`twinspire bench recall`: engines over a data set, against the same towers in NumPy and a sort."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

from support.data import PHOTO_CAPTIONS
from twinspire import Client, sample_bundle
from twinspire.cli.app import application
from twinspire.errors import ImageError, InputError, TwinspireError
from twinspire_eval.comparison import compare
from twinspire_eval.datasets import Caption, CaptionedImages, LabelledQuery, open_dataset
from twinspire_eval.recall import METRICS, P1, R1, Direction
from twinspire_eval.recall.benchmark import DatasetEmbeddings, RecallReport, encode_dataset, measure_recall
from twinspire_eval.records import Record

# Of the tiny bundle's tokenizer.
WORDS = ("a", "the", "red", "blue", "green", "large", "cat", "dog", "house", "boat", "left", "of", "on", "snow")


def _captioned(count: int, *, seed: int = 0) -> CaptionedImages:
    """Images of noise with one English caption, and every third with two Chinese ones, in the tiny model's words."""
    rng = np.random.default_rng(seed)

    taken = {""}

    def words() -> str:
        said = ""
        while said in taken:  # equal captions would tie
            said = " ".join(rng.choice(WORDS, rng.integers(3, 13)))
        taken.add(said)
        return said

    return CaptionedImages(
        f"{count} of noise",
        tuple(f"n{place}" for place in range(count)),
        [rng.integers(0, 256, (16, 16, 3), np.uint8) for _ in range(count)],
        tuple(
            (Caption(words(), "en"), *(Caption(words(), "zh") for _ in range(2 if place % 3 == 0 else 0)))
            for place in range(count)
        ),
    )


@pytest.fixture
def clients(tiny: Any) -> Iterator[dict[str, Client]]:
    """Open the tiny bundle's engines on the CPU."""
    with (
        Client.local(tiny.bundle, precision="fp32", provider="cpu") as fp32,
        Client.local(tiny.bundle, precision="int8", provider="cpu") as int8,
    ):
        yield {"fp32": fp32, "int8": int8}


def _expected_ranks(
    model: Any, tokenizer: Tokenizer, data: CaptionedImages, language: str
) -> dict[Direction, list[int]]:
    """Rank by sorting the scores of the towers in NumPy, caption by caption and image by image."""
    texts, owners = [], []
    for position, said in enumerate(data.captions):
        for caption in said:
            if caption.language == language:
                texts.append(np.array(tokenizer.encode(caption.text).ids, np.int32))
                owners.append(position)
    scores = model.encode_texts(texts) @ model.encode_images(np.stack(list(data.images))).T  # (T, N)
    by_caption = [list(np.argsort(-row)).index(owner) + 1 for row, owner in zip(scores, owners, strict=True)]
    by_image = []
    for position in sorted(set(owners)):
        order = np.argsort(-scores[:, position])
        by_image.append(next(rank for rank, text in enumerate(order, start=1) if owners[text] == position))
    return {Direction.TEXT_TO_IMAGE: by_caption, Direction.IMAGE_TO_TEXT: by_image}


def test_every_engine_is_ranked_as_its_towers_rank(tiny: Any, clients: dict[str, Client]) -> None:
    """Each engine, language and direction, over more images than are encoded at a time."""
    data = _captioned(300)
    report = measure_recall(clients, data)
    assert list(report.rankings) == ["fp32", "int8"]
    tokenizer = Tokenizer.from_file(str(tiny.bundle.tokenizer_path))
    for engine, model in (("fp32", tiny.model), ("int8", tiny.int8)):
        for language in ("en", "zh"):
            expected = _expected_ranks(model, tokenizer, data, language)
            for direction, ranking in report.rankings[engine][language].items():
                # Sums in float32 may exchange two neighbours that score the same to seven digits.
                moved = np.abs(ranking.first_ranks - expected[direction])
                assert moved.max() <= 1, f"{moved.max()} places"
                assert moved.mean() < 0.02


def test_shorter_embeddings_are_ranked_as_cut_ones(make_tiny: Callable[..., Any]) -> None:
    """Each length is ranked as by a client that cuts to it, and compared with whole embeddings."""
    bundle, data = make_tiny(dims=(4, 8, 12)).bundle, _captioned(60)
    with Client.local(bundle, precision="fp32", provider="cpu") as client:
        report = measure_recall({"fp32": client}, data, dims=[8, 4])
        assert list(report.figures) == ["fp32", "fp32:8", "fp32:4"]
        assert report.dims == {"fp32:8": 8, "fp32:4": 4}
        assert set(report.losses) == {"fp32:8", "fp32:4"}
        images, texts = client.encode_images(data.images), client.encode_texts(data.captions_in("en").texts)
        for dim in (4, 8):
            scores = texts[:, :dim] / np.linalg.norm(texts[:, :dim], axis=1, keepdims=True)
            scores = scores @ (images[:, :dim] / np.linalg.norm(images[:, :dim], axis=1, keepdims=True)).T
            owners = data.captions_in("en").owners
            expected = (scores > scores[np.arange(len(scores)), owners][:, None]).sum(axis=1) + 1
            found = report.rankings[f"fp32:{dim}"]["en"][Direction.TEXT_TO_IMAGE].first_ranks
            moved = np.abs(found - expected)
            assert moved.max() <= 1, f"{moved.max()} places"
            assert moved.mean() < 0.02
        for bad in (5, 20):
            with pytest.raises(InputError, match=f"dim {bad}"):
                measure_recall({"fp32": client}, data, dims=[bad])


def _asked(data: CaptionedImages) -> CaptionedImages:
    """Add five queries in each language; random images are right."""
    rng = np.random.default_rng(5)
    queries = tuple(
        LabelledQuery(
            " ".join(rng.choice(WORDS, 3)),
            language,
            tuple(np.flatnonzero(rng.random(len(data)) < 0.4).tolist()) or (0,),
        )
        for language in ("en", "zh")
        for _ in range(5)
    )
    return replace(data, queries=queries)


def test_short_queries_are_ranked_by_every_engine_and_length(make_tiny: Callable[..., Any]) -> None:
    """P@1 is NumPy's share of queries whose best image is right, also of cut embeddings; losses are differences."""
    bundle, data = make_tiny(dims=(4, 8, 12)).bundle, _asked(_captioned(20))
    with Client.local(bundle, precision="fp32", provider="cpu") as client:
        report = measure_recall({"fp32": client}, data, dims=[8, 4]).queries
        images = client.encode_images(data.images)
        assert report.queries == {"en": 5, "zh": 5}
        for engine, dim in (("fp32", 12), ("fp32:8", 8), ("fp32:4", 4)):
            unit = images[:, :dim] / np.linalg.norm(images[:, :dim], axis=1, keepdims=True)
            for language in ("en", "zh"):
                queries = data.queries_in(language)
                best = (client.encode_texts([query.text for query in queries])[:, :dim] @ unit.T).argmax(axis=1)
                right = [image in query.relevant for image, query in zip(best.tolist(), queries, strict=True)]
                found = report.figures[engine][language][P1]
                assert found.value == np.mean(right)
                assert found.interval.low <= found.value <= found.interval.high
                if engine != "fp32":
                    difference = np.mean(right) - report.figures["fp32"][language][P1].value
                    assert report.losses[engine][language][P1].value == pytest.approx(difference)
        assert measure_recall({"fp32": client}, data, languages=["zh"]).queries.queries == {"zh": 5}


def test_embeddings_are_kept_with_those_of_queries(clients: dict[str, Client]) -> None:
    """Arrays by name are read as what they were, with queries and without."""
    for data in (_captioned(6), _asked(_captioned(6))):
        for found in encode_dataset(clients, data).values():
            again = DatasetEmbeddings.from_arrays(found.to_arrays())
            assert again.images is not None
            assert found.images is not None
            assert np.array_equal(again.images, found.images)
            for ours, theirs in ((again.texts, found.texts), (again.queries, found.queries)):
                assert {name: rows.tolist() for name, rows in ours.items()} == {
                    name: rows.tolist() for name, rows in theirs.items()
                }
            assert bool(found.queries) is bool(data.queries)


def test_the_command_shows_short_queries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scenes have a table of them, and a record with each rank; other data, and its record, have neither."""
    file = tmp_path / "record.json"
    _run("-d", "scenes:12:4", "-p", "fp32,int8", "--provider", "cpu", "--json", file)
    printed = capsys.readouterr().out
    record = Record.load(file)
    data = open_dataset("scenes:12:4")
    found = record.results["short_queries"]["engines"]
    dims = [64, 32]
    assert list(found) == ["fp32", "int8", *(f"{engine}:{dim}" for engine in ("fp32", "int8") for dim in dims)]
    for engine, language in product(found, ("en", "zh")):
        figures = found[engine][language]
        ranks = np.array(figures["first_ranks"]["samples"])
        assert len(ranks) == figures["queries"] == len(data.queries_in(language))
        assert figures["p1"]["value"] == np.mean(ranks == 1)
        assert f"{100 * figures['p1']['value']:.1f}" in printed
    assert set(record.results["short_queries"]["above"]["fp32"]["int8"]["en"]) == {"p1", "map"}
    assert record.parameters["queries_sha256"] == data.queries_sha256
    assert "P@1" in printed


def test_losses_are_differences_of_the_figures(clients: dict[str, Client]) -> None:
    """The pooled one is the mean over languages and directions; the reference may be named."""
    report = measure_recall(clients, _captioned(40), reference="int8")
    assert list(report.losses) == ["fp32"]
    loss = report.losses["fp32"]
    for measure in METRICS:
        singly = []
        for language in ("en", "zh"):
            for direction in (Direction.TEXT_TO_IMAGE, Direction.IMAGE_TO_TEXT):
                ours, theirs = (report.figures[engine][language][direction] for engine in ("int8", "fp32"))
                singly.append(theirs[measure].value - ours[measure].value)
                assert loss.by_language[language][direction][measure].value == pytest.approx(singly[-1])
        assert loss.pooled[measure].value == pytest.approx(np.mean(singly))
        assert loss.pooled[measure].interval.low <= loss.pooled[measure].value <= loss.pooled[measure].interval.high


def test_one_language_may_be_asked_for(clients: dict[str, Client]) -> None:
    """Others are left out; one that is not there is an error before anything is encoded."""
    assert list(measure_recall(clients, _captioned(5), languages=["zh"]).figures["fp32"]) == ["zh"]
    told: list[str] = []
    with pytest.raises(InputError, match="'de'"):
        measure_recall(clients, _captioned(5), languages=["de"], on_progress=lambda stage, *_: told.append(stage))
    assert not told


def test_progress_is_told(clients: dict[str, Client]) -> None:
    """Images, then captions, each up to all of them."""
    told: list[tuple[str, int, int]] = []
    measure_recall(clients, _captioned(300), on_progress=lambda *step: told.append(step))
    assert told[:3] == [("images", 0, 300), ("images", 256, 300), ("images", 300, 300)]
    assert told[-1] == ("captions", 4, 4)


def test_a_broken_image_is_named(clients: dict[str, Client], tmp_path: Path) -> None:
    """Its position in the whole data set, its id and its file."""
    good = _captioned(300)
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    pictures = [*good.images[:270], tmp_path / "bad.jpg", *good.images[271:]]
    with pytest.raises(ImageError, match=r"bad\.jpg") as caught:
        measure_recall(clients, CaptionedImages("bad", good.ids, pictures, good.captions))
    assert caught.value.position == 270
    assert "n270" in caught.value.name


def test_engines_must_be_of_one_model(clients: dict[str, Client], make_tiny: Callable[..., Any]) -> None:
    """Other spaces, no engines and a reference that is not among them are errors."""
    with (
        Client.local(make_tiny(seed=1).bundle, precision="fp32", provider="cpu") as other,
        pytest.raises(InputError, match="spaces"),
    ):
        measure_recall({**clients, "other": other}, _captioned(3))
    with pytest.raises(InputError, match="none"):
        measure_recall({}, _captioned(3))
    with pytest.raises(InputError, match="fp16"):
        measure_recall(clients, _captioned(3), reference="fp16")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A CSV of images and captions."""
    rng = np.random.default_rng(0)
    lines = ["image,caption,language"]
    for place in range(12):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(tmp_path / f"{place}.png")
        lines += [f"{place}.png,a {WORDS[place]} cat,en", f"{place}.png,the {WORDS[place]} dog,en"]
        lines += [f"{place}.png,the {WORDS[place]} house,zh"]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    return tmp_path / "table.csv"


def _run(*arguments: object) -> None:
    """Run `twinspire bench recall`; errors are raised."""
    application()(["bench", "recall", *map(str, arguments)], standalone_mode=False)


def test_the_command_prints_and_writes(
    tiny: Any, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table for people; a record with what was measured, of what, and every rank."""
    file = tmp_path / "record.json"
    _run("--bundle", tiny.bundle.path, "--data", table, "--provider", "cpu", "--json", file)
    printed = capsys.readouterr().out
    assert "table.csv" in printed
    assert "onnxruntime cpu int8" in printed
    assert "points" in printed
    assert len([line for line in printed.splitlines() if line.startswith(("fp32  ", "int8  "))]) == 2 * 4 + 5
    assert max(map(len, printed.splitlines())) <= 100
    record = Record.load(file)
    assert record.kind == "recall"
    assert record.parameters["captions"] == {"en": 24, "zh": 12}
    assert record.parameters["data_sha256"] == open_dataset(table).sha256
    assert record.subject["space"] == tiny.bundle.space
    engine = tiny.bundle.manifest.engines
    assert record.subject["engines"]["int8"]["image_sha256"] in {
        found.sha256 for tower in engine.values() for found in tower.values()
    }
    found = record.results["engines"]["int8"]["en"]["text_to_image"]
    assert len(found["first_ranks"]["samples"]) == found["queries"] == 24
    assert found["r1"]["low"] <= found["r1"]["value"] <= found["r1"]["high"]
    assert found["r5"]["value"] == np.mean(np.array(found["first_ranks"]["samples"]) <= 5)
    assert set(record.results["above"]["fp32"]["int8"]) == {"pooled", "en", "zh"}
    assert f"{100 * found['r5']['value']:.1f}" in printed
    assert "P@1" not in printed
    assert not {"short_queries", "queries_sha256"} & {*record.results, *record.parameters}


def test_the_command_shows_every_length(
    make_tiny: Callable[..., Any], table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row for each length that the bundle allows, or for those asked for; another one names them."""
    bundle, file = make_tiny(dims=(4, 8, 12)).bundle.path, tmp_path / "record.json"
    _run("-b", bundle, "-d", table, "-p", "fp32", "-l", "zh", "--json", file)
    printed = capsys.readouterr().out
    for name in ("fp32 ", "fp32:8 ", "fp32:4 "):
        assert any(line.startswith(name) for line in printed.splitlines()), printed
    assert list(Record.load(file).results["engines"]) == ["fp32", "fp32:8", "fp32:4"]
    _run("-b", bundle, "-d", table, "-p", "fp32", "-l", "zh", "--dim", "4", "--dim", "12")
    printed = capsys.readouterr().out
    assert "fp32:4 " in printed
    assert "fp32:8 " not in printed
    assert "fp32:12 " not in printed
    with pytest.raises(InputError, match="4, 8 or 12"):
        _run("-b", bundle, "-d", table, "--dim", "5")
    with pytest.raises(InputError, match="--reproduce"):
        _run("-b", bundle, "-d", table, "--dim", "4", "--reproduce")


def test_records_compare_where_the_questions_are_the_same(tiny: Any, table: Path, tmp_path: Path) -> None:
    """Two engines' records stand side by side; those of other captions do not."""
    files = [tmp_path / f"{name}.json" for name in ("one", "two", "other")]
    for file, options in zip(files, (("-p", "fp32"), ("-p", "fp32"), ("-p", "fp32", "--limit", "5")), strict=True):
        _run("-b", tiny.bundle.path, "-d", table, *options, "--json", file)
    one, two, other = map(Record.load, files)
    assert all(figure.a == figure.b for figure in compare(one, two))
    with pytest.raises(InputError, match=r"parameters\.images"):
        compare(one, other)


def test_one_precision_has_nothing_to_be_compared_with(
    tiny: Any, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also `auto` may be asked for; it says what it took. A precision that comes twice is measured once."""
    _run("-b", tiny.bundle.path, "-d", table, "-p", "auto,auto", "-p", "auto", "-l", "zh")
    printed = capsys.readouterr().out
    assert "threads:" in printed  # of the runtime that it took
    assert "above" not in printed
    assert len([line for line in printed.splitlines() if line.startswith("auto ")]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-p", "fp32,int4"], "int4"),
        (["-p", "fp16"], "fp16"),
        (["-l", "de"], "'de'"),
        (["-l", "und"], "language"),
        (["--limit", "0"], "limit"),
        (["--provider", "tpu"], "tpu"),
        (["--split", "test"], "'test'"),
        (["--images", "nowhere"], "nowhere"),
        (["--json", "nowhere/record.json"], "nowhere/record.json"),
        (["--bundle", "nowhere"], "bundle.json"),
    ],
)
def test_what_cannot_be_measured_is_told(tiny: Any, table: Path, options: list[str], message: str) -> None:
    """Before anything is measured."""
    with pytest.raises(TwinspireError, match=message):
        _run("-b", tiny.bundle.path, "-d", table, *options)


@pytest.mark.slow
def test_the_sample_finds_heldout_scenes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Without a bundle the sample is measured, in both of its languages; int8 on the same images as fp32."""
    _run("--data", "scenes:150", "--json", tmp_path / "record.json")
    found = Record.load(tmp_path / "record.json").results["engines"]
    for engine in ("fp32", "int8"):
        for language in ("en", "zh"):
            for direction in (Direction.TEXT_TO_IMAGE, Direction.IMAGE_TO_TEXT):
                assert found[engine][language][direction]["r1"]["value"] > 0.9


def test_photographs_are_measured() -> None:
    """Photographs of COCO with all their captions; the sample knows nothing of them, which chance tells."""
    data = open_dataset(PHOTO_CAPTIONS)
    with Client.local(sample_bundle(), precision="fp32", provider="cpu") as client:
        report: RecallReport = measure_recall({"fp32": client}, data)
    ranking = report.rankings["fp32"]["und"][Direction.IMAGE_TO_TEXT]
    assert len(ranking) == len(data)
    assert report.figures["fp32"]["und"][Direction.TEXT_TO_IMAGE][R1].value < (0.2 if len(data) > 50 else 0.5)


def test_short_results_leave_the_ranks_out(clients: dict[str, Client]) -> None:
    """For certificates, that keep figures alone."""
    report = measure_recall(clients, _captioned(5))
    assert "samples" in json.dumps(Record(kind="recall", parameters={}, results=report.results()).to_json())
    short = report.results(with_ranks=False)
    assert "samples" not in json.dumps(short)
    assert short["engines"]["fp32"]["en"]["text_to_image"]["queries"] == 5
