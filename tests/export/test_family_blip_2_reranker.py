"""BLIP-2's matching head as the bundle's reranker: probabilities of pairs, as transformers computes them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="the export needs torch")

import onnx
import torch
from onnx import numpy_helper
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer, Blip2ForImageTextRetrieval, BlipImageProcessor

from support.blip_2 import CONTEXT, QUERIES, SIZE, save_blip_2
from support.commands import run_twinspire
from support.families import coco_captions, photographs_and_odd_images
from twinspire import Client
from twinspire.bundle import Bundle, Precision, Reranker, Tower
from twinspire.errors import BundleError, CheckpointError, EngineError
from twinspire_export import export_checkpoint, quantize
from twinspire_export.calibration import image_samples, text_samples
from twinspire_export.checkpoint import open_checkpoint
from twinspire_export.pairs import pair_samples
from twinspire_export.precision.recipes import dynamic_engines
from twinspire_export.quantize import MAX_DIFFERENCE, quantize_bundle, write_engine
from twinspire_export.reranker import RERANKER_FILE
from twinspire_export.rewrite import apply_rewrites

TOLERANCE = 1e-5
TEXTS = ["a cat", "", "two boats on the sea at night, and a man with a red umbrella beside a green tree", "word " * 100]


@pytest.fixture(scope="module")
def blip_2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save the checkpoint once."""
    return with_decided_head(save_blip_2(tmp_path_factory.mktemp("checkpoints") / "tiny-blip2"))


