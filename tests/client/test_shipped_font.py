"""The font that the package brings: what it covers, and that a sheet looks the same on every machine."""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageFont

from twinspire import font_fallback
from twinspire.contact_sheet import SheetRow, contact_sheet
from twinspire.font_fallback import legible
from twinspire_bench.search.inputs import named_scenes, scene_queries
from twinspire_eval.scenes import Language, Split, scene_set
from twinspire_server.demo import QUERIES

FONT = Path(font_fallback.__file__).parent / "fonts" / "TwinspireSansSC-Regular.otf"

Fonts = Callable[[Path], None]


@pytest.fixture
def fonts_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fonts]:
    """Let installed fonts be looked for in one folder only."""
    caches = (font_fallback._installed, font_fallback._path_for, font_fallback._font)

    def look_in(folder: Path) -> None:
        monkeypatch.setattr(font_fallback, "_FOLDERS", (str(folder),))
        for cached in caches:
            cached.cache_clear()

    yield look_in
    monkeypatch.undo()
    for cached in caches:
        cached.cache_clear()


def level_1() -> str:
    """The 3,755 most frequent characters of GB 2312."""
    codes = itertools.product(range(0xB0, 0xD8), range(0xA1, 0xFF))
    return b"".join(map(bytes, codes)).decode("gb2312", errors="ignore")


def test_everything_that_the_sample_can_say_is_covered() -> None:
    """Captions, names and queries of drawn scenes, the demo's queries, ASCII, full-width forms, GB 2312 level 1."""
    scenes = named_scenes(400, seed=3)
    texts = [*QUERIES, string.printable, "。，、；：？！…—·《》（）“”‘’【】￥％１２３ＡＢＣ", level_1()]
    texts += [query.text for query in scene_queries(scenes, seed=3)]
    texts += [scene.caption for scene in scenes]
    texts += [scene.captions[Language.CHINESE] for scene in scene_set(400, seed=5, split=Split.TRAIN)]
    assert len(level_1()) == 3755
    absent = {character for character in "".join(texts) if not font_fallback._has(str(FONT), character)}
    assert absent <= set(string.whitespace)


def test_a_machine_without_fonts_shows_chinese(fonts_in: Fonts, tmp_path: Path) -> None:
    """No character of the demo's queries is missing where no font is installed."""
    fonts_in(tmp_path)
    rows = [SheetRow(query, []) for query in QUERIES]
    assert contact_sheet(rows, tmp_path / "sheet.png") == frozenset()
    assert [legible(query)[0] for query in QUERIES] == list(QUERIES)


def test_a_sheet_is_the_same_with_and_without_installed_fonts(fonts_in: Fonts, tmp_path: Path) -> None:
    """An installed font that also has the characters is not taken before the one that the package brings."""
    (tmp_path / "system").mkdir()
    (tmp_path / "system" / "NotoSans-Regular.ttf").write_bytes(FONT.read_bytes())
    Image.new("RGB", (30, 20), "red").save(tmp_path / "红色.png")
    rows = [SheetRow(text, [(tmp_path / "红色.png", 0.5), ("café，一只猫", 0.4)]) for text in (*QUERIES, "naïve → 红")]
    sheets = []
    for folder in ("system", "none"):
        fonts_in(tmp_path / folder)
        contact_sheet(rows, tmp_path / "sheet.png")
        sheets.append((tmp_path / "sheet.png").read_bytes())
    assert sheets[0] == sheets[1]


def test_an_installed_font_has_what_the_shipped_one_lacks(fonts_in: Fonts, tmp_path: Path) -> None:
    """Characters beyond the shipped font come from the system where it has them."""
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib brings DejaVu Sans")
    dejavu = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
    fonts_in(tmp_path)
    assert legible("غ")[1] == frozenset("غ")
    (tmp_path / dejavu.name).write_bytes(dejavu.read_bytes())
    fonts_in(tmp_path)
    assert legible("غ") == ("غ", frozenset())


def test_the_font_carries_its_own_name_and_licence() -> None:
    """The subset has a name of its own, names the Open Font License, and the licence's text lies beside it."""
    assert ImageFont.truetype(FONT, 12).getname() == ("Twinspire Sans SC", "Regular")
    assert "SIL OPEN FONT LICENSE" in FONT.with_name("OFL.txt").read_text(encoding="utf-8")
    assert FONT.stat().st_size < 1_500_000
