"""Sounds through a client, an index and the commands, with a bundle of an audio and a text tower."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.clap import encoded, sounds
from support.commands import Ran, run_twinspire
from twinspire import Client, Index, Query, Searcher
from twinspire.audio.mel import log_mel
from twinspire.bundle import Bundle, Probes, Tower, TowerProbes, space_id
from twinspire.bundle.folder import check_probes
from twinspire.contract import AUDIO
from twinspire.errors import AudioError, BundleError, EngineError, IndexStoreError, InputError
from twinspire.index import catalogue
from twinspire.index.schema import schema_of
from twinspire.ingest import IngestOptions, Sidecars, add_images, sync, watch
from twinspire.search import Classifier
from twinspire.stores import Item, ItemKind
from twinspire.towers import LocalTowers

RATE = 8_000
NAMES = ("sine", "chirp", "noise", "clicks", "voice")


@pytest.fixture
def heard(make_tiny: Callable[..., Any]) -> Any:
    """Make a tiny bundle with a text and an audio tower, and none for images."""
    return make_tiny("heard", towers=(Tower.TEXT, Tower.AUDIO))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write five sounds in four formats, with notes beside them, below a folder."""
    folder = tmp_path / "sounds"
    (folder / "more").mkdir(parents=True)
    made = sounds(RATE, 1.0)
    for name, (place, form, subtype) in zip(
        NAMES,
        [("a.wav", "WAV", "PCM_16"), ("b.flac", "FLAC", "PCM_16"), ("c.OGG", "OGG", "VORBIS"),
         ("more/d.mp3", "MP3", "MPEG_LAYER_III"), ("more/e.aiff", "AIFF", "PCM_16")],
        strict=True,
    ):  # fmt: skip
        (folder / place).write_bytes(encoded(made[name], RATE, form, subtype))
    (folder / "notes.md").write_text("not a sound")
    (folder / "a.txt").write_text("a red cat\nthe dog")
    return folder


def test_embeddings_are_those_of_the_model(heard: Any) -> None:
    """A client's vectors are the model's of the sounds' spectrograms, for any number of sounds."""
    made = list(sounds(RATE, 1.0).values()) * 14
    with Client.local(heard.bundle, threads=2, precision="fp32") as client:
        for count in (0, 1, 3, 17, 70):
            found = client.encode_audio((sound, RATE) for sound in made[:count])
            assert (found.shape, found.dtype) == ((count, 12), np.float32)
            if count:
                spectrograms = np.stack([log_mel(sound, heard.bundle.audio) for sound in made[:count]])
                assert np.abs(found - heard.model.encode_audio(spectrograms)).max() <= 2e-6


def test_bad_sounds_are_raised_or_skipped(heard: Any, folder: Path) -> None:
    """The first bad sound is an AudioError; with skip the good ones are encoded and the errors returned."""
    (folder / "broken.wav").write_text("no sound")
    items = [folder / "a.wav", folder / "broken.wav", folder / "b.flac", folder / "missing.wav"]
    with Client.local(heard.bundle, threads=1) as client:
        with pytest.raises(AudioError) as caught:
            client.encode_audio(items)
        assert (caught.value.position, caught.value.name) == (1, str(items[1]))
        found, errors = client.encode_audio(items, on_error="skip")
        assert [error.position for error in errors] == [1, 3]
        assert np.array_equal(found, client.encode_audio([items[0], items[2]]))
        assert client.preprocess_audio(items, on_error="skip")[0].shape == (
            2,
            *heard.bundle.input_spec(Tower.AUDIO).shape,
        )
        with pytest.raises(InputError):
            client.encode_audio(items, on_error="ignore")  # type: ignore[call-overload]


def test_absent_towers(heard: Any, tiny: Any) -> None:
    """A model without an audio tower refuses sounds, one without an image tower images: BundleError."""
    sound = (sounds(RATE, 0.2)["sine"], RATE)
    with Client.local(tiny.bundle, threads=1) as client:
        for call in (client.encode_audio, client.preprocess_audio):
            with pytest.raises(BundleError, match="audio"):
                call([sound])
        with pytest.raises(BundleError):
            client.towers.encode_audio(np.zeros((1, 21, 12), np.float32))
    with Client.local(heard.bundle, threads=1) as client, pytest.raises(BundleError, match="image"):
        client.encode_images([Image.new("RGB", (4, 4))])
    towers = LocalTowers(heard.bundle, threads=1, towers=["text"])
    with pytest.raises(EngineError, match="audio"):
        towers.encode_audio(np.zeros((1, 21, 12), np.float32))


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.zeros((1, 21, 12)), "float64"), (np.zeros((21, 12), np.float32), "21"),
        (np.zeros((1, 12, 21), np.float32), "21"), (np.full((1, 21, 12), np.nan, np.float32), "NaN"), ([0.0], "list"),
    ],
)  # fmt: skip
def test_other_arrays_are_refused(heard: Any, array: Any, word: str) -> None:
    """Towers take finite (N, F, M) float32 alone."""
    with Client.local(heard.bundle, threads=1) as client, pytest.raises(InputError, match=word):
        client.towers.encode_audio(array)


