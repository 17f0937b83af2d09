"""A checkpoint that is intact becomes a bundle that computes what transformers computes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="the export needs torch")

import onnx
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from support.data import PHOTOS
from twinspire.bundle import Bundle, ImageSettings, Interpolation, Padding, Precision, Tower
from twinspire.contract import padded
from twinspire.errors import BundleError, CheckpointError, InputError
from twinspire.images import Preprocessor
from twinspire.text import Tokenizer
from twinspire_export import export_checkpoint, towers
from twinspire_export.checkpoint import open_checkpoint
from twinspire_export.engine_check import EngineRunner
from twinspire_export.export import checkpoint_space
from twinspire_export.families import clip
from twinspire_export.rewrite import REWRITES, passes

TEXTS = ["a cat", "two boats on the sea at night", "", "一只猫", "a red car to the left of a green tree"]
TOLERANCE = 2e-6  # of components of unit vectors; float32 sums in another order

MakeCheckpoint = Callable[..., Path]


def reference_images(checkpoint: Path, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Encode by transformers alone, in its default attention; (N, D), L2-normalised."""
    model = CLIPModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    pixels = CLIPImageProcessor.from_pretrained(checkpoint)([Image.fromarray(p) for p in pictures], return_tensors="pt")
    with torch.no_grad():
        features = model.get_image_features(**pixels)
    return (features / features.norm(dim=-1, keepdim=True)).numpy()


def reference_texts(checkpoint: Path, texts: list[str]) -> NDArray[np.float32]:
    """Encode by transformers alone, padded and cut as its own tokenizer does; (N, D), L2-normalised."""
    model = CLIPModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokens = AutoTokenizer.from_pretrained(checkpoint)(
        texts,
        padding=True,
        truncation=True,
        max_length=model.config.text_config.max_position_embeddings,
        return_tensors="pt",
    )
    with torch.no_grad():
        features = model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    return (features / features.norm(dim=-1, keepdim=True)).numpy()


def assert_same_embeddings(bundle: Bundle, checkpoint: Path) -> None:
    """Compare both fp32 engines with transformers on images and texts that are no probes."""
    size = bundle.image.size
    pictures = np.random.default_rng(5).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    measured = EngineRunner(bundle.engine(Tower.IMAGE, Precision.FP32)).embed([pictures])
    difference = np.abs(measured - reference_images(checkpoint, pictures)).max()
    assert difference <= TOLERANCE, f"images: largest difference {difference}"

    ids = Tokenizer(bundle.tokenizer_path, bundle.text).encode(TEXTS)
    measured = EngineRunner(bundle.engine(Tower.TEXT, Precision.FP32)).embed([padded(ids, bundle.text.pad_id)])
    difference = np.abs(measured - reference_texts(checkpoint, TEXTS)).max()
    assert difference <= TOLERANCE, f"texts: largest difference {difference}"


@pytest.fixture(scope="module")
def exported(make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    """Give a tiny checkpoint and the bundle made of it, to be read only."""
    folder = tmp_path_factory.mktemp("exported")
    checkpoint = make_checkpoint(folder / "tiny-clip")
    return checkpoint, export_checkpoint(checkpoint, folder / "bundle")


def test_engines_give_the_embeddings_of_transformers(exported: tuple[Path, Bundle]) -> None:
    """Both fp32 engines give what CLIPModel gives, texts of several lengths in one padded batch included."""
    checkpoint, bundle = exported
    assert_same_embeddings(Bundle.open(bundle.path), checkpoint)


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param({"dtype": "bfloat16"}, id="bfloat16"),
        pytest.param({"dtype": "float16"}, id="float16"),
        pytest.param({"hidden_act": "gelu"}, id="gelu"),
        pytest.param({"eos_id": 2}, id="legacy end token"),
        pytest.param({"max_shard_size": "50KB"}, id="sharded"),
        pytest.param({"image_size": 48, "context_length": 17}, id="other sizes"),
    ],
)
def test_variants_of_a_checkpoint(make_checkpoint: MakeCheckpoint, tmp_path: Path, variant: dict[str, object]) -> None:
    """Stored precision, activation, way of pooling, shards and sizes may be any that CLIPModel knows."""
    checkpoint = make_checkpoint(tmp_path / "variant", **variant)
    bundle = export_checkpoint(checkpoint, tmp_path / "bundle")
    assert_same_embeddings(bundle, checkpoint)


