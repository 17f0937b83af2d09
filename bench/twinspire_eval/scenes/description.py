"""A scene's description, and the rule that keeps training and held-out scenes apart."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from twinspire_eval.scenes.vocabulary import Axis, Background, Colour, Kind, Place, Size

HELDOUT_SHARE = 5
"""One family of scenes in this many is held out."""

_ATTEMPTS = 100
"""How many combinations of other kinds are tried."""


class Split(StrEnum):
    """Which side of the training a scene belongs to."""

    TRAIN = "train"
    HELDOUT = "heldout"


@dataclass(frozen=True, order=True)
class Group:
    """`count` equal objects that stand together."""

    kind: Kind
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
        """How many objects the picture shows."""
        return sum(group.count for group in self.groups)

    @property
    def family(self) -> str:
        """What stays when colours or sides are exchanged between the groups, as canonical text.

        Splits are made by family, so that not even a rearranged held-out scene was trained on.
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
        """The split this scene belongs to, always the same one."""
        digest = hashlib.sha256(self.family.encode()).digest()
        return Split.HELDOUT if int.from_bytes(digest[:8], "big") % HELDOUT_SHARE == 0 else Split.TRAIN


# What share of a sample each layout has: 75% of the pictures show two or three objects.
MIX: tuple[tuple[str, float], ...] = (
    ("single", 0.25),
    ("several", 0.10),
    ("pair", 0.40),
    ("triple", 0.15),
    ("several and one", 0.10),
)


def sample_scenes(count: int, *, seed: int, split: Split) -> list[Scene]:
    """Draw `count` different descriptions of one split, in the fixed mix, in random order.

    Deterministic for a seed; a longer sample starts with the shorter one's scenes in no particular order.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
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
    """What two groups exchange."""

    COLOURS = "colours"
    SIDES = "sides"
    KINDS = "kinds"


def swapped(scene: Scene, swap: Swap, rng: random.Random) -> Scene:
    """Return the scene in which two groups have exchanged their colours, their sides, or their kinds.

    Needs two or more groups of different kinds; they keep all the rest, so the family stays.
    """
    first, second = rng.sample(range(len(scene.groups)), 2)
    a, b = scene.groups[first], scene.groups[second]
    groups = list(scene.groups)
    if swap is Swap.COLOURS:
        groups[first], groups[second] = replace(a, colour=b.colour), replace(b, colour=a.colour)
    elif swap is Swap.SIDES:
        groups[first], groups[second] = b, a
    else:
        # Sizes and counts go with the kinds: colours alone stay behind.
        groups[first], groups[second] = replace(b, colour=a.colour), replace(a, colour=b.colour)
    return replace(scene, groups=tuple(groups))


def other_kinds(scene: Scene, rng: random.Random) -> Scene | None:
    """Return the scene with every group of another kind, all else equal, in the same split; None if none is found.

    Few held-out scenes of a single object have no such sibling: all of theirs are trained on.
    """
    unused = [kind for kind in Kind if all(kind is not group.kind for group in scene.groups)]
    for _ in range(_ATTEMPTS):
        kinds = rng.sample(unused, len(scene.groups))
        groups = (replace(group, kind=kind) for group, kind in zip(scene.groups, kinds, strict=True))
        other = replace(scene, groups=tuple(groups))
        if other.split is scene.split:
            return other
    return None


class Contrast(StrEnum):
    """What alone tells the two scenes of a pair apart: which object has which colour or side, or what they are."""

    SWAP = "swap"
    KIND = "kind"


def sample_pairs(count: int, contrast: Contrast, *, seed: int, split: Split) -> list[tuple[Scene, Scene]]:
    """Draw `count` pairs of scenes that differ in one respect only, each scene at most once the first of a pair.

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
    """Scenes of one layout and split, for ever."""
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
    group = Group(rng.choice(list(Kind)), rng.choice(list(Colour)), rng.choice(list(Size)))
    return Scene(rng.choice(list(Background)), (group,), place=rng.choice(list(Place)))


def _several(rng: random.Random) -> Scene:
    group = Group(rng.choice(list(Kind)), rng.choice(list(Colour)), rng.choice(list(Size)), rng.choice((2, 3)))
    return Scene(rng.choice(list(Background)), (group,))


def _lined_up(rng: random.Random, *, counts: tuple[int, ...]) -> Scene:
    kinds = rng.sample(list(Kind), len(counts))
    colours = rng.sample(list(Colour), len(counts))
    groups = tuple(
        Group(kind, colour, rng.choice(list(Size)), count)
        for kind, colour, count in zip(kinds, colours, counts, strict=True)
    )
    return Scene(rng.choice(list(Background)), groups, axis=rng.choice(list(Axis)))
