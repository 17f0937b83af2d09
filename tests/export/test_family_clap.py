"""CLAP: towers, preprocessing and scores are those of transformers; fused and damaged checkpoints are refused."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the export needs torch")

import torch
from transformers import ClapFeatureExtractor, ClapModel, RobertaTokenizerFast

from support.clap import RATE, encoded, save_clap, sounds
from support.families import CHINESE, HARD_TEXTS, coco_captions, minimum_cosine, served
from twinspire import Client, Index, Searcher
from twinspire.bundle import AudioCut, Bundle, MelScale, Precision, Tower
from twinspire.errors import CheckpointError
from twinspire.ingest import add_images
from twinspire.search import Classifier
from twinspire_export import export_checkpoint, quantize_bundle
from twinspire_export.checkpoint import open_checkpoint
from twinspire_export.engine_check import EngineRunner
from twinspire_export.families.clap import HtsatTower
from twinspire_export.rewrite import REWRITES, apply_rewrites
from twinspire_export.sounds import generated_sounds

MIN_COSINE = 0.99999
TOLERANCE = 5e-6


class Model:
    """A checkpoint, its bundle, and transformers' own model, tokenizer and feature extractor of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = save_clap(folder / "tiny-clap")
        self.bundle = export_checkpoint(self.folder, folder / "bundle")
        self.model = ClapModel.from_pretrained(self.folder).eval()
        self.tokenizer = RobertaTokenizerFast.from_pretrained(self.folder)
        self.extractor = ClapFeatureExtractor.from_pretrained(self.folder)

    def features(self, samples: np.ndarray) -> torch.Tensor:
        """Return transformers' features of one sound of at most 2 s, (1, 1, F, M)."""
        return self.extractor(samples, sampling_rate=RATE, return_tensors="pt")["input_features"].float()

    @torch.inference_mode()
    def audio(self, features: torch.Tensor) -> np.ndarray:
        """Return transformers' embeddings of features (N, 1, F, M)."""
        return np.asarray(torch.nn.functional.normalize(self.model.get_audio_features(features), dim=-1))

    @torch.inference_mode()
    def texts(self, texts: list[str]) -> np.ndarray:
        """Return transformers' embeddings of texts, padded and masked in one batch."""
        inputs = self.tokenizer(texts, padding=True, truncation=True, max_length=40, return_tensors="pt")
        return np.asarray(torch.nn.functional.normalize(self.model.get_text_features(**inputs), dim=-1))