def test_manifest_carries_the_settings_over(exported: tuple[Path, Bundle]) -> None:
    """Sizes, normalisation, token ids, temperature and source stand in the manifest as in the checkpoint."""
    checkpoint, bundle = exported
    manifest = bundle.manifest
    processor, tokenizer = CLIPImageProcessor.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    assert (manifest.name, manifest.family, manifest.dim) == ("tiny-clip", "clip", 24)
    assert (manifest.image.size, manifest.image.shortest_side) == (32, 32)
    assert manifest.image.interpolation is Interpolation.BICUBIC
    assert (list(manifest.image.mean), list(manifest.image.std)) == (processor.image_mean, processor.image_std)
    assert (manifest.text.context_length, manifest.text.padding) == (32, Padding.TRIM)
    assert (manifest.text.pad_id, manifest.text.eos_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    parameter = CLIPModel.from_pretrained(checkpoint).logit_scale.item()
    assert math.isclose(manifest.logit_scale, math.exp(parameter), rel_tol=1e-6)
    assert manifest.logit_bias is None
    assert (manifest.source.checkpoint, manifest.source.revision, manifest.source.licence) == ("tiny-clip", None, None)


@pytest.mark.parametrize("resample", [Image.Resampling.NEAREST, Image.Resampling.LANCZOS, Image.Resampling.BILINEAR])
@pytest.mark.parametrize(
    "size",
    [
        pytest.param({"size": {"height": 32, "width": 32}, "do_center_crop": False}, id="stretched"),
        pytest.param({"size": {"height": 32, "width": 32}}, id="stretched, cropped to the same size"),
        pytest.param({"size": {"height": 41, "width": 41}}, id="stretched, then cropped"),
        pytest.param({"size": {"height": 25, "width": 25}}, id="stretched to less than the crop"),
        pytest.param({"size": {"shortest_edge": 36}}, id="cropped"),
    ],
)
def test_preprocessing_is_that_of_the_processor(
    checkpoint: Path, resample: Image.Resampling, size: dict[str, object]
) -> None:
    """Stretching, cropping and each interpolation give the pixels of transformers' slow processor."""
    file = checkpoint / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **size, "resample": int(resample)}))
    photographs = sorted(PHOTOS.glob("*.jpg"))[:4]
    pixels = Preprocessor(open_checkpoint(checkpoint).image).many(photographs)
    processor = CLIPImageProcessor.from_pretrained(checkpoint, do_normalize=False, do_rescale=False)
    expected = np.stack(processor([Image.open(photograph) for photograph in photographs])["pixel_values"])
    assert np.array_equal(pixels.transpose(0, 3, 1, 2), expected)


def test_certificates_are_against_torch(exported: tuple[Path, Bundle]) -> None:
    """Each fp32 engine has a certificate against torch of at least 0.99999 that names the versions."""
    _, bundle = exported
    for tower in (Tower.IMAGE, Tower.TEXT):
        certificate = bundle.manifest.engines[tower][Precision.FP32].certificate
        assert certificate is not None
        assert certificate.reference == "torch fp32"
        assert 0.99999 <= certificate.min_cosine <= certificate.mean_cosine <= 1
        assert certificate.samples >= 8
        assert {"torch", "transformers", "onnxruntime"} <= certificate.versions.keys()


