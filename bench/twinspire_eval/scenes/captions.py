"""Captions of a scene from a small grammar with synonyms, in English and in Chinese."""

from __future__ import annotations

import random
from collections.abc import Collection

from twinspire_eval.scenes.description import Detail, Group, Query, Scene
from twinspire_eval.scenes.vocabulary import Axis, Background, Colour, Language, ObjectType, Place, Size

# English: (singular, plural). Chinese: (measure word, noun).
_OBJECTS_EN: dict[ObjectType, tuple[tuple[str, str], ...]] = {
    ObjectType.CAT: (("cat", "cats"), ("kitty", "kitties")),
    ObjectType.DOG: (("dog", "dogs"), ("puppy", "puppies")),
    ObjectType.BIRD: (("bird", "birds"),),
    ObjectType.FISH: (("fish", "fish"),),
    ObjectType.RABBIT: (("rabbit", "rabbits"), ("bunny", "bunnies")),
    ObjectType.TURTLE: (("turtle", "turtles"), ("tortoise", "tortoises")),
    ObjectType.BUTTERFLY: (("butterfly", "butterflies"),),
    ObjectType.CAR: (("car", "cars"), ("automobile", "automobiles")),
    ObjectType.BUS: (("bus", "buses"),),
    ObjectType.BOAT: (("boat", "boats"), ("sailboat", "sailboats")),
    ObjectType.PLANE: (("plane", "planes"), ("airplane", "airplanes")),
    ObjectType.ROCKET: (("rocket", "rockets"), ("spaceship", "spaceships")),
    ObjectType.BALLOON: (("balloon", "balloons"), ("hot-air balloon", "hot-air balloons")),
    ObjectType.HOUSE: (("house", "houses"), ("cottage", "cottages")),
    ObjectType.TENT: (("tent", "tents"),),
    ObjectType.TREE: (("tree", "trees"),),
    ObjectType.FLOWER: (("flower", "flowers"), ("blossom", "blossoms")),
    ObjectType.MUSHROOM: (("mushroom", "mushrooms"), ("toadstool", "toadstools")),
    ObjectType.APPLE: (("apple", "apples"),),
    ObjectType.UMBRELLA: (("umbrella", "umbrellas"), ("parasol", "parasols")),
    ObjectType.CUP: (("cup", "cups"), ("mug", "mugs")),
    ObjectType.HAT: (("hat", "hats"), ("top hat", "top hats")),
    ObjectType.CHAIR: (("chair", "chairs"), ("seat", "seats")),
    ObjectType.KITE: (("kite", "kites"),),
}
_OBJECTS_ZH: dict[ObjectType, tuple[tuple[str, str], ...]] = {
    ObjectType.CAT: (("只", "猫"), ("只", "猫咪")),
    ObjectType.DOG: (("只", "狗"), ("条", "狗")),
    ObjectType.BIRD: (("只", "鸟"), ("只", "鸟儿")),
    ObjectType.FISH: (("条", "鱼"),),
    ObjectType.RABBIT: (("只", "兔子"),),
    ObjectType.TURTLE: (("只", "乌龟"),),
    ObjectType.BUTTERFLY: (("只", "蝴蝶"),),
    ObjectType.CAR: (("辆", "汽车"), ("辆", "轿车")),
    ObjectType.BUS: (("辆", "公交车"), ("辆", "巴士")),
    ObjectType.BOAT: (("艘", "船"), ("条", "船"), ("艘", "帆船")),
    ObjectType.PLANE: (("架", "飞机"),),
    ObjectType.ROCKET: (("枚", "火箭"),),
    ObjectType.BALLOON: (("个", "气球"), ("个", "热气球")),
    ObjectType.HOUSE: (("座", "房子"), ("间", "房子"), ("座", "房屋")),
    ObjectType.TENT: (("顶", "帐篷"),),
    ObjectType.TREE: (("棵", "树"), ("棵", "树木")),
    ObjectType.FLOWER: (("朵", "花"), ("朵", "花儿")),
    ObjectType.MUSHROOM: (("个", "蘑菇"), ("朵", "蘑菇")),
    ObjectType.APPLE: (("个", "苹果"),),
    ObjectType.UMBRELLA: (("把", "伞"), ("把", "雨伞")),
    ObjectType.CUP: (("个", "杯子"), ("只", "杯子")),
    ObjectType.HAT: (("顶", "帽子"), ("顶", "礼帽")),
    ObjectType.CHAIR: (("把", "椅子"),),
    ObjectType.KITE: (("只", "风筝"),),
}
_COLOURS_EN: dict[Colour, tuple[str, ...]] = {
    Colour.RED: ("red", "red", "scarlet"),
    Colour.ORANGE: ("orange",),
    Colour.YELLOW: ("yellow",),
    Colour.GREEN: ("green",),
    Colour.BLUE: ("blue",),
    Colour.PURPLE: ("purple", "purple", "violet"),
    Colour.WHITE: ("white",),
    Colour.BLACK: ("black",),
}
_COLOURS_ZH: dict[Colour, tuple[str, ...]] = {
    Colour.RED: ("红色的", "红色的", "红"),
    Colour.ORANGE: ("橙色的", "橘色的"),
    Colour.YELLOW: ("黄色的", "黄色的", "黄"),
    Colour.GREEN: ("绿色的", "绿色的", "绿"),
    Colour.BLUE: ("蓝色的", "蓝色的", "蓝"),
    Colour.PURPLE: ("紫色的",),
    Colour.WHITE: ("白色的", "白色的", "白"),
    Colour.BLACK: ("黑色的", "黑色的", "黑"),
}
_SIZES_EN: dict[Size, tuple[str, ...]] = {
    Size.SMALL: ("small", "small", "little", "tiny"),
    Size.BIG: ("big", "big", "large"),
}
_SIZES_ZH: dict[Size, tuple[str, ...]] = {
    Size.SMALL: ("小小的", "很小的", "小的"),
    Size.BIG: ("大大的", "很大的", "大的"),
}
_BACKGROUNDS_EN: dict[Background, tuple[str, ...]] = {
    Background.MEADOW: ("in a meadow", "on the grass", "in a green field"),
    Background.SEA: ("at sea", "by the sea", "in front of the ocean"),
    Background.DESERT: ("in the desert", "among sand dunes"),
    Background.NIGHT: ("at night", "under the stars", "in the moonlight"),
    Background.SNOW: ("in the snow", "on a snowy day"),
    Background.CITY: ("in the city", "in front of a skyline", "in town"),
    Background.FOREST: ("in the forest", "in the woods"),
    Background.MOUNTAINS: ("in the mountains", "in front of the mountains"),
}
_BACKGROUNDS_ZH: dict[Background, tuple[str, ...]] = {
    Background.MEADOW: ("草地上", "草原上"),
    Background.SEA: ("海边", "大海前"),
    Background.DESERT: ("沙漠里", "沙漠中"),
    Background.NIGHT: ("夜晚", "夜空下", "星空下"),
    Background.SNOW: ("雪地里", "下雪天"),
    Background.CITY: ("城市里", "城里"),
    Background.FOREST: ("森林里", "树林里"),
    Background.MOUNTAINS: ("山里", "群山前"),
}
_PLACES_EN: dict[Place, tuple[str, ...]] = {
    Place.LEFT: ("on the left", "at the left"),
    Place.RIGHT: ("on the right", "at the right"),
    Place.TOP: ("at the top", "in the upper part"),
    Place.BOTTOM: ("at the bottom", "in the lower part"),
    Place.MIDDLE: ("in the middle", "in the centre"),
}
_PLACES_ZH: dict[Place, tuple[str, ...]] = {
    Place.LEFT: ("左边", "左侧"),
    Place.RIGHT: ("右边", "右侧"),
    Place.TOP: ("上方", "上面"),
    Place.BOTTOM: ("下方", "下面"),
    Place.MIDDLE: ("中间", "中央"),
}
# (first stands before second along the axis, second stands after first)
_SIDES_EN: dict[Axis, tuple[tuple[str, ...], tuple[str, ...]]] = {
    Axis.ACROSS: (("left of", "to the left of"), ("right of", "to the right of")),
    Axis.DOWN: (("above", "over"), ("below", "under")),
}
_SIDES_ZH: dict[Axis, tuple[tuple[str, ...], tuple[str, ...]]] = {
    Axis.ACROSS: (("左边", "左侧"), ("右边", "右侧")),
    Axis.DOWN: (("上面", "上方"), ("下面", "下方")),
}
_ORDER_EN: dict[Axis, str] = {Axis.ACROSS: "from left to right", Axis.DOWN: "from top to bottom"}
_ORDER_ZH: dict[Axis, str] = {Axis.ACROSS: "从左到右", Axis.DOWN: "从上到下"}
_COUNTS_EN = {2: "two", 3: "three"}
_COUNTS_ZH = {1: "一", 2: "两", 3: "三"}


