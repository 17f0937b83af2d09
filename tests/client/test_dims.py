"""Clients and indexes of shortened embeddings: cut to a length that the bundle allows, and of a space of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.commands import Ran, run_twinspire
from twinspire import AsyncClient, Client, LocalTowers
from twinspire.bundle import Bundle, Tower
from twinspire.errors import EngineError, InputError, SpaceMismatchError
from twinspire.index import Index, Item, ItemKind

TEXTS = ["a red cat on the snow", "a", "the blue boat left of the large house"]
DIMS = (4, 8, 12)


@pytest.fixture(scope="module")
def cut_bundle(tmp_path_factory: pytest.TempPathFactory, make_tiny_at: Callable[..., Any]) -> Bundle:
    """Make a bundle of 12 numbers that may be cut to 8 and 4."""
    bundle: Bundle = make_tiny_at(tmp_path_factory.mktemp("cut") / "tiny", dims=DIMS).bundle
    return bundle


def _images(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 20, 24, 3), np.uint8))


def _cut(whole: np.ndarray, dim: int) -> np.ndarray:
    cut = whole[..., :dim].astype(np.float64)
    return cut / np.linalg.norm(cut, axis=-1, keepdims=True)


@pytest.mark.parametrize("dim", [4, 8])
def test_embeddings_are_cut_and_normalised(cut_bundle: Bundle, dim: int) -> None:
    """Texts and images have the first numbers of their whole embeddings, brought to length 1, also none of them."""
    images = _images(40)
    with Client.local(cut_bundle) as whole, Client.local(cut_bundle, dim=dim) as client:
        pairs = [(client.encode_texts(TEXTS), whole.encode_texts(TEXTS))]
        pairs.append((client.encode_images(images), whole.encode_images(images)))
        for found, expected in pairs:
            difference = np.abs(found - _cut(expected, dim)).max()
            assert difference <= 1e-6, f"largest difference {difference:.2e}"
            assert found.dtype == np.float32
        assert client.encode_images([]).shape == (0, dim)
        assert client.encode_texts([]).shape == (0, dim)
        assert client.dim == client.towers.dim == dim


def test_a_length_has_a_space_of_its_own(cut_bundle: Bundle) -> None:
    """The space of cut embeddings is the model's and their length; the whole length is the model's space."""
    for dim, space in ((8, f"{cut_bundle.space}:8"), (12, cut_bundle.space), (None, cut_bundle.space)):
        with Client.local(cut_bundle, dim=dim) as client:
            assert (client.space, client.dim) == (space, dim or 12)


def test_an_async_client_cuts_as_a_client_does(cut_bundle: Bundle) -> None:
    """`AsyncClient` gives the same shortened embeddings and space as `Client`."""

    async def encode() -> tuple[np.ndarray, np.ndarray, str]:
        async with await AsyncClient.local(cut_bundle, dim=4) as client:
            return await client.encode_texts(TEXTS), await client.encode_images(_images(2)), client.space

    texts, images, space = asyncio.run(encode())
    with Client.local(cut_bundle, dim=4) as client:
        assert np.array_equal(texts, client.encode_texts(TEXTS))
        assert np.array_equal(images, client.encode_images(_images(2)))
        assert space == client.space


def test_served_embeddings_are_cut(cut_bundle: Bundle, start_fake: Callable[..., Any]) -> None:
    """Clients of a server, also for asyncio, cut what it sends, and count its calls."""
    server = start_fake()

    async def encode() -> np.ndarray:
        async with await AsyncClient.connect(server.url, cut_bundle, dim=4) as client:
            assert client.counters is not None
            return await client.encode_texts(TEXTS)

    with Client.connect(server.url, cut_bundle, dim=4) as client, Client.local(cut_bundle, precision="fp32") as local:
        assert client.space == f"{cut_bundle.space}:4"
        expected = _cut(local.encode_texts(TEXTS), 4)
        assert np.allclose(client.encode_texts(TEXTS), expected, atol=1e-6)
        assert client.counters is not None
    assert np.allclose(asyncio.run(encode()), expected, atol=1e-6)


def test_a_client_can_be_cut_further(cut_bundle: Bundle) -> None:
    """`cut_to` gives a client of another length over the same engines, from a cut one and back to the whole."""
    with Client.local(cut_bundle, dim=8) as client:
        whole = client.cut_to(None)
        assert whole.space == cut_bundle.space
        assert np.allclose(client.cut_to(4).encode_texts(TEXTS), _cut(whole.encode_texts(TEXTS), 4), atol=1e-6)
        assert client.dim == 8


@pytest.mark.parametrize("dim", [5, 0, -4, 13, 8.0, True, "8"])
def test_a_length_that_is_not_allowed(cut_bundle: Bundle, dim: Any) -> None:
    """A length that the bundle does not allow is an InputError of the option `dim`, for local and served engines."""
    with pytest.raises(InputError, match="dim") as error:
        Client.local(cut_bundle, dim=dim)
    assert error.value.option == "dim"
    with pytest.raises(InputError, match="dim"):
        Client.connect("127.0.0.1:1", cut_bundle, dim=dim)
    with pytest.raises(InputError, match="dim"):
        asyncio.run(AsyncClient.local(cut_bundle, dim=dim))


def test_the_error_names_the_lengths(cut_bundle: Bundle, tiny: Any) -> None:
    """The message names what is allowed; of a bundle that allows none, how to export one that does."""
    with pytest.raises(InputError, match="4, 8 or 12"):
        Client.local(cut_bundle, dim=5)
    with pytest.raises(InputError, match="--dims 8"):
        Client.local(tiny.bundle, dim=8)


def test_an_embedding_that_starts_with_zeros(cut_bundle: Bundle) -> None:
    """An embedding whose first numbers are all 0 has no direction when it is cut: an EngineError with its row."""

    class Zeros(LocalTowers):
        def encode_texts(self, sequences: Any) -> Any:
            return np.eye(12, dtype=np.float32)[[0, 9]]

    towers = Zeros(cut_bundle)
    with Client(cut_bundle, towers, dim=8) as client, pytest.raises(EngineError, match="row 1") as error:
        client.encode_texts(["a", "cat"])
    assert error.value.row == 1


# Indexes


def test_an_index_takes_embeddings_of_its_length_alone(cut_bundle: Bundle, tmp_path: Path) -> None:
    """An index refuses embeddings of another length, which the error says, with the option to set."""
    with Client.local(cut_bundle, dim=8) as client, Index.create(tmp_path / "i", space=client.space, dim=8) as index:
        index.add(client.encode_texts(["a cat"]), [Item("a", ItemKind.TEXT)], space=client.space)
        ((hit,),) = index.search(client.encode_texts(["a cat"]), space=client.space)
        assert hit.score == pytest.approx(1, abs=1e-6)
        for dim, words in ((4, "cut to 4"), (None, "whole ones")):
            other = client.cut_to(dim)
            with pytest.raises(SpaceMismatchError, match=rf"{words}.*--dim 8") as error:
                index.search(other.encode_texts(["a cat"]), space=other.space)
            assert (error.value.expected, error.value.found) == (client.space, other.space)
    with Index.create(tmp_path / "whole", space=cut_bundle.space, dim=12) as index:
        with pytest.raises(SpaceMismatchError, match=r"whole.*\(--dim\) out"):
            index.check_space(f"{cut_bundle.space}:8")
        with pytest.raises(SpaceMismatchError, match="another space"):
            index.check_space("1" * 64)


def test_an_index_has_the_length_of_its_space(cut_bundle: Bundle, tmp_path: Path) -> None:
    """An index of a space of shortened embeddings cannot be made with another length."""
    with pytest.raises(InputError, match="expected 8"):
        Index.create(tmp_path / "i", space=f"{cut_bundle.space}:8", dim=12)


# Commands


@pytest.fixture
def run(
    tmp_path: Path, cut_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Ran]:
    """Run `twinspire` in a folder with two images in `photos` and an index `short` of them, cut to 8 numbers."""
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(_images(2)):
        Image.fromarray(image).save(tmp_path / "photos" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")

    def run_main(*arguments: object) -> Ran:
        return run_twinspire(capfd, *arguments)

    ran = run_main("index", "add", "short", "photos", "--bundle", cut_bundle.path, "--dim", 8)
    assert ran.status == 0, ran.err
    return run_main


def test_commands_take_the_length_from_the_index(run: Callable[..., Ran], tmp_path: Path, cut_bundle: Bundle) -> None:
    """An index made with --dim is searched, extended and synced without it, and remembers its bundle."""
    with Index.open(tmp_path / "short") as index:
        assert (index.dim, index.space, len(index)) == (8, f"{cut_bundle.space}:8", 2)
        stored = index.vectors(index.sample_ids(2))
    with Client.local(cut_bundle, dim=8) as client:
        assert np.array_equal(stored, client.encode_images(sorted((tmp_path / "photos").iterdir())))
    (tmp_path / "lines.txt").write_text("a red cat\n", encoding="utf-8")
    assert run("index", "add", "short", "--texts", "lines.txt").status == 0
    assert run("index", "sync", "short", "photos").status == 0
    found = run("search", "short", "a red cat", "--mode", "vector", "-k", 1)
    assert found.status == 0, found.err
    assert found.out.startswith("1.0000\t"), found.out
    assert run("search", "short", "a red cat", "--dim", 8).status == 0
    assert run("index", "verify", "short").status == 0


@pytest.mark.parametrize(
    ("option", "words"), [(4, "--dim 8"), (12, "--dim 8"), (5, "4, 8 or 12"), (0, "--dim"), ("x", "--dim")]
)
def test_commands_refuse_another_length(run: Callable[..., Ran], option: Any, words: str) -> None:
    """Another length than the index's, and one that is not allowed, end with status 2 and what to do."""
    ran = run("search", "short", "a red cat", "--dim", option)
    assert ran.status == 2
    assert words in ran.err, ran.err