def test_probes_are_torch_embeddings(exported: tuple[Path, Bundle]) -> None:
    """The probes hold transformers' embeddings, English and Chinese captions among them."""
    checkpoint, bundle = exported
    probes = bundle.probes()
    difference = np.abs(
        probes.towers[Tower.IMAGE].embedding - reference_images(checkpoint, probes.towers[Tower.IMAGE].inputs)
    ).max()
    assert difference <= TOLERANCE, f"largest difference {difference}"
    decoded = AutoTokenizer.from_pretrained(checkpoint).batch_decode(
        list(probes.towers[Tower.TEXT].inputs), skip_special_tokens=True
    )
    texts = [text.strip() for text in decoded]
    assert {"", "a cat", "一只猫"} <= set(texts)
    difference = np.abs(probes.towers[Tower.TEXT].embedding - reference_texts(checkpoint, texts)).max()
    assert difference <= TOLERANCE, f"largest difference {difference}"


def test_tokenizer_gives_the_ids_of_transformers(exported: tuple[Path, Bundle]) -> None:
    """The bundle's tokenizer.json gives transformers' ids, start and end token included, and no padding."""
    checkpoint, bundle = exported
    expected = AutoTokenizer.from_pretrained(checkpoint)(TEXTS)["input_ids"]
    assert [ids.tolist() for ids in Tokenizer(bundle.tokenizer_path, bundle.text).encode(TEXTS)] == expected
    assert json.loads(bundle.tokenizer_path.read_text())["truncation"] is None


def test_what_stands_right_of_the_end_never_matters(exported: tuple[Path, Bundle]) -> None:
    """A text has the same embedding at its own length, padded to the context, and with other ids behind the end."""
    _, bundle = exported
    runner = EngineRunner(bundle.engine(Tower.TEXT, Precision.FP32))
    ids = Tokenizer(bundle.tokenizer_path, bundle.text).encode(["a red car"])[0]
    rest = bundle.text.context_length - len(ids)
    alone = runner.embed([ids[None]])
    for tail in (np.full(rest, bundle.text.pad_id), np.arange(rest), np.full(rest, bundle.text.eos_id)):
        full = np.concatenate([ids, tail]).astype(np.int32)[None]
        difference = np.abs(runner.embed([full]) - alone).max()
        assert difference <= TOLERANCE, f"largest difference {difference}"


def test_engines_follow_the_contract(exported: tuple[Path, Bundle]) -> None:
    """The graphs have opset 17, LayerNormalization as one operator, standard operators, and named dynamic axes only."""
    _, bundle = exported
    # Two a block, one behind them all, one in front of the images', and the pooled token's own in the last block.
    for tower, norms in ((Tower.IMAGE, 7), (Tower.TEXT, 6)):
        model = onnx.load(bundle.engine(tower, Precision.FP32))
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
        operators = [node.op_type for node in model.graph.node]
        assert operators.count("LayerNormalization") == norms
        assert {node.domain for node in model.graph.node} == {""}
        named = {axis.dim_param for axis in model.graph.input[0].type.tensor_type.shape.dim} - {""}
        assert named == ({"N"} if tower is Tower.IMAGE else {"N", "L"})


def test_mask_is_finite_in_half_precision(exported: tuple[Path, Bundle]) -> None:
    """No constant of the text graph leaves the range of float16, so that a mask stays finite there."""
    _, bundle = exported
    model = onnx.load(bundle.engine(Tower.TEXT, Precision.FP32))
    tensors = [*model.graph.initializer, *(a.t for n in model.graph.node for a in n.attribute if a.HasField("t"))]
    largest = max(
        float(np.abs(array).max())
        for array in map(onnx.numpy_helper.to_array, tensors)
        if array.dtype == np.float32 and array.size
    )
    assert largest <= np.finfo(np.float16).max, f"largest constant {largest}"


