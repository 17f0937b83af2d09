"""Scenes: deterministic, never equal, held-out apart from training, captions that tell them apart."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from twinspire.errors import InputError
from twinspire_eval.scenes import (
    Background,
    Colour,
    Contrast,
    Language,
    ObjectType,
    Scene,
    Split,
    Swap,
    caption,
    draw_dataset,
    draw_pairs,
    draw_scene,
    other_kinds,
    sample_pairs,
    sample_scenes,
    scene_set,
    swapped,
)


def _is_chinese(text: str) -> bool:
    return any("\u4e00" <= letter <= "\u9fff" for letter in text)


def test_the_world_is_as_large_as_promised() -> None:
    """At least 20 kinds, 8 colours and 6 backgrounds."""
    assert len(ObjectType) >= 20
    assert len(Colour) == 8
    assert len(Background) >= 6


@pytest.mark.parametrize("kind", list(ObjectType))
def test_every_kind_and_colour_shows_its_colour(kind: ObjectType) -> None:
    """An object changes the pixels where it stands, and differently for each colour."""
    pictures = []
    for colour in Colour:
        (scene,) = (
            scene for scene in [next(s for s in sample_scenes(60, seed=1, split=Split.TRAIN) if s.objects == 1)]
        )
        group = type(scene.groups[0])(kind, colour, scene.groups[0].size)
        picture = draw_scene(Scene(scene.background, (group,), place=scene.place), random.Random(5))
        pictures.append(np.asarray(picture, dtype=np.int16))
    for a, b in itertools.combinations(pictures, 2):
        assert np.abs(a - b).max() > 60


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_a_seed_gives_the_same_scenes_and_pictures(seed: int) -> None:
    """Descriptions, captions and pixels depend on the seed alone."""
    first, again = (scene_set(5, seed=seed, split=Split.HELDOUT) for _ in range(2))
    assert first == again
    assert np.array_equal(np.asarray(first[0].draw()), np.asarray(again[0].draw()))


def test_a_seed_gives_the_same_scenes_in_every_release() -> None:
    """Names such as scenes:40:3 stand for the same captions and image seeds for ever."""
    digest = hashlib.sha256()
    for entry in scene_set(40, seed=3, split=Split.HELDOUT):
        digest.update("|".join([entry.key, *entry.captions.values()]).encode())
    assert digest.hexdigest()[:16] == "04768a6ba871de33"


def test_training_and_heldout_share_no_description() -> None:
    """No held-out scene, nor its arrangement with colours or sides exchanged, is ever trained on."""
    train = {scene.family for scene in sample_scenes(20_000, seed=1, split=Split.TRAIN)}
    heldout = sample_scenes(5_000, seed=2, split=Split.HELDOUT)
    pairs = [sample_pairs(200, contrast, seed=3, split=Split.HELDOUT) for contrast in Contrast]
    paired = [scene for some in pairs for pair in some for scene in pair]
    assert not train & {scene.family for scene in heldout + paired}


@pytest.mark.parametrize("count", [7, 100, 5_000])
def test_a_sample_has_the_size_and_the_mix(count: int) -> None:
    """A sample has as many different scenes as asked for, at least 60% of them with two or three objects."""
    scenes = sample_scenes(count, seed=5, split=Split.HELDOUT)
    assert len(set(scenes)) == count
    assert sum(scene.objects >= 2 for scene in scenes) >= 0.6 * count


def test_captions_of_a_set_all_differ() -> None:
    """Within one set no two scenes share a caption, in either language."""
    entries = scene_set(3_000, seed=5, split=Split.HELDOUT)
    for language in Language:
        assert len({entry.captions[language] for entry in entries}) == len(entries)


def test_captions_are_in_their_language() -> None:
    """An English caption holds no Chinese character, a Chinese one no Latin letter."""
    for entry in scene_set(300, seed=9, split=Split.TRAIN):
        assert entry.captions[Language.ENGLISH].isascii()
        assert _is_chinese(entry.captions[Language.CHINESE])
        assert not any(letter.isascii() and letter.isalpha() for letter in entry.captions[Language.CHINESE])


def test_synonyms_say_the_same_scene_in_many_ways() -> None:
    """One scene has many captions."""
    scene = next(scene for scene in sample_scenes(50, seed=1, split=Split.TRAIN) if len(scene.groups) == 2)
    rng = random.Random(0)
    for language in Language:
        assert len({caption(scene, language, rng) for _ in range(200)}) > 20


def test_swap_pairs_differ_in_binding_alone() -> None:
    """A swap pair has the same kinds, colours and background in another arrangement."""
    pairs = sample_pairs(200, Contrast.SWAP, seed=7, split=Split.HELDOUT)
    assert len(pairs) == 200
    for a, b in pairs:
        assert a != b
        assert a.family == b.family


def test_kind_pairs_differ_in_kinds_alone() -> None:
    """A kind pair has the same colours, sizes, places and background, and no kind in common."""
    pairs = sample_pairs(200, Contrast.KIND, seed=7, split=Split.HELDOUT)
    assert len(pairs) == 200
    for a, b in pairs:
        assert (a.background, a.axis, a.place) == (b.background, b.axis, b.place)
        assert [(g.colour, g.size, g.count) for g in a.groups] == [(g.colour, g.size, g.count) for g in b.groups]
        assert not {group.kind for group in a.groups} & {group.kind for group in b.groups}


@pytest.mark.parametrize("swap", list(Swap))
def test_a_swap_exchanges_one_thing(swap: Swap) -> None:
    """Exchanging colours, sides or kinds gives another scene of the same family; exchanging again gives the first."""
    for scene in sample_scenes(100, seed=1, split=Split.TRAIN):
        if len(scene.groups) != 2:
            continue
        once = swapped(scene, swap, random.Random(0))
        assert once != scene
        assert once.family == scene.family
        assert swapped(once, swap, random.Random(0)) == scene
        colours = [group.colour for group in once.groups]
        kept = [group.colour for group in scene.groups]
        assert (colours == kept) == (swap is Swap.KINDS)


def test_other_kinds_stay_in_the_split() -> None:
    """A scene of other kinds is of the same split, and almost every scene has one."""
    rng = random.Random(0)
    for split in Split:
        others = [other_kinds(scene, rng) for scene in sample_scenes(100, seed=1, split=split)]
        found = [other for other in others if other is not None]
        assert len(found) >= 95
        assert {other.split for other in found} == {split}


def test_no_two_pictures_are_equal() -> None:
    """The same description drawn twice gives two pictures."""
    scene = sample_scenes(1, seed=1, split=Split.TRAIN)[0]
    pictures = {draw_scene(scene, random.Random(seed)).tobytes() for seed in range(50)}
    assert len(pictures) == 50


def test_a_drawn_folder_is_in_coco_form(tmp_path: Path) -> None:
    """The folder holds JPEG files of 224 px or more and captions.json with one caption a language and picture."""
    draw_dataset(tmp_path / "scenes", 12, seed=7, split=Split.HELDOUT)
    document = json.loads((tmp_path / "scenes" / "captions.json").read_text(encoding="utf-8"))
    assert len(document["images"]) == 12
    assert len(document["annotations"]) == 24
    by_id = {image["id"]: image for image in document["images"]}
    for annotation in document["annotations"]:
        assert _is_chinese(annotation["caption"]) == (annotation["language"] == "zh")
        assert annotation["image_id"] in by_id
    for image in document["images"]:
        with Image.open(tmp_path / "scenes" / image["file_name"]) as picture:
            assert picture.format == "JPEG"
            assert picture.size == (image["width"], image["height"])
            assert min(picture.size) >= 224


def test_a_folder_of_swap_pairs_is_told_apart_by_the_order_of_words(tmp_path: Path) -> None:
    """Files 2i and 2i + 1 are a pair; its English captions differ only in the order of the words."""
    entries = draw_pairs(tmp_path, 20, Contrast.SWAP, seed=7, split=Split.HELDOUT)
    assert len(list(tmp_path.glob("*.jpg"))) == 40
    for a, b in zip(entries[::2], entries[1::2], strict=True):
        first, second = (entry.captions[Language.ENGLISH].replace(",", "").split() for entry in (a, b))
        assert first != second
        articles = {"a", "an"}
        assert sorted(set(first) - articles) == sorted(set(second) - articles)


def test_a_folder_with_files_is_left_alone(tmp_path: Path) -> None:
    """Drawing into a folder that holds something is an error that names it, and changes nothing."""
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(InputError, match=tmp_path.name):
        draw_dataset(tmp_path, 3, seed=7, split=Split.HELDOUT)
    assert [file.name for file in tmp_path.iterdir()] == ["keep.txt"]