def test_manifest_and_probes(heard: Any) -> None:
    """Settings, tensors and probes of an audio tower survive a round trip, and probes are checked."""
    bundle = Bundle.open(heard.bundle.path)
    assert bundle.towers == (Tower.TEXT, Tower.AUDIO)
    assert bundle.audio == heard.bundle.audio
    spec = bundle.input_spec(Tower.AUDIO)
    assert (spec.name, spec.dtype, spec.shape) == (AUDIO, "float32", (21, 12))
    inputs, embedding = bundle.probes().towers[Tower.AUDIO]
    with Client.local(bundle, threads=1, precision="fp32") as client:
        assert np.abs(client.towers.encode_audio(np.asarray(inputs)) - embedding).max() <= 2e-6
    for wrong in (
        np.asarray(inputs)[0],
        np.asarray(inputs).astype(np.float64),
        np.full((2, 21, 12), np.nan, np.float32),
    ):
        with pytest.raises(InputError):
            Probes({Tower.AUDIO: TowerProbes(wrong, embedding)})
    narrow = Probes({**bundle.probes().towers, Tower.AUDIO: TowerProbes(np.asarray(inputs)[:, :, :5], embedding)})
    with pytest.raises(BundleError, match="audio"):
        check_probes(narrow, bundle.manifest, Path("probes.npz"))


def test_settings_are_part_of_the_space(heard: Any) -> None:
    """A space depends on the audio settings where there are some, and is as before where there are none."""
    tensors = [("w", "F32", [1], b"abcd")]
    plain = space_id(tensors, None, None, pooling="mean", context_length=8)
    assert plain == space_id(tensors, None, None, pooling="mean", context_length=8, audio=None)
    # Of the version before audio towers.
    assert plain == "7cbecd0cd68876fd8930e340d87740e151df2ab74359c705a0cebee801b5934d"
    audio = heard.bundle.audio
    spaces = {plain} | {
        space_id(tensors, None, None, pooling="mean", context_length=8, audio=settings)
        for settings in (
            audio,
            type(audio)(**{**vars(audio), "hop": 200}),
            type(audio)(**{**vars(audio), "padding": "pad"}),
        )
    }
    assert len(spaces) == 4


def test_add_and_search(heard: Any, folder: Path, tmp_path: Path) -> None:
    """Added sounds have kind, path, captions and the header's data, and are ranked as by exact cosines."""
    with (
        Client.local(heard.bundle, threads=1) as client,
        Index.create(tmp_path / "index", space=client.space, dim=client.dim) as index,
    ):
        paths = [folder / "a.wav", folder / "b.flac", folder / "c.OGG", folder / "more/d.mp3", folder / "more/e.aiff"]
        report = add_images(index, client, paths, IngestOptions(captions=Sidecars()))
        assert (report.added, report.failed, report.captioned) == (5, [], 1)
        assert add_images(index, client, paths, IngestOptions(captions=Sidecars())).already == 5
        assert index.count(kind="audio") == 5
        (item,) = index.find(uri=str(folder / "a.wav"))
        assert (item.kind, item.caption) == (ItemKind.AUDIO, "a red cat\nthe dog")
        expected = {"duration_s": 1.0, "sample_rate": RATE, "channels": 1, "format": "WAV", "name": "a.wav"}
        assert expected.items() <= item.metadata.items()
        stats = index.stats()
        assert stats.items_by_kind == {ItemKind.IMAGE: 0, ItemKind.TEXT: 0, ItemKind.AUDIO: 5}
        assert index.verify().ok
        vectors, sine = client.encode_audio(paths), (sounds(RATE, 1.0)["sine"], RATE)
        searcher = Searcher(client, index)
        for query, vector in (
            (Query.text("red cat"), client.encode_texts(["red cat"])[0]),
            (Query.audio(paths[3]), vectors[3]),
            (Query.audio(sine), client.encode_audio([sine])[0]),
        ):
            hits = searcher.search(query, mode="vector").hits
            order = np.argsort(-(vectors @ vector))
            assert [hit.uri for hit in hits] == [str(paths[place]) for place in order]
            assert {hit.kind for hit in hits} == {ItemKind.AUDIO}
        response = searcher.search("red cat")
        assert "sound" in response._repr_html_()
        (best,) = Classifier(client, ["red cat", "blue boat"]).classify_audio([paths[0]])
        scores = client.encode_texts(["red cat", "blue boat"]) @ vectors[0]
        assert best.best.score == pytest.approx(scores.max(), abs=1e-6)
    with Index.open(tmp_path / "index") as index:
        assert index.count(kind="audio", where="duration_s < 2 and channels = 1") == 5