TEMPLATES: dict[Language, tuple[str, ...]] = {
    Language.ENGLISH: ("a picture of {}", "a photo of {}", "an image of {}", "a drawing of {}", "a picture with {}"),
    Language.CHINESE: ("{}的图片", "{}的照片", "一张图片，{}", "图中有{}", "画面里有{}"),
}
"""What people put around the words that matter."""


def in_template(text: str, language: Language, rng: random.Random) -> str:
    """Return a text within one of the `TEMPLATES`."""
    return rng.choice(TEMPLATES[language]).format(text)


def some_details(rng: random.Random) -> frozenset[Detail]:
    """Return details that a text leaves out as users' queries do: each of them half of the time."""
    return frozenset(detail for detail in Detail if rng.random() < 0.5)


def caption(
    scene: Scene,
    language: Language,
    rng: random.Random,
    *,
    omit: Collection[Detail] = (),
    synonyms: bool = True,
) -> str:
    """Return a caption of a scene, with synonyms chosen by `rng`.

    The caption names everything but what it is told to `omit`: objects, colours, sizes, counts, sides and background.
    Without `synonyms` an English caption calls each type of object by one noun, always the same.
    """
    if language is Language.ENGLISH:
        return _english(scene, rng, omit, synonyms)
    return _chinese(scene, rng, omit)


