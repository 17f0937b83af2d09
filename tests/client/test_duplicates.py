"""Groups of near-equal images: which images are grouped, which are not, and what is said of those without a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from support.arrays import noise_images, random_vectors, unit
from twinspire.duplicates import DuplicateReport, correlations, find_duplicates, thumbnail_of
from twinspire.errors import IndexStoreError, InputError
from twinspire.index import Index, Item, ItemKind
from twinspire.stores import VectorStore

SPACE = "5" * 64
DIM = 16


def picture(seed: int, side: int = 192) -> Image.Image:
    """Return a picture of soft random patches, another one for each seed."""
    small = Image.fromarray(noise_images(1, 12, seed)[0])
    return small.resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Index]]:
    """Return a function that makes an index of these vectors, with the uris given or `/gone/N.png`."""
    made: list[Index] = []

    def make_index(
        vectors: NDArray[np.float32], uris: Sequence[str] | None = None, kinds: Sequence[ItemKind] | None = None
    ) -> Index:
        names = uris if uris is not None else [f"/gone/{number}.png" for number in range(len(vectors))]
        items = [Item(name, kind) for name, kind in zip(names, kinds or [ItemKind.IMAGE] * len(vectors), strict=True)]
        index = Index.create(tmp_path / f"index{len(made)}", space=SPACE, dim=vectors.shape[-1])
        made.append(index)
        index.add(vectors, items, space=SPACE)
        return index

    yield make_index
    for index in made:
        index.close()


def near(vector: NDArray[np.float32], cosine: float, seed: int) -> NDArray[np.float32]:
    """Return a unit vector with this cosine to `vector`."""
    other = np.random.default_rng([7, seed]).normal(size=len(vector))
    other -= (other @ vector) * vector
    return unit(cosine * vector + np.sqrt(1 - cosine**2) * other / np.linalg.norm(other))


def ids_of(report: DuplicateReport) -> list[list[int]]:
    """Return the ids of each group, the best first."""
    return [[image.id for image in group] for group in report.groups]


# --- correlation of pixels


def by_definition(left: Image.Image, right: Image.Image) -> float:
    """Return the correlation of two pictures, window by window with NumPy's corrcoef."""

    def reduced(image: Image.Image, width: int, height: int) -> NDArray[np.float64]:
        grey = thumbnail_of(image).astype(np.float64)  # (48, 48); each pixel repeated, then 48 of them averaged
        rows = np.repeat(grey, height, axis=0).reshape(height, 48, 48).mean(axis=1)
        pixels = np.repeat(rows, width, axis=1).reshape(height, width, 48).mean(axis=2)
        padded = np.pad(pixels, 2, mode="edge")
        means = [[padded[y : y + 5, x : x + 5].mean() for x in range(width)] for y in range(height)]
        return pixels - np.array(means)

    best = -1.0
    for crop, whole in ((left, right), (right, left)):
        full = reduced(whole, 32, 32)
        for height in range(27, 33):
            for width in range(27, 33):
                part = reduced(crop, width, height).ravel()
                for top in range(33 - height):
                    for start in range(33 - width):
                        window = full[top : top + height, start : start + width].ravel()
                        best = max(best, float(np.corrcoef(part, window)[0, 1]))
    return best


def correlation(left: Image.Image, right: Image.Image) -> float:
    """Return the correlation of two pictures."""
    return float(correlations(thumbnail_of(left)[None], thumbnail_of(right)[None])[0])


def test_the_correlation_is_the_largest_over_all_windows() -> None:
    """It is what NumPy's corrcoef gives for the best of all windows, within 1e-4."""
    one = picture(1)
    for other in (picture(2), one.crop((10, 3, 180, 190)), ImageOps.mirror(one)):
        expected = by_definition(one, other)
        print(abs(correlation(one, other) - expected))
        assert correlation(one, other) == pytest.approx(expected, abs=1e-4)