def test_sync_follows_sound_files(heard: Any, folder: Path, tmp_path: Path) -> None:
    """New, changed, moved, broken and removed sound files are followed; images are not for this model."""
    Image.new("RGB", (8, 8)).save(folder / "picture.png")
    with (
        Client.local(heard.bundle, threads=1) as client,
        Index.create(tmp_path / "index", space=client.space, dim=client.dim) as index,
    ):
        assert sync(index, client, [folder], dry_run=True).added == 5
        report = sync(index, client, [folder])
        assert (report.added, report.failed, report.skipped) == (5, [], {".md": 1, ".txt": 1, ".png": 1})
        (folder / "more/d.mp3").rename(folder / "moved.mp3")
        (folder / "a.wav").write_bytes(encoded(sounds(RATE, 0.5)["voice"], RATE))
        (folder / "b.flac").unlink()
        (folder / "new.wav").write_text("no sound")
        (folder / "copy.OGG").write_bytes((folder / "c.OGG").read_bytes())
        report = sync(index, client, [folder])
        assert (report.added, report.moved, report.changed, report.removed) == (1, 1, 2, 1)
        assert [path.name for path, _ in report.failed] == ["new.wav"]
        names = sorted(Path(item.uri).name for item in index.items(kind="audio"))
        assert names == ["a.wav", "c.OGG", "copy.OGG", "e.aiff", "moved.mp3"]