def query_text(query: Query, language: Language, rng: random.Random) -> str:
    """Return a short query in words, with synonyms chosen by `rng`."""
    return (_english_query if language is Language.ENGLISH else _chinese_query)(query, rng)


def _english_query(query: Query, rng: random.Random) -> str:
    words = [rng.choice(_SIZES_EN[query.size])] if query.size is not None else []
    words += [rng.choice(_COLOURS_EN[query.colour])] if query.colour is not None else []
    singular, plural = rng.choice(_OBJECTS_EN[query.kind])
    if query.count is not None and query.count > 1:
        words = [_COUNTS_EN[query.count], *words, plural]
    else:
        words = [*words, singular]
        if rng.random() < 0.7:
            words = [_article(words[0]), *words]
    where = [rng.choice(_BACKGROUNDS_EN[query.background])] if query.background is not None else []
    return " ".join(words + where)


def _chinese_query(query: Query, rng: random.Random) -> str:
    size = rng.choice(_SIZES_ZH[query.size]) if query.size is not None else ""
    colour = rng.choice(_COLOURS_ZH[query.colour]) if query.colour is not None else ""
    measure, noun = rng.choice(_OBJECTS_ZH[query.kind])
    if query.count is not None or rng.random() < 0.5:
        text = f"{_COUNTS_ZH[query.count or 1]}{measure}{size}{colour}{noun}"
    elif rng.random() < 0.5:
        text = f"{size}{colour}{noun}"
    else:
        text = f"{size}{colour.removesuffix('的')}{noun}"
    if query.background is None:
        return text
    where = rng.choice(_BACKGROUNDS_ZH[query.background])
    return f"{where}的{text}" if rng.random() < 0.5 else f"{where}，{text}"