def test_a_batch_gives_what_single_pairs_give() -> None:
    """The correlation of a pair does not depend on the other pairs of its call, nor on its order."""
    thumbnails = np.stack([thumbnail_of(picture(seed)) for seed in range(300)])
    other = np.roll(thumbnails, 1, axis=0)
    found = correlations(thumbnails, other)
    assert found[7] == pytest.approx(float(correlations(thumbnails[7:8], other[7:8])[0]), abs=1e-5)
    np.testing.assert_allclose(found, correlations(other, thumbnails), atol=1e-5)
    assert len(correlations(thumbnails[:0], other[:0])) == 0


def test_a_minimum_changes_nothing_above_it() -> None:
    """Pairs that reach the minimum have the same correlation as without one; the others stay below it."""
    random = np.random.default_rng(1)
    pictures = [picture(seed) for seed in range(200)]
    crops = []
    for image in pictures:
        left, top, right, bottom = random.integers(0, 28, 4)
        crops.append(image.crop((left, top, 192 - right, 192 - bottom)))
    one, other = (np.stack([thumbnail_of(image) for image in images]) for images in (pictures, crops))
    exact, found = correlations(one, other), correlations(one, other, minimum=0.84)
    assert 20 < (exact >= 0.84).sum() < 200
    np.testing.assert_array_equal(found >= 0.84, exact >= 0.84)
    np.testing.assert_allclose(found[exact >= 0.84], exact[exact >= 0.84], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "is_copy"),
    [
        (lambda image: image.resize((64, 80)), True),
        (lambda image: image.crop((20, 0, 192, 180)), True),
        (lambda image: ImageEnhance.Brightness(image).enhance(0.7), True),
        (lambda image: ImageEnhance.Color(image).enhance(0.5), True),
        (lambda image: ImageEnhance.Contrast(image).enhance(0.6), True),
        (lambda image: image.crop((90, 90, 192, 192)), False),
        (ImageOps.mirror, False),
        (ImageOps.invert, False),
        (lambda image: image.rotate(90), False),
        (lambda _: picture(99), False),
        (lambda _: Image.new("RGB", (192, 192), "grey"), False),
    ],
)
def test_copies_correlate_and_others_do_not(change: Callable[[Image.Image], Image.Image], is_copy: bool) -> None:
    """Scaled, slightly cropped and recoloured copies reach the default threshold; other pictures stay below it."""
    image = picture(5)
    assert (correlation(image, change(image)) >= 0.84) is is_copy


def test_pictures_without_structure_are_alike() -> None:
    """Blank pages correlate with 1, whatever their grey, and with a picture with 0."""
    white, black = (Image.new("RGB", (50, 70), colour) for colour in ("white", "black"))
    assert correlation(white, black) == 1
    assert correlation(white, picture(1)) == 0


# --- groups


def test_copies_are_grouped_around_the_largest(make: Callable[..., Index], tmp_path: Path) -> None:
    """A group needs near vectors and alike pixels; the picture with the most pixels is the best of it."""
    one, other = picture(1), picture(2)
    changed = {"small.png": one.resize((90, 90)), "large.png": one, "cropped.png": one.crop((9, 9, 190, 190))}
    for name, image in (changed | {"other.png": other, "far.png": one}).items():
        image.save(tmp_path / name)
    vector = random_vectors(1, dim=DIM)[0]
    cosines = {"small.png": 0.97, "large.png": 1.0, "cropped.png": 0.9, "other.png": 0.99, "far.png": 0.3}
    vectors = np.stack([near(vector, cosine, seed) for seed, cosine in enumerate(cosines.values())])
    index = make(vectors, [str(tmp_path / name) for name in cosines])
    report = find_duplicates(index, threshold=0.8)
    assert ids_of(report) == [[1, 0, 2]]
    best, small, cropped = report.groups[0]
    assert (best.width, best.height, best.similarity, best.correlation) == (192, 192, 1.0, 1.0)
    assert small.similarity == pytest.approx(0.97, abs=1e-5)
    assert (cropped.width, cropped.size_bytes) == (181, (tmp_path / "cropped.png").stat().st_size)
    assert report.groups[0].is_checked
    assert (report.images, report.redundant, report.unreadable) == (5, 2, ())
    # By vector alone the other picture is one of them, and no file is read.
    alone = find_duplicates(index, threshold=0.8, min_correlation=None)
    assert (sorted(ids_of(alone)[0]), alone.read) == ([0, 1, 2, 3], 0)
    assert not alone.groups[0].is_checked