@pytest.fixture(scope="module")
def clap(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Export a tiny checkpoint once."""
    return Model(tmp_path_factory.mktemp("clap"))


@pytest.fixture(scope="module")
def client(clap: Model) -> Any:
    """Open the exported bundle."""
    with Client.local(clap.bundle, threads=1) as opened:
        yield opened


def test_sounds_are_those_of_transformers(clap: Model, client: Client) -> None:
    """Sounds from 20 ms to the model's 2 s give the features and embeddings of transformers."""
    for seconds in (0.02, 0.7, 2.0):
        made = list(sounds(RATE, seconds).values())
        expected = torch.cat([clap.features(sound) for sound in made])
        spectrograms = client.preprocess_audio([(sound, RATE) for sound in made])
        assert np.abs(spectrograms - expected[:, 0].numpy()).max() <= 2e-5
        found = client.encode_audio([(sound, RATE) for sound in made])
        assert minimum_cosine(found, clap.audio(expected)) >= MIN_COSINE


def test_longer_sounds_are_cut_at_their_start(clap: Model, client: Client) -> None:
    """Of 7 s the model hears the first 2, where transformers would take any 2 of them."""
    sound = sounds(RATE, 7.0)["noise"]
    found = client.encode_audio([(sound, RATE), encoded(sound, RATE)])
    expected = clap.audio(clap.features(sound[: 2 * RATE]))
    assert minimum_cosine(found, np.concatenate([expected] * 2)) >= MIN_COSINE
    assert client.bundle.audio.cut is AudioCut.START
    assert client.bundle.audio.mel_scale is MelScale.SLANEY


@pytest.mark.parametrize("batch", [1, 3, 17])
def test_engines_take_any_batch(clap: Model, batch: int) -> None:
    """The audio engine gives transformers' embeddings for batches of other sizes than the traced two."""
    spectrograms = generated_sounds(batch, clap.bundle.audio, seed=batch)
    found = EngineRunner(clap.bundle.engine(Tower.AUDIO, Precision.FP32)).embed([spectrograms])
    expected = clap.audio(torch.from_numpy(spectrograms)[:, None])
    assert minimum_cosine(found, expected) >= MIN_COSINE
    assert np.abs(found - expected).max() <= TOLERANCE


@pytest.mark.parametrize("batch", [1, 3, 17])
def test_texts_are_those_of_transformers(clap: Model, client: Client, batch: int) -> None:
    """Captions, Chinese, emoji, empty and overlong texts in mixed lengths give transformers' embeddings."""
    texts = [*CHINESE, *HARD_TEXTS, *coco_captions(6)][:batch]
    assert minimum_cosine(client.encode_texts(texts), clap.texts(texts)) >= MIN_COSINE


def test_token_ids_are_those_of_transformers(clap: Model, client: Client) -> None:
    """2,000 captions and odd texts become the same ids, cut to the context."""
    texts = [*coco_captions(2_000), *CHINESE, *HARD_TEXTS]
    for found, text in zip(client.tokenize(texts), texts, strict=True):
        assert found.tolist() == clap.tokenizer(text, truncation=True, max_length=40)["input_ids"]


def test_scores_are_those_of_transformers(clap: Model, client: Client) -> None:
    """Labels of a sound have the probabilities of `logits_per_audio`; the scale of texts is another."""
    sound, labels = sounds(RATE)["voice"], ["a dog", "rain on a roof", "somebody speaks"]
    inputs = clap.tokenizer(labels, padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = clap.model(input_features=clap.features(sound), **inputs).logits_per_audio
    expected = dict(zip(labels, logits.softmax(dim=-1)[0].tolist(), strict=True))
    (found,) = Classifier(client, labels).classify_audio([(sound, RATE)])
    for score in found.scores:
        assert score.probability == pytest.approx(expected[score.label], abs=1e-5)
    assert client.bundle.manifest.logit_scale == pytest.approx(7.0)


@pytest.mark.parametrize("name", list(REWRITES))
def test_rewrites_change_nothing(clap: Model, name: str) -> None:
    """Each rewrite that applies leaves the embeddings of the text tower as they are, and the audio tower alone."""
    opened = open_checkpoint(clap.folder)
    needed = [*REWRITES[name].requires, name]
    ids = torch.tensor([[0, 9, 17, 30, 2, 1, 1], [0, 8, 5, 7, 9, 11, 2]], dtype=torch.int32)
    spectrograms = torch.from_numpy(generated_sounds(3, clap.bundle.audio))
    for tower, given in ((Tower.TEXT, ids), (Tower.AUDIO, spectrograms)):
        with torch.inference_mode():
            plain = opened.tower(tower).eval()(given)
            rewritten = apply_rewrites(opened.tower(tower), needed).eval()(given)
        assert (plain - rewritten).abs().max() <= TOLERANCE


def test_the_model_is_not_changed(clap: Model) -> None:
    """Making towers leaves the model as it was, and shares its weights."""
    spectrograms = torch.from_numpy(generated_sounds(2, clap.bundle.audio))[:, None]
    before = clap.audio(spectrograms)
    tower = HtsatTower(clap.model)
    assert np.array_equal(clap.audio(spectrograms), before)
    weights = {parameter.data_ptr() for parameter in clap.model.parameters()}
    assert all(parameter.data_ptr() in weights for parameter in tower.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "minimum"), [("fp16", 0.9999), ("int8", 0.95)])
def test_smaller_engines(clap: Model, tmp_path: Path, precision: str, minimum: float) -> None:
    """fp16 and int8 engines are made with certificates, measured on sounds that were held out."""
    made = [(sound, RATE) for seed in range(8) for sound in sounds(RATE, 1 + seed / 8, seed=seed).values()]
    made = [made[place] for place in np.random.default_rng(0).permutation(len(made))]  # a fifth is held out, evenly
    bundle = quantize_bundle(
        clap.bundle, tmp_path / precision, precision=precision, sounds=made, captions=coco_captions(40)
    )
    for tower in bundle.towers:
        certificate = bundle.manifest.engines[tower][Precision(precision)].certificate
        assert certificate is not None
        print(f"{precision} {tower}: cosine {certificate.min_cosine:.5f} at least, {certificate.mean_cosine:.5f} mean")
        assert certificate.mean_cosine >= minimum
        assert ("sounds" in certificate.data) is (tower is Tower.AUDIO)
    with Client.local(bundle, precision=precision, threads=1) as client:
        assert client.encode_audio(made[:3]).shape == (3, 24)


def test_sounds_are_found_by_text_as_transformers_ranks_them(clap: Model, client: Client, tmp_path: Path) -> None:
    """An index of sound files gives, for each caption, the order of transformers' similarities."""
    made = {f"{name}-{seed}": sound for seed in range(4) for name, sound in sounds(RATE, 1.5, seed=seed).items()}
    for place, (name, sound) in enumerate(made.items()):
        (tmp_path / f"{name}.wav").write_bytes(encoded(sound * 0.9**place, RATE))
    paths = sorted(tmp_path.glob("*.wav"))
    scaled = {name: sound * 0.9**place for place, (name, sound) in enumerate(made.items())}
    reference = clap.audio(
        torch.cat([clap.features(scaled[path.stem].astype(np.float32).astype(np.float64)) for path in paths])
    )
    with Index.create(tmp_path / "index", space=client.space, dim=client.dim) as index:
        assert add_images(index, client, paths).added == len(paths)
        searcher = Searcher(client, index)
        for query in coco_captions(20):
            similarities = reference @ clap.texts([query])[0]
            hits = searcher.search(query, len(paths), mode="vector").hits
            expected = {str(path): similarity for path, similarity in zip(paths, similarities, strict=True)}
            for hit in hits:
                assert hit.score == pytest.approx(expected[hit.uri], abs=TOLERANCE)
            ranked = [expected[hit.uri] for hit in hits]  # neighbours within rounding may be swapped
            assert all(first >= second - 2 * TOLERANCE for first, second in pairwise(ranked))


@pytest.mark.slow
def test_served_by_triton(clap: Model, client: Client, tmp_path: Path) -> None:
    """Triton's wheel serves both towers and gives the embeddings of this process."""
    made = [(sound, RATE) for seed in range(4) for sound in sounds(RATE, seed=seed).values()]
    with served(clap.bundle, tmp_path) as remote:
        for count in (1, 3, 17):
            assert np.abs(remote.encode_audio(made[:count]) - client.encode_audio(made[:count])).max() <= TOLERANCE
        texts = coco_captions(17)
        assert np.abs(remote.encode_texts(texts) - client.encode_texts(texts)).max() <= TOLERANCE


def _edit(path: Path, **changes: Any) -> None:
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, **changes}))