def _english(scene: Scene, rng: random.Random, omit: Collection[Detail], synonyms: bool) -> str:
    arranged = Detail.ARRANGEMENT not in omit
    where = "" if Detail.BACKGROUND in omit else rng.choice(_BACKGROUNDS_EN[scene.background])
    things = [_english_group(group, rng, Detail.SIZES not in omit, synonyms) for group in scene.groups]
    if scene.place is not None:
        text = things[0]
        if arranged:
            text += " " + rng.choice(_PLACES_EN[scene.place])
    elif scene.axis is None:
        text = things[0]
    elif not arranged:
        shuffled = rng.sample(things, len(things))
        text = ", ".join(shuffled[:-1]) + " and " + shuffled[-1]
    elif len(things) == 2:
        before, after = _SIDES_EN[scene.axis]
        if rng.random() < 0.5:
            text = f"{things[0]} {rng.choice(before)} {things[1]}"
        else:
            text = f"{things[1]} {rng.choice(after)} {things[0]}"
    else:
        listed = ", ".join(things[:-1]) + " and " + things[-1]
        order = _ORDER_EN[scene.axis]
        text = f"{order}, {listed}" if rng.random() < 0.5 else f"{listed} {order}"
    if not where:
        return text
    return f"{where}, {text}" if rng.random() < 0.3 else f"{text}, {where}"


def _english_group(group: Group, rng: random.Random, sized: bool, synonyms: bool) -> str:
    nouns = _OBJECTS_EN[group.kind]
    singular, plural = rng.choice(nouns if synonyms else nouns[:1])
    colour = rng.choice(_COLOURS_EN[group.colour])
    words = ([rng.choice(_SIZES_EN[group.size])] if sized else []) + [colour]
    if group.count > 1:
        return " ".join([_COUNTS_EN[group.count], *words, plural])
    return " ".join([_article(words[0]), *words, singular])


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _chinese(scene: Scene, rng: random.Random, omit: Collection[Detail]) -> str:
    arranged = Detail.ARRANGEMENT not in omit
    where = "" if Detail.BACKGROUND in omit else rng.choice(_BACKGROUNDS_ZH[scene.background])
    things = [_chinese_group(group, rng, Detail.SIZES not in omit) for group in scene.groups]
    if scene.place is not None:
        text = things[0]
        if arranged:
            place = rng.choice(_PLACES_ZH[scene.place])
            text = f"{place}有{text}" if rng.random() < 0.5 else f"{text}在{place}"
    elif scene.axis is None:
        text = things[0]
    elif not arranged:
        text = "和".join(rng.sample(things, len(things)))
    elif len(things) == 2:
        before, after = _SIDES_ZH[scene.axis]
        if rng.random() < 0.5:
            text = f"{things[0]}在{things[1]}的{rng.choice(before)}"
        else:
            text = f"{things[1]}在{things[0]}的{rng.choice(after)}"
    else:
        text = f"{_ORDER_ZH[scene.axis]}是" + "、".join(things[:-1]) + "和" + things[-1]
    return f"{where}，{text}" if where else text


def _chinese_group(group: Group, rng: random.Random, sized: bool) -> str:
    measure, noun = rng.choice(_OBJECTS_ZH[group.kind])
    size = rng.choice(_SIZES_ZH[group.size]) if sized else ""
    return f"{_COUNTS_ZH[group.count]}{measure}{size}{rng.choice(_COLOURS_ZH[group.colour])}{noun}"
