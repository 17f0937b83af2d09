"""Descriptions of scenes, and the split into training and held-out scenes."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from twinspire_eval.scenes.vocabulary import Axis, Background, Colour, ObjectType, Place, Size

HELDOUT_SHARE = 5
"""One family of scenes in this many is held out."""

_ATTEMPTS = 100
"""Number of combinations of other objects that are tried."""


class Split(StrEnum):
    """Split of the scenes: training or held out."""

    TRAIN = "train"
    HELDOUT = "heldout"


@dataclass(frozen=True, order=True)
class Group:
    """`count` equal objects that stand together."""

    kind: ObjectType
    colour: Colour
    size: Size
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.count <= 3:
            raise ValueError(f"a group has 1 to 3 objects, not {self.count}")


@dataclass(frozen=True)
class Scene:
    """One to three objects on a background.

    A lone group has a `place` (a single object) or none (several equal ones); several groups have an `axis` and stand
    along it in the order given.
    """

    background: Background
    groups: tuple[Group, ...]
    axis: Axis | None = None
    place: Place | None = None

    def __post_init__(self) -> None:
        objects = sum(group.count for group in self.groups)
        if not 1 <= objects <= 3:
            raise ValueError(f"a scene has 1 to 3 objects, not {objects}")
        if (len(self.groups) > 1) != (self.axis is not None):
            raise ValueError("several groups need an axis, a lone one must have none")
        if (objects == 1) != (self.place is not None):
            raise ValueError("a single object needs a place, several must have none")

    @property
    def objects(self) -> int:
        """Number of objects in the image."""
        return sum(group.count for group in self.groups)

    @property
    def family(self) -> str:
        """Canonical text of what stays when groups exchange colours or sides.

        Scenes are split by family, so that training sees no rearranged held-out scene either.
        """
        parts = [
            self.background,
            "+".join(sorted(f"{group.count} {group.kind} {group.size}" for group in self.groups)),
            "+".join(sorted(group.colour for group in self.groups)),
            self.axis or "",
            self.place or "",
        ]
        return "|".join(parts)

    @property
    def split(self) -> Split:
        """Split of this scene, computed from its family."""
        digest = hashlib.sha256(self.family.encode()).digest()
        return Split.HELDOUT if int.from_bytes(digest[:8], "big") % HELDOUT_SHARE == 0 else Split.TRAIN


class Detail(StrEnum):
    """What a caption may leave out: all sizes, the background, or where the objects stand."""

    SIZES = "sizes"
    BACKGROUND = "background"
    ARRANGEMENT = "arrangement"


def without(scene: Scene, omitted: Collection[Detail]) -> tuple[Any, ...]:
    """Return a scene's description without some details, to compare it with those of other scenes.

    A caption of one scene that omits these details is true of every scene whose description without them is equal.
    """
    groups = tuple(
        (group.kind, group.colour, group.count, None if Detail.SIZES in omitted else group.size)
        for group in scene.groups
    )
    background = None if Detail.BACKGROUND in omitted else scene.background
    if Detail.ARRANGEMENT in omitted:
        return background, frozenset(groups)
    return background, groups, scene.axis, scene.place


@dataclass(frozen=True)
class Query:
    """What a short query asks for: objects of one type, with the properties that it names; None leaves one open."""

    kind: ObjectType
    colour: Colour | None = None
    size: Size | None = None
    count: int | None = None
    background: Background | None = None

    def matches(self, scene: Scene) -> bool:
        """Return whether a scene shows what the query asks for, whatever else it shows."""
        if self.background not in {None, scene.background}:
            return False
        return any(
            group.kind is self.kind
            and self.colour in {None, group.colour}
            and self.size in {None, group.size}
            and self.count in {None, group.count}
            for group in scene.groups
        )


# Share of each layout in a sample: 75% of the images show two or three objects.
MIX: tuple[tuple[str, float], ...] = (
    ("single", 0.25),
    ("several", 0.10),
    ("pair", 0.40),
    ("triple", 0.15),
    ("several and one", 0.10),
)


def sample_scenes(count: int, *, seed: int, split: Split) -> list[Scene]:
    """Sample `count` different scenes of one split, in the fixed mix of layouts, in random order.

    The same seed gives the same scenes; a longer sample does not begin with the scenes of a shorter one.
    """
    if count < 1:
        raise ValueError(f"count {count}: expected at least 1")
    rng = random.Random(f"scenes/{split}/{seed}")
    layouts = [name for name, _ in MIX]
    wanted = dict.fromkeys(layouts, 0)
    exact = {name: share * count for name, share in MIX}
    for name in layouts:
        wanted[name] = int(exact[name])
    for name in sorted(layouts, key=lambda name: wanted[name] - exact[name])[: count - sum(wanted.values())]:
        wanted[name] += 1
    scenes: list[Scene] = []
    for name in layouts:
        seen: set[Scene] = set()
        for scene in _endless(name, rng, split):
            if len(seen) == wanted[name]:
                break
            seen.add(scene)
        scenes.extend(sorted(seen, key=repr))
    rng.shuffle(scenes)
    return scenes


class Swap(StrEnum):
    """Property that two groups exchange."""

    COLOURS = "colours"
    SIDES = "sides"
    KINDS = "kinds"


def swapped(scene: Scene, swap: Swap, rng: random.Random) -> Scene:
    """Return the scene in which two groups have exchanged their colours, their sides, or their kinds.

    The scene must have two or more groups of different objects. Everything else stays, and so does the family.
    """
    first, second = rng.sample(range(len(scene.groups)), 2)
    a, b = scene.groups[first], scene.groups[second]
    groups = list(scene.groups)
    if swap is Swap.COLOURS:
        groups[first], groups[second] = replace(a, colour=b.colour), replace(b, colour=a.colour)
    elif swap is Swap.SIDES:
        groups[first], groups[second] = b, a
    else:
        # Exchange objects, sizes and counts: only the colours stay.
        groups[first], groups[second] = replace(b, colour=a.colour), replace(a, colour=b.colour)
    return replace(scene, groups=tuple(groups))


def other_kinds(scene: Scene, rng: random.Random) -> Scene | None:
    """Return the scene with other objects in every group, all else equal, in the same split; None if none is found.

    Few held-out scenes of a single object have no such variant in their split.
    """
    unused = [other for other in ObjectType if all(other is not group.kind for group in scene.groups)]
    for _ in range(_ATTEMPTS):
        kinds = rng.sample(unused, len(scene.groups))
        groups = (replace(group, kind=kind) for group, kind in zip(scene.groups, kinds, strict=True))
        other = replace(scene, groups=tuple(groups))
        if other.split is scene.split:
            return other
    return None


class Contrast(StrEnum):
    """Only difference between the scenes of a pair: the colours or sides of the objects, or the objects themselves."""

    SWAP = "swap"
    KIND = "kind"


def sample_pairs(count: int, contrast: Contrast, *, seed: int, split: Split) -> list[tuple[Scene, Scene]]:
    """Sample `count` pairs of scenes that differ in one respect only, each scene at most once the first of a pair.

    Swap pairs show two objects, kind pairs one or two.
    """
    rng = random.Random(f"{contrast}/{split}/{seed}")
    two = _endless("pair", rng, split)
    one_or_two = (two, _endless("single", rng, split))
    pairs: dict[Scene, Scene] = {}
    partner: Scene | None
    while len(pairs) < count:
        if contrast is Contrast.SWAP:
            scene = next(two)
            partner = swapped(scene, rng.choice((Swap.COLOURS, Swap.SIDES)), rng)
        else:
            scene = next(rng.choice(one_or_two))
            partner = other_kinds(scene, rng)
        if partner is not None:
            pairs.setdefault(scene, partner)
    return list(pairs.items())


def _endless(layout: str, rng: random.Random, split: Split) -> Iterator[Scene]:
    """Sample scenes of one layout and split endlessly."""
    makers: dict[str, Callable[[random.Random], Scene]] = {
        "single": _single,
        "several": _several,
        "pair": lambda rng: _lined_up(rng, counts=(1, 1)),
        "triple": lambda rng: _lined_up(rng, counts=(1, 1, 1)),
        "several and one": lambda rng: _lined_up(rng, counts=rng.choice(((1, 2), (2, 1)))),
    }
    while True:
        scene = makers[layout](rng)
        if scene.split == split:
            yield scene


def _single(rng: random.Random) -> Scene:
    group = Group(rng.choice(list(ObjectType)), rng.choice(list(Colour)), rng.choice(list(Size)))
    return Scene(rng.choice(list(Background)), (group,), place=rng.choice(list(Place)))


def _several(rng: random.Random) -> Scene:
    group = Group(rng.choice(list(ObjectType)), rng.choice(list(Colour)), rng.choice(list(Size)), rng.choice((2, 3)))
    return Scene(rng.choice(list(Background)), (group,))


def _lined_up(rng: random.Random, *, counts: tuple[int, ...]) -> Scene:
    kinds = rng.sample(list(ObjectType), len(counts))
    colours = rng.sample(list(Colour), len(counts))
    groups = tuple(
        Group(kind, colour, rng.choice(list(Size)), count)
        for kind, colour, count in zip(kinds, colours, counts, strict=True)
    )
    return Scene(rng.choice(list(Background)), groups, axis=rng.choice(list(Axis)))
