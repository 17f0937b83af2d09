"""CLIP_benchmark and MTEB themselves over a bundle's engines: their figures are those of `bench recall`.

Run with `make test-harness`, in an environment of its own.
"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.data import PHOTO_CAPTIONS
from twinspire import Client, sample_bundle
from twinspire.errors import InputError
from twinspire_eval.datasets import CaptionedImages, open_dataset
from twinspire_eval.recall import Direction
from twinspire_eval.recall.benchmark import RecallReport, measure_recall

pytestmark = [
    pytest.mark.harness_packages,
    pytest.mark.filterwarnings("default"),  # of the harnesses' own dependencies
]
PRECISIONS = ("fp32", "int8")


@pytest.fixture(scope="module")
def photographs() -> CaptionedImages:
    """Photographs with five captions each, of which the sample finds few: a recall of 0 or 1 would hide differences."""
    return open_dataset(PHOTO_CAPTIONS)


@pytest.fixture(scope="module")
def pairs(photographs: CaptionedImages) -> CaptionedImages:
    """The photographs with their first captions alone: MTEB's recall is R@k of one caption an image only."""
    return replace(photographs, captions=tuple(captions[:1] for captions in photographs.captions))


def measured(data: CaptionedImages) -> RecallReport:
    """What `bench recall` measures."""
    with (
        Client.local(sample_bundle(), precision="fp32", provider="cpu") as fp32,
        Client.local(sample_bundle(), precision="int8", provider="cpu") as int8,
    ):
        return measure_recall({"fp32": fp32, "int8": int8}, data)


@pytest.fixture(scope="module")
def report(photographs: CaptionedImages) -> RecallReport:
    """The recall of all captions."""
    return measured(photographs)


@pytest.fixture(scope="module")
def pairs_report(pairs: CaptionedImages) -> RecallReport:
    """The recall of the first captions."""
    return measured(pairs)


def content(data: CaptionedImages, place: int) -> bytes:
    """The file of one image."""
    image = data.images[place]
    return image if isinstance(image, bytes) else Path(str(image)).read_bytes()


def picture(data: CaptionedImages, place: int) -> Image.Image:
    """One image."""
    with Image.open(io.BytesIO(content(data, place))) as opened:
        return opened.convert("RGB")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_clip_benchmark_measures_the_same_recall(
    photographs: CaptionedImages, report: RecallReport, precision: str
) -> None:
    """CLIP_benchmark's zero-shot retrieval gives the R@1, R@5 and R@10 of `bench recall` to 1e-6."""
    from clip_benchmark.metrics import zeroshot_retrieval
    from torch.utils.data import DataLoader

    from twinspire_bench.harnesses.clip_benchmark import load_twinspire

    model, transform, tokenizer = load_twinspire(precision=precision, provider="cpu")
    rows = [
        (transform(picture(photographs, place)), [said.text for said in captions])
        for place, captions in enumerate(photographs.captions)
    ]

    def collate(batch: Any) -> Any:
        import torch

        return torch.stack([image for image, _ in batch]), [texts for _, texts in batch]

    found = zeroshot_retrieval.evaluate(
        model,
        DataLoader(rows, batch_size=32, collate_fn=collate),  # type: ignore[arg-type]
        tokenizer,
        "cpu",
        amp=False,
        recall_k_list=[1, 5, 10],
    )
    both = report.figures[precision]["und"]
    for k in (1, 5, 10):
        assert found[f"image_retrieval_recall@{k}"] == pytest.approx(
            both[Direction.TEXT_TO_IMAGE][f"r{k}"].value, abs=1e-6
        )
        assert found[f"text_retrieval_recall@{k}"] == pytest.approx(
            both[Direction.IMAGE_TO_TEXT][f"r{k}"].value, abs=1e-6
        )


def test_clip_benchmark_loads_a_bundle_by_its_model_type() -> None:
    """After `register`, CLIP_benchmark's `load_clip` opens a bundle, and `pretrained` chooses the precision."""
    from clip_benchmark import models

    from twinspire_bench.harnesses.clip_benchmark import TwinspireModel, register

    register()
    path = str(sample_bundle())
    model, _, tokenizer = models.load_clip("twinspire", path, pretrained="int8", cache_dir="", device="cpu")
    assert isinstance(model, TwinspireModel)
    found = model.encode_text(tokenizer(["a red circle", "two"])).numpy()
    with Client.local(sample_bundle(), precision="int8") as client:
        assert np.allclose(found, client.encode_texts(["a red circle", "two"]), atol=1e-6)


def test_clip_benchmark_classifies() -> None:
    """CLIP_benchmark's zero-shot accuracy on scenes is that of NumPy over the client's vectors."""
    from clip_benchmark.metrics import zeroshot_classification
    from torch.utils.data import DataLoader

    from twinspire_bench.harnesses.clip_benchmark import load_twinspire

    model, transform, tokenizer = load_twinspire(provider="cpu")
    names = ["red circle", "blue square", "green triangle"]
    data = open_dataset("scenes:40:3")
    pictures = [picture(data, place) for place in range(len(data))]
    targets = [place % len(names) for place in range(len(pictures))]

    class Labelled(list[Any]):
        classes = names

    rows = Labelled((transform(image), target) for image, target in zip(pictures, targets, strict=True))
    loader: Any = DataLoader(rows, batch_size=16)  # type: ignore[arg-type]
    templates = ["a {c}", "a picture of a {c}"]
    found = zeroshot_classification.evaluate(model, loader, tokenizer, names, templates, "cpu", amp=False)
    client = model.client
    classes = np.stack([client.encode_texts([t.format(c=name) for t in templates]).mean(axis=0) for name in names])
    classes /= np.linalg.norm(classes, axis=1, keepdims=True)
    guesses = (client.encode_images(pictures) @ classes.T).argmax(axis=1)
    assert found["acc1"] == pytest.approx(float((guesses == targets).mean()), abs=1e-6)


