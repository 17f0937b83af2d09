"""CLIP_benchmark and MTEB themselves over a bundle's engines: their figures are those of `bench recall`.

Run with `make test-harness`, in an environment of its own.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twinspire import Client, sample_bundle
from twinspire.errors import InputError
from twinspire_eval.datasets import CaptionedImages, open_dataset
from twinspire_eval.recall import Direction
from twinspire_eval.recall.benchmark import RecallReport, measure_recall

pytestmark = [
    pytest.mark.harness_packages,
    pytest.mark.filterwarnings("default"),  # of the harnesses' own dependencies
]
COUNT = 120
PRECISIONS = ("fp32", "int8")


@pytest.fixture(scope="module")
def scenes() -> CaptionedImages:
    """Generated scenes."""
    return open_dataset(f"scenes:{COUNT}:7")


@pytest.fixture(scope="module")
def report(scenes: CaptionedImages) -> RecallReport:
    """What `bench recall` measures on them."""
    with (
        Client.local(sample_bundle(), precision="fp32", provider="cpu") as fp32,
        Client.local(sample_bundle(), precision="int8", provider="cpu") as int8,
    ):
        return measure_recall({"fp32": fp32, "int8": int8}, scenes)


def picture(scenes: CaptionedImages, place: int) -> Image.Image:
    """One scene."""
    return Image.open(io.BytesIO(scenes.images[place])).convert("RGB")  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_clip_benchmark_measures_the_same_recall(
    scenes: CaptionedImages, report: RecallReport, precision: str, language: str
) -> None:
    """CLIP_benchmark's zero-shot retrieval gives the R@1, R@5 and R@10 of `bench recall` to 1e-6."""
    from clip_benchmark.metrics import zeroshot_retrieval
    from torch.utils.data import DataLoader

    from twinspire_bench.harnesses.clip_benchmark import load_twinspire

    model, transform, tokenizer = load_twinspire(precision=precision, provider="cpu")
    rows = [
        (transform(picture(scenes, place)), [said.text for said in captions if said.language == language])
        for place, captions in enumerate(scenes.captions)
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
    both = report.figures[precision][language]
    for k in (1, 5, 10):
        assert found[f"image_retrieval_recall@{k}"] == pytest.approx(
            both[Direction.TEXT_TO_IMAGE][f"r{k}"].value, abs=1e-6
        )
        assert found[f"text_retrieval_recall@{k}"] == pytest.approx(
            both[Direction.IMAGE_TO_TEXT][f"r{k}"].value, abs=1e-6
        )


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


def task_of(scenes: CaptionedImages, *, queries: str) -> Any:
    """An MTEB retrieval task over local data: captions that find images, or images that find captions."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    images = Dataset.from_dict(
        {
            "id": [f"i{place}" for place in range(len(scenes))],
            "image": [{"bytes": scenes.images[place], "path": None} for place in range(len(scenes))],
        },
        features=Features({"id": Value("string"), "image": ImageFeature()}),
    )
    captions = scenes.captions_in("en")
    texts = Dataset.from_dict({"id": [f"t{place}" for place in range(len(captions.texts))], "text": captions.texts})
    to_image = queries == "text"
    relevant: dict[str, dict[str, int]] = {}
    for place, owner in enumerate(captions.owners):
        query, item = (f"t{place}", f"i{owner}") if to_image else (f"i{owner}", f"t{place}")
        relevant.setdefault(query, {})[item] = 1

    class Scenes(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="ScenesT2I" if to_image else "ScenesI2T",
            description="Generated scenes",
            reference=None,
            type="Any2AnyRetrieval",
            category="t2i" if to_image else "i2t",
            modalities=["text", "image"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="recall_at_1",
            dataset={"path": "local/scenes", "revision": "1"},
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
            data = {"queries": texts, "corpus": images} if to_image else {"queries": images, "corpus": texts}
            self.dataset = {"default": {"test": {**data, "relevant_docs": relevant, "top_ranked": None}}}  # type: ignore[typeddict-item]
            self.data_loaded = True

    return Scenes()


@pytest.mark.parametrize("kind", ["encoder", "search"])
@pytest.mark.parametrize(
    ("queries", "direction"), [("text", Direction.TEXT_TO_IMAGE), ("image", Direction.IMAGE_TO_TEXT)]
)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_mteb_measures_the_same_recall(
    scenes: CaptionedImages,
    report: RecallReport,
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
    result = mteb.evaluate(model, task_of(scenes, queries=queries), cache=None, encode_kwargs={"batch_size": 32})
    scores = result.task_results[0].scores["test"][0]
    for k in (1, 5, 10):
        expected = report.figures[precision]["en"][direction][f"r{k}"].value
        # MTEB writes five decimals.
        assert scores[f"recall_at_{k}"] == pytest.approx(expected, abs=1e-5 / 2 + 1e-6), k


def test_mteb_scores_the_index_too(scenes: CaptionedImages, report: RecallReport, tmp_path: Path) -> None:
    """An index that looks at one of many lists finds less than the exact one, and its name says which it is."""
    import mteb

    from twinspire_bench.harnesses.mteb import TwinspireSearch

    model = TwinspireSearch(None, "fp32", spec="ivf", effort=1, folder=tmp_path, provider="cpu")
    assert str(model.mteb_model_meta.revision).endswith("-ivf")
    result = mteb.evaluate(model, task_of(scenes, queries="text"), cache=None, encode_kwargs={"batch_size": 32})
    found = result.task_results[0].scores["test"][0]["recall_at_10"]
    assert found < report.figures["fp32"]["en"][Direction.TEXT_TO_IMAGE]["r10"].value - 0.01, found


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