def test_a_bundle_that_no_longer_allows_the_length(run: Callable[..., Ran], tiny: Any) -> None:
    """A bundle of the same model that does not allow the index's length is refused, with what it allows."""
    ran = run("search", "short", "a red cat", "--bundle", tiny.bundle.path)
    assert ran.status == 2
    for words in ("cut to 8", "allows 12", "--bundle"):
        assert words in ran.err, ran.err


def test_an_index_is_migrated_to_another_length(run: Callable[..., Ran], tmp_path: Path, cut_bundle: Bundle) -> None:
    """`index migrate --dim` gives an index shorter embeddings of the same model."""
    ran = run("index", "migrate", "short", "--bundle", cut_bundle.path, "--dim", 4)
    assert ran.status == 0, ran.err
    with Index.open(tmp_path / "short") as index:
        assert (index.dim, index.space, len(index)) == (4, f"{cut_bundle.space}:4", 2)
    assert run("search", "short", "a red cat").status == 0


def test_the_bundle_allows_lengths_of_all_towers(make_tiny: Callable[..., Any]) -> None:
    """Sounds are cut as well."""
    bundle = make_tiny("heard", towers=(Tower.TEXT, Tower.AUDIO), dims=DIMS).bundle
    sound = (np.sin(np.arange(8000) / 20).astype(np.float32), 8000)
    with Client.local(bundle) as whole, Client.local(bundle, dim=4) as client:
        assert np.allclose(client.encode_audio([sound]), _cut(whole.encode_audio([sound]), 4), atol=1e-6)