def task_of(data: CaptionedImages, *, queries: str) -> Any:
    """An MTEB retrieval task over local data: captions that find images, or images that find captions."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    images = Dataset.from_dict(
        {
            "id": [f"i{place}" for place in range(len(data))],
            "image": [{"bytes": content(data, place), "path": None} for place in range(len(data))],
        },
        features=Features({"id": Value("string"), "image": ImageFeature()}),
    )
    captions = data.captions_in(data.languages[0])
    texts = Dataset.from_dict({"id": [f"t{place}" for place in range(len(captions.texts))], "text": captions.texts})
    to_image = queries == "text"
    relevant: dict[str, dict[str, int]] = {}
    for place, owner in enumerate(captions.owners):
        query, item = (f"t{place}", f"i{owner}") if to_image else (f"i{owner}", f"t{place}")
        relevant.setdefault(query, {})[item] = 1

    class Captions(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="CaptionsT2I" if to_image else "CaptionsI2T",
            description="Captioned images",
            reference=None,
            type="Any2AnyRetrieval",
            category="t2i" if to_image else "i2t",
            modalities=["text", "image"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="recall_at_1",
            dataset={"path": "local/captions", "revision": "1"},
            date=None,
            domains=None,
            task_subtypes=None,
            license=None,
            annotations_creators=None,
            dialect=None,
            sample_creation=None,
            bibtex_citation=None,
        )
        k_values = (1, 5, 10)

        def load_data(self, *_: Any, **__: Any) -> None:
            parts = {"queries": texts, "corpus": images} if to_image else {"queries": images, "corpus": texts}
            self.dataset = {"default": {"test": {**parts, "relevant_docs": relevant, "top_ranked": None}}}  # type: ignore[typeddict-item]
            self.data_loaded = True

    return Captions()


@pytest.mark.parametrize("kind", ["encoder", "search"])
@pytest.mark.parametrize(
    ("queries", "direction"), [("text", Direction.TEXT_TO_IMAGE), ("image", Direction.IMAGE_TO_TEXT)]
)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_mteb_measures_the_same_recall(
    pairs: CaptionedImages,
    pairs_report: RecallReport,
    kind: str,
    queries: str,
    direction: Direction,
    precision: str,
    tmp_path: Path,
) -> None:
    """MTEB's recall over the encoder, and over an exact index, is that of `bench recall` to 1e-6."""
    import mteb

    from twinspire_bench.harnesses.mteb import TwinspireEncoder, TwinspireSearch

    model: Any = (
        TwinspireEncoder(None, precision, provider="cpu")
        if kind == "encoder"
        else TwinspireSearch(None, precision, folder=tmp_path, provider="cpu")
    )
    protocol = mteb.models.EncoderProtocol if kind == "encoder" else mteb.models.SearchProtocol
    assert isinstance(model, protocol)
    result = mteb.evaluate(model, task_of(pairs, queries=queries), cache=None, encode_kwargs={"batch_size": 32})
    scores = result.task_results[0].scores["test"][0]
    for k in (1, 5, 10):
        expected = pairs_report.figures[precision]["und"][direction][f"r{k}"].value
        assert scores[f"recall_at_{k}"] == pytest.approx(round(expected, 5), abs=1e-6), k  # MTEB writes five decimals


def test_mteb_scores_the_index_too(tmp_path: Path) -> None:
    """An index that looks at one of many lists finds less than the exact one, and its name says which it is."""
    import mteb

    from twinspire_bench.harnesses.mteb import TwinspireSearch

    task = task_of(open_dataset("scenes:120:7"), queries="text")
    found = {}
    for spec, effort in (("flat", None), ("ivf", 1)):
        model = TwinspireSearch(None, "fp32", spec=spec, effort=effort, folder=tmp_path, provider="cpu")
        assert str(model.mteb_model_meta.revision).endswith(f"-{spec}")
        result = mteb.evaluate(model, task, cache=None, encode_kwargs={"batch_size": 32})
        found[spec] = result.task_results[0].scores["test"][0]["recall_at_10"]
    assert found["flat"] > 0.99
    assert found["ivf"] < found["flat"] - 0.01


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    """Two precisions, a batch of sounds and a reranking task raise InputError."""
    from twinspire_bench.harnesses.clip_benchmark import load_twinspire
    from twinspire_bench.harnesses.mteb import TwinspireEncoder, TwinspireSearch

    with pytest.raises(InputError, match="int8"):
        load_twinspire(None, "fp32", precision="int8")
    with pytest.raises(InputError, match="audio"):
        TwinspireEncoder(provider="cpu").encode([{"audio": [1]}])
    with pytest.raises(InputError, match="rerank"):
        TwinspireSearch(folder=tmp_path, provider="cpu").search([], top_k=1, top_ranked={})
    with pytest.raises(InputError, match="index"):
        TwinspireSearch(folder=tmp_path, provider="cpu").search([], top_k=1)