@pytest.fixture(scope="module")
def bundle(blip_2: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Export it once."""
    return Bundle.open(export_checkpoint(blip_2, tmp_path_factory.mktemp("bundles") / "blip2").path)


@pytest.fixture
def client(bundle: Bundle) -> Iterator[Client]:
    """Open the bundle's fp32 engines."""
    with Client.local(bundle, precision=Precision.FP32, provider="cpu", threads=1) as opened:
        yield opened


def with_decided_head(folder: Path) -> Path:
    """Enlarge the weights of the head, so that probabilities are not all one half."""
    tensors = load_file(folder / "model.safetensors")
    tensors["itm_head.weight"] = tensors["itm_head.weight"] * 3
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def reference(folder: Path, images: list[Image.Image], texts: list[str]) -> NDArray[np.float32]:
    """Return transformers' probability of each pair, (N,), with texts padded to the longest as its tokenizer does."""
    model: Any = Blip2ForImageTextRetrieval.from_pretrained(folder).eval()
    tokens = BertTokenizer(str(folder / "vocab.txt"))(
        texts, padding=True, truncation=True, max_length=CONTEXT, return_tensors="pt"
    )
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    if model.config.image_token_index is not None:  # what `Blip2Processor` puts before a text
        ids = torch.nn.functional.pad(ids, (QUERIES, 0), value=model.config.image_token_index)
        mask = torch.nn.functional.pad(mask, (QUERIES, 0), value=1)
    pixels = BlipImageProcessor.from_pretrained(folder)(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        output = model(pixel_values=pixels, input_ids=ids, attention_mask=mask, use_image_text_matching_head=True)
    found: NDArray[np.float32] = output.logits_per_image.softmax(dim=1)[:, 1].numpy()
    return found


def all_pairs(images: int) -> tuple[list[Image.Image], list[str]]:
    """Return each of some photographs with each of the texts, one text after the other."""
    photographs = photographs_and_odd_images()[:images]
    return photographs * len(TEXTS), [text for text in TEXTS for _ in photographs]


@pytest.mark.parametrize("count", [1, 12, 20])
def test_probabilities_are_those_of_transformers(blip_2: Path, client: Client, count: int) -> None:
    """Each of several images with each of several texts, of different lengths, in batches of one and of many."""
    images, texts = (given[:count] for given in all_pairs(3 if count <= 12 else 5))
    expected = reference(blip_2, images, texts)
    found = client.score_pairs(images, texts)
    print(f"largest difference {np.abs(found - expected).max():.1e}")
    assert np.abs(found - expected).max() <= TOLERANCE


def test_an_image_token_changes_nothing(tmp_path: Path) -> None:
    """Where transformers' processor puts tokens for the image before a text, pairs get transformers' probabilities."""
    folder = with_decided_head(save_blip_2(tmp_path / "with-token", image_token=True))
    images, texts = all_pairs(3)
    made = export_checkpoint(folder, tmp_path / "bundle")
    with Client.local(made, precision=Precision.FP32, provider="cpu", threads=1) as client:
        found = client.score_pairs(images, texts)
    assert np.abs(found - reference(folder, images, texts)).max() <= TOLERANCE


def test_probabilities_differ(client: Client) -> None:
    """Images and texts both change the probability by far more than the tolerance: the tests would see a wrong one."""
    images, texts = all_pairs(3)
    scores = client.score_pairs(images, texts).reshape(len(TEXTS), 3)  # a row for each text
    assert np.ptp(scores, axis=0).min() > 100 * TOLERANCE
    assert np.ptp(scores, axis=1).min() > 100 * TOLERANCE


def test_the_manifest_names_it(bundle: Bundle) -> None:
    """The reranker `itm` has an fp32 engine, one of the bundle's files, and the tensors of the contract."""
    expected = Reranker.of_contract(bundle.image, bundle.text, {Precision.FP32: RERANKER_FILE})
    assert bundle.manifest.rerankers == {"itm": expected}
    assert bundle.manifest.reranker() == ("itm", expected)
    assert RERANKER_FILE in bundle.manifest.files
    assert [spec.shape for spec in expected.inputs] == [(SIZE, SIZE, 3), (CONTEXT,)]


def test_its_engine_holds_no_weights_of_the_contrast(bundle: Bundle, blip_2: Path) -> None:
    """The projections and the last layer's MLP of texts, which it does not read, are left out of the file."""
    tensors = load_file(blip_2 / "model.safetensors")
    layer = "qformer.encoder.layer.2."
    absent = ["vision_projection.", "text_projection.", f"{layer}intermediate.", f"{layer}output."]
    unread = [name for name in tensors if name.startswith(tuple(absent))]
    assert len(unread) == 2 + 2 + 2 + 4
    model = onnx.load(bundle.path / RERANKER_FILE)
    weights = sum(np.prod(tensor.dims, dtype=int) for tensor in model.graph.initializer)
    read = sum(tensor.numel() for name, tensor in tensors.items() if name not in unread)
    assert abs(weights - read) < 100


def test_every_rewrite_is_lossless(blip_2: Path) -> None:
    """With the family's rewrites the module gives what it gave without."""
    opened = open_checkpoint(blip_2)
    images = np.stack([np.asarray(image.resize((SIZE, SIZE))) for image in photographs_and_odd_images()[:6]])
    ids = torch.randint(5, 100, (6, 9), dtype=torch.int32)
    ids[2, 4:] = 0
    with torch.inference_mode():
        expected = opened.reranker()(torch.from_numpy(images), ids)
        rewritten = apply_rewrites(opened.reranker(), opened.family.rewrites)
        assert rewritten.state_dict().keys() != opened.reranker().state_dict().keys()
        assert (rewritten(torch.from_numpy(images), ids) - expected).abs().max() <= 1e-6


def quantized(bundle: Bundle, destination: Path, precision: Precision, **options: Any) -> Bundle:
    """Quantize on photographs and captions."""
    samples = {"images": photographs_and_odd_images(), "captions": coco_captions(24)}
    return quantize_bundle(bundle, destination, precision=precision, **samples, **options)


def test_without_a_further_engine_it_is_kept(
    bundle: Bundle, tmp_path: Path, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    """`quantize --no-reranker` keeps the same fp32 file, and a client of fp16 towers the same probabilities."""
    made = tmp_path / "fp16"
    done = run_twinspire(capsys, "quantize", bundle.path, "-o", made, "--precision", "fp16", "--no-reranker")
    assert done.status == 0
    assert Bundle.open(made).manifest.rerankers == bundle.manifest.rerankers
    assert (made / RERANKER_FILE).samefile(bundle.path / RERANKER_FILE)
    images, texts = all_pairs(2)
    with Client.local(Bundle.open(made), precision=Precision.FP16, provider="cpu", threads=1) as half:
        assert np.array_equal(half.score_pairs(images, texts), client.score_pairs(images, texts))


@pytest.mark.parametrize(
    ("precision", "bound"),
    [(Precision.FP16, 0.002), pytest.param(Precision.INT8, MAX_DIFFERENCE, marks=pytest.mark.slow)],
)
def test_it_is_quantized(bundle: Bundle, tmp_path: Path, client: Client, precision: Precision, bound: float) -> None:
    """A further engine takes the same pairs, is another file, and its probabilities are near those of fp32."""
    steps: list[str] = []
    made = quantized(bundle, tmp_path / "made", precision, on_step=steps.append)
    file = f"reranker.{precision}.onnx"
    assert made.manifest.reranker()[1].engines == {Precision.FP32: RERANKER_FILE, precision: file}
    assert any(f"the {precision} reranker itm: its probabilities differ" in message for message in steps)
    images, texts = all_pairs(4)
    expected = client.score_pairs(images, texts)
    with Client.local(Bundle.open(made.path), precision=precision, provider="cpu", threads=1) as other:
        found = other.score_pairs(images, texts)
    print(f"largest difference {np.abs(found - expected).max():.1e}")
    assert 0 < np.abs(found - expected).max() <= bound
    kinds = {node.op_type for node in onnx.load(made.path / file).graph.node}
    assert ("QuantizeLinear" in kinds) == (precision is Precision.INT8)


@pytest.mark.slow
def test_layers_stay_in_float_until_it_is_near_enough(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a bound that the recipe does not reach, layers return to float until it is."""
    monkeypatch.setattr(quantize, "MAX_DIFFERENCE", 0.001)
    steps: list[str] = []
    made = quantized(bundle, tmp_path / "made", Precision.INT8, min_cosine=0.5, on_step=steps.append)
    assert any("more than 0.001: looking for layers" in message for message in steps)
    assert float(re.findall(r"([\d.]+) at most", steps[-2])[0]) <= 0.001
    assert any(node.op_type == "QuantizeLinear" for node in onnx.load(made.path / "reranker.int8.onnx").graph.node)


def test_copies_of_a_bundle_keep_it(bundle: Bundle, tmp_path: Path) -> None:
    """The baseline of `precision`, which is made of the fp32 engines alone and then of all, has the reranker."""
    made = dynamic_engines(bundle, tmp_path, on_step=lambda _: None).bundle
    assert made.precisions(Tower.IMAGE) == (Precision.FP32, Precision.INT8)
    assert made.manifest.rerankers == bundle.manifest.rerankers
    assert (made.path / RERANKER_FILE).read_bytes() == (bundle.path / RERANKER_FILE).read_bytes()


def test_a_broken_engine_is_refused(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine with other probabilities is an error that says how far they are off, and no bundle is left."""

    def write_negated(reference: Path, feeds: Any, destination: Path, **options: Any) -> Any:
        layers = write_engine(reference, feeds, destination, **options)
        if destination.name.startswith("reranker"):
            model = onnx.load(destination)
            head = next(node for node in model.graph.node if node.name == "/head/MatMul")
            weights = next(tensor for tensor in model.graph.initializer if tensor.name == head.input[1])
            weights.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weights), weights.name))
            onnx.save(model, destination)
        return layers

    monkeypatch.setattr(quantize, "write_engine", write_negated)
    with pytest.raises(EngineError, match=r"fp16 reranker itm is not usable.*--no-reranker"):
        quantized(bundle, tmp_path / "made", Precision.FP16)
    assert not list(tmp_path.iterdir())


def test_calibration_pairs_match_and_do_not(bundle: Bundle) -> None:
    """Every other image has its own text and the others the next one's, padded to the context."""
    images = image_samples(
        bundle, np.arange(25, dtype=np.uint8)[:, None, None, None] + np.zeros((SIZE, SIZE, 3), np.uint8)
    )
    texts = text_samples(bundle, [f"a cat {'a ' * row}" for row in range(25)])
    pairs = pair_samples(images, texts, bundle.text)
    assert (len(pairs.calibration), len(pairs.measurement), pairs.held_out) == (20, 5, True)
    assert pairs.measurement[0]["input_ids"].shape == (1, CONTEXT)
    found = [(int(pair["image"].max()), int(np.count_nonzero(pair["input_ids"])) - 4) for pair in pairs.measurement]
    assert found == [(0, 0), (5, 10), (10, 10), (15, 20), (20, 20)]


def test_commands_name_it(bundle: Bundle, blip_2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`export` lists the reranker's engine, `--no-reranker` leaves it out, and `doctor` names it."""
    done = run_twinspire(capsys, "export", blip_2, "-o", tmp_path / "whole")
    assert "itm   fp32" in done.out
    assert (tmp_path / "whole" / RERANKER_FILE).is_file()
    done = run_twinspire(capsys, "export", blip_2, "-o", tmp_path / "towers", "--no-reranker")
    assert done.status == 0
    assert "itm" not in done.out
    plain = Bundle.open(tmp_path / "towers")
    assert plain.manifest.rerankers is None
    assert not (plain.path / RERANKER_FILE).exists()
    assert plain.space == bundle.space
    report = run_twinspire(capsys, "doctor", "--json", "--bundle", tmp_path / "whole").document
    assert report["bundle"]["rerankers"] == {"itm": ["fp32"]}
    assert "itm, fp32" in run_twinspire(capsys, "doctor", "--bundle", tmp_path / "whole").out


# ------------------------------------------------------------------------------------------- the head's weights


@pytest.fixture
def copy(blip_2: Path, tmp_path: Path) -> Path:
    """Give a copy of the checkpoint, which the test may damage."""
    return Path(shutil.copytree(blip_2, tmp_path / "tiny-blip2"))


def change_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace or, where None, remove tensors of the head."""
    tensors = load_file(folder / "model.safetensors")
    for name, value in changes.items():
        del tensors[f"itm_head.{name}"]
        if value is not None:
            tensors[f"itm_head.{name}"] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_without_a_head_there_is_no_reranker(copy: Path, tmp_path: Path) -> None:
    """A checkpoint without the head's weights is exported with its towers alone; scoring pairs says what is missing."""
    change_tensors(copy, weight=None, bias=None)
    made = export_checkpoint(copy, tmp_path / "bundle")
    assert made.manifest.rerankers is None
    assert not (made.path / RERANKER_FILE).exists()
    assert list(made.towers) == [Tower.IMAGE, Tower.TEXT]
    with (
        Client.local(made, precision=Precision.FP32, provider="cpu", threads=1) as client,
        pytest.raises(BundleError, match="no reranker"),
    ):
        client.score_pairs(photographs_and_odd_images()[:1], ["a cat"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bias": None}, r"missing 1 tensor: itm_head\.bias"),
        ({"weight": None}, r"missing 1 tensor: itm_head\.weight"),
        ({"weight": torch.zeros(3, 32)}, r"itm_head\.weight \(stored \(3, 32\)"),
        ({"bias": torch.full((2,), float("nan"))}, "the reranker gives nan in torch itself.*--no-reranker"),
    ],
)
def test_a_damaged_head_is_refused(
    copy: Path, tmp_path: Path, changes: dict[str, torch.Tensor | None], words: str
) -> None:
    """Half of the head, one of another shape or one that is not finite is an error that names it, and no bundle."""
    change_tensors(copy, **changes)
    with pytest.raises(CheckpointError, match=words):
        export_checkpoint(copy, tmp_path / "bundle")
    assert sorted(tmp_path.iterdir()) == [copy]