def test_a_chain_of_small_differences_is_no_group(make: Callable[..., Index]) -> None:
    """Every image of a group is near-equal to its best one, not to another image of it alone."""
    angles = np.radians(10.0 * np.arange(6))  # neighbours have a cosine of 0.985, the next but one 0.94
    vectors = unit(np.stack([np.cos(angles), np.sin(angles), np.zeros(6)], axis=1))
    report = find_duplicates(make(vectors), threshold=0.98, min_correlation=None)
    assert ids_of(report) == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("neighbours", [3, 16])
def test_groups_are_those_of_all_pairs(make: Callable[..., Index], neighbours: int) -> None:
    """Whatever the number of neighbours, groups larger than it are as whole as a comparison of all pairs makes them."""
    random = np.random.default_rng(3)
    centres = random_vectors(12, dim=32)
    of = random.integers(0, 12, 400)
    vectors = unit(centres[of] + 0.02 * random.normal(size=(400, 32)))
    found = find_duplicates(make(vectors), threshold=0.9, min_correlation=None, neighbours=neighbours)
    cosines = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    expected: list[set[int]] = []
    free = set(range(400))
    while free:
        best = min(free)
        members = {number for number in free if cosines[best, number] >= 0.9}
        free -= members
        expected += [members] if len(members) > 1 else []
    assert sorted(map(set, ids_of(found)), key=min) == expected
    assert [len(group) for group in found.groups] == sorted(map(len, expected), reverse=True)


def test_images_of_several_vectors_are_compared_by_their_best(tmp_path: Path) -> None:
    """Where an item has several vectors, the largest cosine of a pair of them counts."""
    vectors = random_vectors(6, dim=DIM).reshape(3, 2, DIM)
    vectors[2, 1] = near(vectors[0, 0], 0.97, 1)
    with Index.create(tmp_path / "several", space=SPACE, dim=DIM, vectors_per_item=2) as index:
        index.add(vectors, [Item(f"/gone/{number}.png", "image") for number in range(3)], space=SPACE)
        report = find_duplicates(index, threshold=0.9, min_correlation=None)
    assert ids_of(report) == [[0, 2]]
    assert report.groups[0].others[0].similarity == pytest.approx(0.97, abs=1e-5)


def test_a_file_that_is_gone_is_compared_by_vector_alone(make: Callable[..., Index], tmp_path: Path) -> None:
    """Missing and damaged files and remote ones are named with the cause; a readable image is the best before them."""
    picture(1).save(tmp_path / "a.png")
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    uris = ["s3://bucket/b.png", str(tmp_path / "gone.png"), str(tmp_path / "damaged.png"), str(tmp_path / "a.png")]
    vector = random_vectors(1, dim=DIM)[0]
    index = make(np.stack([near(vector, 0.999, seed) for seed in range(4)]), uris)
    report = find_duplicates(index)
    (group,) = report.groups
    assert group.best.uri == uris[3]
    assert {image.correlation for image in group.others} == {None}
    assert not group.is_checked
    assert [image.uri for image in report.unreadable] == uris[:3]
    assert [bool(image.problem) for image in group] == [False, True, True, True]
    assert "no such file" in report.unreadable[1].problem
    assert report.read == 1


def test_by_vector_alone_more_is_asked_of_a_cosine(make: Callable[..., Index]) -> None:
    """Images without a file need 0.98, where the threshold is lower, as vectors say little of pixels."""
    vector = random_vectors(1, dim=DIM)[0]
    index = make(np.stack([vector, near(vector, 0.975, 1), near(vector, 0.985, 2)]))
    assert ids_of(find_duplicates(index, threshold=0.5)) == [[0, 2]]
    assert ids_of(find_duplicates(index, threshold=0.99)) == []
    assert ids_of(find_duplicates(index, threshold=0.5, min_correlation=None)) == [[0, 2, 1]]