def _extractor(folder: Path, **changes: Any) -> None:
    _edit(folder / "preprocessor_config.json", **changes)


def _audio(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    _edit(folder / "config.json", audio_config={**config["audio_config"], **changes})


def _without_start_token(folder: Path) -> None:
    _edit(folder / "tokenizer.json", post_processor=None)


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda folder: _extractor(folder, truncation="fusion"), "fused"),
        (lambda folder: _extractor(folder, truncation="middle"), "truncation"),
        (lambda folder: _extractor(folder, padding="wrap"), "padding"),
        (lambda folder: _extractor(folder, feature_size=24), "spectrograms"),
        (lambda folder: _extractor(folder, max_length_s=30), "spectrograms"),
        (lambda folder: _extractor(folder, frequency_max=4_100), "max_hz"),
        (lambda folder: _extractor(folder, hop_length=0), "hop|float division|divi"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "preprocessor_config.json"),
        (lambda folder: (folder / "preprocessor_config.json").write_text("{"), "preprocessor_config.json|load"),
        (lambda folder: [(folder / name).unlink() for name in ("tokenizer.json", "merges.txt")], "tokenizer"),
        (lambda folder: (folder / "model.safetensors").unlink(), "safetensors"),
        (lambda folder: _audio(folder, patch_embeds_hidden_size=32, hidden_size=128), "tensors"),
        (lambda folder: _audio(folder, depths=[2, 2, 4]), "missing"),
        (_without_start_token, "start token"),
        (lambda folder: _edit(folder / "config.json", architectures=["ClapAudioModelWithProjection"]), "ClapModel"),
        (lambda folder: _edit(folder / "config.json", model_type="clip", architectures=["CLIPModel"]), "."),
    ],
)
def test_checkpoints_that_are_refused(clap: Model, tmp_path: Path, damage: Any, word: str) -> None:
    """What is missing, damaged, of another family or not expressible is a CheckpointError, and nothing is written."""
    folder = tmp_path / "tiny-clap"
    shutil.copytree(clap.folder, folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=word):
        export_checkpoint(folder, tmp_path / "bundle")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny-clap"]


def test_fused_checkpoints_are_refused(tmp_path: Path) -> None:
    """A model with feature fusion is refused by name."""
    folder = save_clap(tmp_path / "fused", audio={"enable_fusion": True, "fusion_type": None}, truncation="fusion")
    with pytest.raises(CheckpointError, match="fused"):
        export_checkpoint(folder, tmp_path / "bundle")


def test_the_space_is_that_of_weights_and_settings(clap: Model, tmp_path: Path) -> None:
    """Another hop of the frames makes another space; the bundle's own is that of a second export."""
    again = export_checkpoint(clap.folder, tmp_path / "again", rewrites=())
    assert again.space == clap.bundle.space
    folder = tmp_path / "other"
    shutil.copytree(clap.folder, folder)
    _extractor(folder, hop_length=100)
    other = export_checkpoint(folder, tmp_path / "bundle")
    assert other.space != clap.bundle.space
    assert Bundle.open(other.path).audio.hop == 100