def test_name_and_licence(checkpoint: Path, tmp_path: Path) -> None:
    """A given name is the bundle's; the licence is what the model card says."""
    (checkpoint / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# A model\nlicense: other\n")
    bundle = export_checkpoint(checkpoint, tmp_path / "bundle", name="mine")
    assert (bundle.name, bundle.manifest.source.licence) == ("mine", "mit")


def test_space_follows_the_weights_not_the_files(
    exported: tuple[Path, Bundle], make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    """Sharding and saving again keep the space; other weights and precisions change it."""
    _, bundle = exported

    def space(folder: str, **variant: object) -> str:
        return checkpoint_space(open_checkpoint(make_checkpoint(tmp_path / folder, **variant)))

    assert space("again") == bundle.space
    assert space("sharded", max_shard_size="50KB") == bundle.space
    assert len({bundle.space, space("seed", seed=1), space("half", dtype="bfloat16")}) == 3


def test_rewrites_change_neither_space_nor_embeddings(exported: tuple[Path, Bundle], tmp_path: Path) -> None:
    """A bundle exported without rewrites, or with some, has the same space and embeddings, in other engines."""
    checkpoint, bundle = exported
    files = {tower: {bundle.manifest.engines[tower][Precision.FP32].sha256} for tower in (Tower.IMAGE, Tower.TEXT)}
    for number, names in enumerate(((), ("qkv",), ("norms", "pooled", "normalisation"))):
        other = export_checkpoint(checkpoint, tmp_path / str(number), rewrites=names)
        assert other.space == bundle.space
        assert other.manifest.draft() == bundle.manifest.draft()
        assert_same_embeddings(other, checkpoint)
        for tower in (Tower.IMAGE, Tower.TEXT):
            files[tower].add(other.manifest.engines[tower][Precision.FP32].sha256)
    assert {tower: len(engines) for tower, engines in files.items()} == {Tower.IMAGE: 4, Tower.TEXT: 4}


def test_unknown_rewrite(tmp_path: Path) -> None:
    """A rewrite that is not known is an InputError that lists the known ones, before the checkpoint is opened."""
    with pytest.raises(InputError, match="'qvk'") as caught:
        export_checkpoint(tmp_path / "no-such-checkpoint", tmp_path / "bundle", rewrites=("norms", "qvk"))
    assert all(name in str(caught.value) for name in REWRITES)
    assert list(tmp_path.iterdir()) == []


def test_fp32_export_is_reproducible(exported: tuple[Path, Bundle], tmp_path: Path) -> None:
    """Exporting the same checkpoint twice gives the same bytes in every file."""
    checkpoint, bundle = exported
    again = export_checkpoint(checkpoint, tmp_path / "again")
    assert again.manifest == bundle.manifest


def test_existing_destination_is_left_alone(checkpoint: Path, tmp_path: Path) -> None:
    """A destination that exists is refused before the checkpoint is even opened."""
    (tmp_path / "bundle").mkdir()
    with pytest.raises(BundleError, match="exists"):
        export_checkpoint(tmp_path / "no-such-checkpoint", tmp_path / "bundle")
    assert list((tmp_path / "bundle").iterdir()) == []


def test_name_that_a_bundle_cannot_have(checkpoint: Path, tmp_path: Path) -> None:
    """A name with a path in it is an InputError, and nothing is left."""
    with pytest.raises(InputError, match="escape"):
        export_checkpoint(checkpoint, tmp_path / "bundle", name="../escape")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny-clip"]


@pytest.mark.parametrize("mistake", ["no causal mask", "wrong mean", "pooled at the start"])
def test_engine_that_differs_from_torch_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    """An engine that computes something else fails its certificate, and nothing is left."""
    image_tower, text_tower = clip.image_tower, clip.text_tower

    def without_mean(model: CLIPModel, settings: ImageSettings) -> towers.ImageTower:
        return image_tower(model, replace(settings, mean=(0.4, 0.4, 0.4)))

    def pooled_at_the_start(model: CLIPModel) -> towers.TextTower:
        tower = text_tower(model)
        assert tower.end_id is not None
        tower.end_id.fill_(AutoTokenizer.from_pretrained(checkpoint).bos_token_id)
        return tower

    match mistake:
        case "no causal mask":
            monkeypatch.setattr(passes, "MASKED", 0.0)
        case "wrong mean":
            monkeypatch.setattr(clip, "image_tower", without_mean)
        case _:
            monkeypatch.setattr(clip, "text_tower", pooled_at_the_start)
    with pytest.raises(CheckpointError, match="differs"):
        export_checkpoint(checkpoint, tmp_path / "bundle")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny-clip"]