def test_without_files_metadata_says_which_is_the_best(tmp_path: Path) -> None:
    """Of images whose files are gone the one is best that had the most pixels when it was added."""
    vectors = np.repeat(random_vectors(1, dim=DIM), 3, axis=0)
    sizes = [{}, {"width": 30, "height": 20, "bytes": 9}, {"width": 20, "height": 30, "bytes": 99}]
    with Index.create(tmp_path / "index", space=SPACE, dim=DIM) as index:
        items = [Item(f"/gone/{number}.png", "image", metadata=size) for number, size in enumerate(sizes)]
        index.add(vectors, items, space=SPACE)
        assert ids_of(find_duplicates(index)) == [[2, 0, 1]]


def test_texts_are_left_out(make: Callable[..., Index]) -> None:
    """A text with the vector of an image is in no group, nor are two equal texts."""
    vectors = np.repeat(random_vectors(1, dim=DIM), 5, axis=0)
    kinds = [ItemKind.TEXT, ItemKind.IMAGE, ItemKind.TEXT, ItemKind.IMAGE, ItemKind.AUDIO]
    report = find_duplicates(make(vectors, kinds=kinds))
    assert ids_of(report) == [[1, 3]]
    assert report.images == 2


def test_float16_copies_are_equal(tmp_path: Path) -> None:
    """In a store of float16 equal vectors have a cosine of 1, though rounding changed their length."""
    vectors = np.repeat(random_vectors(20, dim=64), 2, axis=0)
    with Index.create(tmp_path / "half", space=SPACE, dim=64, dtype="float16") as index:
        index.add(vectors, [Item(f"/gone/{number}.png", "image") for number in range(40)], space=SPACE)
        report = find_duplicates(index, threshold=1, min_correlation=None)
    assert sorted(ids_of(report)) == [[number, number + 1] for number in range(0, 40, 2)]


@pytest.mark.parametrize("options", [{"threshold": 1.1}, {"threshold": -0.1}, {"threshold": float("nan")}])
def test_values_out_of_range_are_refused(make: Callable[..., Index], options: dict[str, float]) -> None:
    """The error names the option."""
    with pytest.raises(InputError, match="0 to 1") as error:
        find_duplicates(make(random_vectors(2, dim=DIM)), **options)
    assert error.value.option == "threshold"
    with pytest.raises(InputError) as error:
        find_duplicates(make(random_vectors(2, dim=DIM)), min_correlation=2)
    assert error.value.option == "min_correlation"


def test_a_store_without_images_is_refused(make: Callable[..., Index]) -> None:
    """An empty store and one of texts say so."""
    with pytest.raises(InputError, match="empty"):
        find_duplicates(make(random_vectors(0, dim=DIM)))
    with pytest.raises(InputError, match="none is an image"):
        find_duplicates(make(random_vectors(3, dim=DIM), kinds=[ItemKind.TEXT] * 3))


def test_an_item_that_is_removed_meanwhile_is_an_error_of_the_store(make: Callable[..., Index]) -> None:
    """The error says that the index was changed, rather than that an id is wrong."""
    store: VectorStore = make(np.repeat(random_vectors(1, dim=DIM), 4, axis=0))

    def remove(stage: str, done: int, total: int) -> None:
        store.remove([2])

    with pytest.raises(IndexStoreError, match="changed"):
        find_duplicates(store, on_progress=remove)


def test_nothing_changes(make: Callable[..., Index], tmp_path: Path) -> None:
    """The store keeps its generation, and files stay."""
    for name in ("a.png", "b.png"):
        picture(1).save(tmp_path / name)
    index = make(np.repeat(random_vectors(1, dim=DIM), 2, axis=0), [str(tmp_path / "a.png"), str(tmp_path / "b.png")])
    before = index.generation, sorted(path.name for path in tmp_path.rglob("*"))
    stages: list[str] = []
    find_duplicates(index, on_progress=lambda stage, done, total: stages.append(f"{stage} {done}/{total}"))
    assert (index.generation, sorted(path.name for path in tmp_path.rglob("*"))) == before
    assert stages == ["vectors 2/2", "files 1/2", "files 2/2", "pixels 1/1"]
