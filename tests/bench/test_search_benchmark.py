"""`twinspire bench search` at a small size."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from support.arrays import noise_images
from twinspire import Bundle, Client, sample_bundle
from twinspire.bundle import BundleWriter, Precision, Reranker
from twinspire.cli import main
from twinspire_bench.search.codes import CodeResult, SkippedCode, measure_codes, recall_at_k
from twinspire_bench.search.copies import CopyChange, write_copies
from twinspire_bench.search.duplicates import measure_duplicates
from twinspire_bench.search.inputs import QueryKind, named_scenes, scene_queries
from twinspire_bench.search.measure import encode_scenes
from twinspire_bench.search.perceptual_hash import hash_of
from twinspire_bench.search.reranking import measure_reranking, share_told_apart
from twinspire_eval.recall import pair_accuracy
from twinspire_eval.records import Record


def _quiet(*_: object) -> None:
    """Take progress and show none."""


@pytest.fixture(scope="module")
def reranking_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The sample with a reranker whose probability grows with the brightness of the image, in place of its own."""
    base = Bundle.open(sample_bundle())
    draft = base.manifest.draft()
    size, context = draft.towers.image.settings.height, draft.towers.text.settings.context_length  # type: ignore[union-attr]
    nodes = [
        helper.make_node("Cast", ["image"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["real", "scale"], ["unit"]),
        helper.make_node("ReduceMean", ["unit", "pixels"], ["bright"], keepdims=0),
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["ids", "tokens"], ["said"], keepdims=0),
        helper.make_node("Mul", ["said", "none"], ["nothing"]),
        helper.make_node("Add", ["bright", "nothing"], ["flat"]),
        helper.make_node("Unsqueeze", ["flat", "tokens"], ["probability"]),
    ]
    constants = {
        "scale": np.float32(255),
        "pixels": np.array([1, 2, 3], np.int64),
        "tokens": np.array([1], np.int64),
        "none": np.float32(0),
    }
    graph = helper.make_graph(
        nodes,
        "reranker",
        [
            helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", size, size, 3]),
            helper.make_tensor_value_info("input_ids", TensorProto.INT32, ["batch", context]),
        ],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    reranker = Reranker.of_contract(
        base.image, base.text, {Precision.FP32: "pairs.fp32.onnx", Precision.INT8: "pairs.fp32.onnx"}
    )
    with BundleWriter(tmp_path_factory.mktemp("reranking") / "scenes", base=base) as writer:
        writer.path("pairs.fp32.onnx").write_bytes(model.SerializeToString())
        return writer.commit(replace(draft, rerankers={"pairs": reranker}), {})


def test_queries_say_names_that_their_images_have() -> None:
    """A named query has the name that stands in its image's caption or file name; none is a caption."""
    scenes = named_scenes(40, seed=3)
    queries = [query for query in scene_queries(scenes, seed=3) if query.kind is not QueryKind.SHORT]
    assert len(queries) == 160
    for query in queries:
        (image,) = query.right
        scene = scenes[image]
        name = scene.names[query.language]
        assert (name in query.text) is (query.kind is QueryKind.NAMED)
        assert name in scene.caption + scene.file_name
        assert query.text not in scene.caption.split("\n")
    assert scenes == named_scenes(40, seed=3)


def test_sampled_images_have_the_same_queries() -> None:
    """A limit leaves out the other images' queries, changes no words, and keeps all short queries."""
    scenes = named_scenes(40, seed=3)
    every, some = scene_queries(scenes, seed=3), scene_queries(scenes, seed=3, images=9)
    kept = {query.right for query in some if query.kind is QueryKind.NAMED}
    assert len(kept) == 9
    assert some == [query for query in every if query.kind is QueryKind.SHORT or query.right in kept]


def test_codes_find_what_exact_search_finds(reranking_bundle: Bundle) -> None:
    """Ranks of exact search are NumPy's at each length; a code that does not suit the number of items says so."""
    scenes = named_scenes(1_000, seed=3)
    queries = scene_queries(scenes, seed=3, images=40)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(1_000, 128)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with Client.local(reranking_bundle) as client:
        found = list(measure_codes(client, vectors, queries))
        (*_, skipped) = [code for code in measure_codes(client, vectors[:999], queries[:1]) if code.spec == "binary"]
        texts = client.encode_texts([query.text for query in queries])
    assert isinstance(skipped, SkippedCode)
    assert "1000" in skipped.reason
    assert [(code.dim, code.spec) for code in found] == [
        (dim, spec) for dim in (128, 64, 32) for spec in ("flat", "binary", f"ivf,pq{dim // 4}x4")
    ]
    for code in found:
        assert isinstance(code, CodeResult)
        if code.spec != "flat":
            assert 0.5 < code.recall <= 1
            continue
        assert code.recall == 1
        assert code.vector_bytes == 4 * code.dim
        unit = vectors[:, : code.dim] / np.linalg.norm(vectors[:, : code.dim], axis=1, keepdims=True)
        best = np.argsort(-(texts[:, : code.dim] @ unit.T), axis=1)[:, :10]
        for (kind, language), ranking in code.groups.items():
            expected = [
                next((rank for rank, image in enumerate(order, 1) if image in query.right), 1_000)
                for order, query in zip(best.tolist(), queries, strict=True)
                if (query.kind, query.language) == (kind, language)
            ]
            moved = np.count_nonzero(ranking.first_ranks != expected)  # near-equal neighbours may exchange places
            assert moved <= 0.02 * len(expected)


@given(seed=st.integers(0, 1_000), items=st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_recall_of_codes_is_the_share_of_the_best_ten(seed: int, items: int) -> None:
    """Against sets: of the ten best, or of all where there are fewer, those that are among the hits."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(items, 5)).astype(np.float32)
    found = [rng.permutation(items)[: rng.integers(0, 11)].tolist() for _ in range(5)]
    best = [set(np.argsort(-scores[:, query])[:10].tolist()) for query in range(5)]
    expected = np.mean([len(own & set(ids)) / len(own) for own, ids in zip(best, found, strict=True)])
    assert recall_at_k(found, scores) == pytest.approx(expected)


def test_hits_are_reranked(reranking_bundle: Bundle) -> None:
    """The first 20 hits are in the order of the reranker's probabilities, the others behind them as they were."""
    scenes = named_scenes(30, seed=3)
    queries = scene_queries(scenes, seed=3)
    with Client.local(reranking_bundle) as client:
        images = encode_scenes(client, scenes, _quiet)
        found = measure_reranking(client, scenes, images, queries, seed=1, on_progress=_quiet)
        assert found is not None
        bright = client.preprocess([named.scene.draw() for named in scenes]).mean(axis=(1, 2, 3))
        for group, ranking in found.reranked.items():
            asked = [query for query in queries if (query.kind, query.language) == group]
            scores = client.encode_texts([query.text for query in asked]) @ images.T
            moved = 0
            for query, row, rank, before in zip(
                asked, scores, ranking.first_ranks, found.towers[group].first_ranks, strict=True
            ):
                order = np.argsort(-row)
                head = order[:20][np.argsort(-bright[order[:20]])]
                places = [
                    next(r for r, i in enumerate(o, 1) if i in query.right) for o in (order, [*head, *order[20:]])
                ]
                moved += places != [before, rank]
            assert moved <= 0.1 * len(asked)  # JPEG changes the brightness by a thousandth
    assert len(found.candidates_ms) == sum(map(len, found.towers.values()))
    # A reranker that never reads the text tells no pair apart.
    assert {share.value for share in found.pairs_by_reranker.values()} == {0}
    assert all(share.value > 0.5 for share in found.pairs_by_towers.values())


def test_pairs_are_told_apart_as_winoground_counts() -> None:
    """The share is that of `pair_accuracy` by caption."""
    rng = np.random.default_rng(2)
    images, texts = (rng.normal(size=(80, 4)).astype(np.float32) for _ in range(2))
    scores = np.einsum("pid,pjd->pij", texts.reshape(-1, 2, 4), images.reshape(-1, 2, 4))
    found = share_told_apart(scores)
    assert found.value == pair_accuracy(images, texts)[0]
    assert found.interval.low <= found.value <= found.interval.high


@pytest.mark.slow
def test_the_record_has_every_search_and_filter(
    reranking_bundle: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Tables and the record come; names are found by keyword, filters find what NumPy does, hits are reranked."""
    options = ["-n", "24", "--filter-items", "2000", "--copies", "0", "--json", str(tmp_path / "r.json")]
    with pytest.raises(SystemExit) as ended:
        main(["bench", "search", "-b", str(reranking_bundle.path), *options])
    sys.stdout.flush()
    assert ended.value.code == 0
    printed = capfd.readouterr().out
    assert "hybrid" in printed
    assert "no reranker" not in printed
    results = Record.load(tmp_path / "r.json").results
    named = {name: found["named"]["en"]["recall"]["r1"]["value"] for name, found in results["searches"].items()}
    assert named["keyword"] > 0.9
    assert all(row["exact"] == 1 for row in results["filters_by_share_kept"].values())
    assert results["filters_by_share_kept"]["0.001"]["kept"] == 2
    short = results["searches"]["vector"]["short"]["zh"]["precision"]["p1"]["value"]
    assert short == results["codes"]["flat, 128 numbers"]["short"]["zh"]["precision"]["p1"]["value"]
    assert f"{100 * short:.1f}" in printed
    assert results["codes"]["binary, 32 numbers"]["recall"] is None
    assert results["reranking"]["candidates_ms"]["p50"] > 0
    assert set(results["reranking"]["swap_pairs_told_apart"]["reranker"]) == {"en", "zh"}


def test_a_bundle_without_reranker_is_told(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A line says that reranking was not measured, and the record has null."""
    base = Bundle.open(sample_bundle())
    with BundleWriter(tmp_path / "scenes", base=base) as writer:
        bundle = writer.commit(replace(base.manifest.draft(), rerankers={}), {})
    options = ["-n", "8", "--filter-items", "0", "--copies", "0", "--json", str(tmp_path / "r.json")]
    with pytest.raises(SystemExit):
        main(["bench", "search", "-b", str(bundle.path), *options])
    sys.stdout.flush()
    assert "no reranker" in capfd.readouterr().out
    assert Record.load(tmp_path / "r.json").results["reranking"] is None


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