def test_an_index_of_the_version_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index whose table knows images and texts alone is read and changed as before, and refuses sounds."""
    kinds = "('image', 'text', 'audio')"
    tables = schema_of(1)
    assert kinds in tables
    monkeypatch.setattr(catalogue, "schema_of", lambda _: tables.replace(kinds, "('image', 'text')"))
    Index.create(tmp_path / "old", space="5" * 64, dim=2).close()
    monkeypatch.undo()
    vector = np.array([[1, 0]], np.float32)
    with Index.open(tmp_path / "old", mode="write") as index:
        index.add(vector, [Item("/a.jpg", ItemKind.IMAGE)], space="5" * 64)
        with pytest.raises(IndexStoreError, match="audio"):
            index.add(vector, [Item("/a.wav", ItemKind.AUDIO)], space="5" * 64)
        assert (len(index), index.verify().ok) == (1, True)


@pytest.mark.slow
def test_watch_follows_sound_files(heard: Any, folder: Path, tmp_path: Path) -> None:
    """A sound file that appears while the folder is watched becomes an item."""
    stop, events = threading.Event(), []
    with (
        Client.local(heard.bundle, threads=1) as client,
        Index.create(tmp_path / "index", space=client.space, dim=client.dim) as index,
    ):
        options = IngestOptions(on_event=events.append)
        thread = threading.Thread(
            target=watch, args=(index, client, [folder], options), kwargs={"stop": stop, "settle_s": 0.1, "gone_s": 0.2}
        )
        thread.start()
        try:
            _until(lambda: len(events) == 5)
            (folder / "late.wav").write_bytes(encoded(sounds(RATE, 0.3)["chirp"], RATE))
            _until(lambda: len(events) == 6)
        finally:
            stop.set()
            thread.join()
        assert events[-1].path.name == "late.wav"


def test_a_model_of_three_modalities(make_tiny: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    """A model with an image and an audio tower takes both kinds of files, each by its suffix."""
    Image.new("RGB", (8, 8), "red").save(folder / "picture.png")
    bundle = make_tiny("all", towers=tuple(Tower)).bundle
    with (
        Client.local(bundle, threads=1) as client,
        Index.create(tmp_path / "index", space=client.space, dim=client.dim) as index,
    ):
        report = sync(index, client, [folder])
        assert (report.added, report.skipped) == (6, {".md": 1, ".txt": 1})
        assert index.stats().items_by_kind == {ItemKind.IMAGE: 1, ItemKind.TEXT: 0, ItemKind.AUDIO: 5}
        (picture,) = index.items(kind="image")
        assert np.allclose(index.vectors([picture.id]), client.encode_images([folder / "picture.png"]))
        found = Searcher(client, index).search(Query.image(folder / "picture.png") + Query.audio(folder / "a.wav"))
        assert len(found.hits) == 6


def test_other_bundles_leave_sounds_out(tiny: Any, make_tiny: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    """A bundle without an audio tower skips sounds in folders; one for texts alone takes no files: BundleError."""
    with (
        Client.local(tiny.bundle, threads=1) as client,
        Index.create(tmp_path / "index", space=client.space, dim=client.dim) as index,
    ):
        assert sync(index, client, [folder]).skipped[".wav"] == 1
        assert add_images(index, client, [folder / "a.wav"]).failed[0].path == folder / "a.wav"
    texts = make_tiny("texts", towers=(Tower.TEXT,)).bundle
    with (
        Client.local(texts, threads=1) as client,
        Index.create(tmp_path / "other", space=client.space, dim=client.dim) as index,
        pytest.raises(BundleError, match="text"),
    ):
        add_images(index, client, [folder / "a.wav"])


Run = Callable[..., Ran]


@pytest.fixture
def run(tmp_path: Path, heard: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> Run:
    """Run `twinspire` beside the bundle `heard`, the folder `sounds` with a picture, and `pictures` without a sound."""
    assert (heard.bundle.path, folder) == (tmp_path / "heard", tmp_path / "sounds")
    (tmp_path / "pictures").mkdir()
    for place in (folder, tmp_path / "pictures"):
        Image.new("RGB", (8, 8)).save(place / "picture.png")
    (tmp_path / "labels.txt").write_text("red cat\nblue boat\n")
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run_twinspire(capfd, *arguments)


def test_commands(run: Run, folder: Path, tmp_path: Path) -> None:
    """`index add`, `stats`, `search` by text and by sound, with a sheet, and `classify` take sounds."""
    added = run("index", "add", "index", "sounds", "--bundle", "heard", "--sidecars", "--json").document
    assert (added["added"], added["captioned"], added["skipped"]) == (5, 1, {".md": 1, ".png": 1})
    stats = run("index", "stats", "index", "--json").document
    assert (stats["images"], stats["texts"], stats["sounds"]) == (0, 0, 5)
    found = run("search", "index", "red cat", "--sheet", "sheet.png", "--json").document
    assert {hit["kind"] for hit in found["hits"]} == {"audio"}
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 100
    (best, *_) = run("search", "index", "--audio", "sounds/a.wav", "--json").document["hits"]
    assert (best["uri"], best["kind"], best["score"]) == (str(folder / "a.wav"), "audio", pytest.approx(1, abs=1e-5))
    in_sum = run("search", "index", '"red cat" + sounds/more/d.mp3', "--sheet", "sheet.png")
    assert (in_sum.status, len(in_sum.names)) == (0, 5)
    document = run("classify", "sounds", "--labels", "labels.txt", "-b", "heard", "--json").document
    assert (len(document["sounds"]), "images" in document) == (5, False)
    synced = run("index", "sync", "index", "sounds", "--json").document
    assert (synced["unchanged"], synced["removed"]) == (5, 0)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ("index add new sounds/picture.png --bundle heard", "none"),
        ("index add new pictures --bundle heard", "sounds"),
        ("index add new pictures/missing.wav --bundle heard", "missing.wav"),
        ("index sync index pictures/picture.png", "folder"),
        ("search index --audio sounds/missing.wav", "missing.wav"),
        ("search index --audio sounds", "folder"),
        ("search index --audio sounds/notes.md", "format"),
        ("search index --image sounds/picture.png", "image"),
        ("search index red --kind sound", "audio"),
        ("search index red --minus sounds/missing.flac", "missing.flac"),
        ("classify pictures --labels labels.txt --bundle heard", "sounds"),
        ("classify sounds/notes.md --labels labels.txt --bundle heard", "none"),
    ],
)
def test_wrong_commands(run: Run, arguments: str, word: str, tmp_path: Path) -> None:
    """Files that a model does not encode end with status 2 and a message that names the cause; no index is made."""
    run("index", "add", "index", "sounds", "--bundle", "heard")
    ran = run(*arguments.split())
    assert ran.status == 2
    assert word in ran.err.replace("\n", " ")
    assert "Traceback" not in ran.err
    assert not (tmp_path / "new").exists()


def _until(condition: Callable[[], bool], *, limit_s: float = 30.0) -> None:
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, "not in time"
        time.sleep(0.02)
