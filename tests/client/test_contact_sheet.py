"""What a contact sheet shows, and that it never shows an empty box."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twinspire import font_fallback
from twinspire.contact_sheet import SheetRow, contact_sheet
from twinspire.errors import InputError
from twinspire.font_fallback import TextRenderer, legible


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Write 7 images, each of one colour, of odd shapes."""
    paths = []
    for number in range(7):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (50 + 100 * (number % 2), 90), (30 * number, 250, 255 - 30 * number)).save(path)
        paths.append(path)
    return paths


@pytest.fixture
def no_installed_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take the system's fonts away: what is left is Pillow's font and the one in the package."""
    caches = (font_fallback._installed, font_fallback._path_for, font_fallback._font)
    monkeypatch.setattr(font_fallback, "_FOLDERS", ())
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def drawn(path: Path) -> np.ndarray:
    """Read a sheet as (H, W, 3) uint8."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def has_colour(sheet: np.ndarray, colour: tuple[int, int, int]) -> bool:
    """Tell whether at least 1000 pixels have this colour."""
    return int((sheet == np.array(colour, dtype=np.uint8)).all(axis=2).sum()) > 1000


def test_every_hit_is_on_the_sheet(pictures: list[Path], tmp_path: Path) -> None:
    """The colours of all 7 hits are there, in two lines of images; no characters are missing."""
    destination = tmp_path / "sheet.png"
    row = SheetRow("seven pictures", [(path, 0.5) for path in pictures])
    assert contact_sheet([row], destination) == frozenset()
    sheet = drawn(destination)
    for number in range(7):
        assert has_colour(sheet, (30 * number, 250, 255 - 30 * number)), number
    assert contact_sheet([row, row], destination) == frozenset()
    assert drawn(destination).shape[0] > 1.8 * sheet.shape[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{n}.png" for n in range(7)] + ["sheet.png"]


def test_a_hit_whose_file_is_gone_does_not_stop_the_sheet(pictures: list[Path], tmp_path: Path) -> None:
    """Gone and broken files are drawn as cards, the others as images."""
    (tmp_path / "broken.png").write_text("no picture")
    hits = [(tmp_path / "gone.png", 0.9), (pictures[1], 0.8), (tmp_path / "broken.png", 0.7)]
    contact_sheet([SheetRow("a", hits, image=tmp_path / "gone.png")], tmp_path / "sheet.png")
    assert has_colour(drawn(tmp_path / "sheet.png"), (30, 250, 225))


@pytest.mark.usefixtures("no_installed_fonts")
def test_characters_without_a_font_are_counted_not_drawn_as_boxes(pictures: list[Path], tmp_path: Path) -> None:
    """Without a Thai font the text says so, and the call returns which characters are missing."""
    text, missing = legible("รถสี red 红 ส")
    assert missing == frozenset("รถสี")
    assert not missing & set(text)
    before, shown, after = text.partition(" red 红 ")
    assert shown
    assert "4" in before
    assert "1" in after
    hits = [(tmp_path / "ว.png", 0.9)]
    assert contact_sheet([SheetRow("ส", hits)], tmp_path / "sheet.png") == frozenset("สว")


def test_what_a_font_has_is_told_from_its_empty_box() -> None:
    """Pillow's own font has ASCII and nothing of Chinese; spaces are never missing."""
    assert all(font_fallback._has("", chr(code)) for code in range(32, 127))
    assert not any(font_fallback._has("", character) for character in "红é→ี\u0301")
    assert legible("a\n\t b") == ("a b", frozenset())


def test_text_is_wrapped_and_shortened_to_its_width() -> None:
    """Lines fit; words stay whole; the middle of a name goes first; nothing is lost where there is room."""
    letters = TextRenderer(20)
    words = "many words that need several lines to be shown in full " * 3
    lines = letters.wrap(words, 300, lines=99)
    assert " ".join(lines) == words.strip()
    assert all(letters.width(line) <= 300 for line in lines)
    assert len(letters.wrap(words, 300, lines=2)) == 2
    assert "…" in letters.wrap(words, 300, lines=2)[1]
    assert letters.wrap("x" * 300, 200, lines=2)[0].strip("x") == ""
    name = letters.shorten("a_very_long_name_of_a_file_0001.jpg", 150)
    assert letters.width(name) <= 150
    assert name.startswith("a_v")
    assert name.endswith("1.jpg")
    assert letters.shorten("short.jpg", 150) == "short.jpg"
    assert letters.wrap("", 10, lines=3) == []


def test_a_sheet_needs_rows_and_a_place(tmp_path: Path) -> None:
    """No rows and a missing folder are InputErrors, and nothing is left behind."""
    with pytest.raises(InputError, match="query"):
        contact_sheet([], tmp_path / "sheet.png")
    with pytest.raises(InputError, match="nowhere"):
        contact_sheet([SheetRow("a", [])], tmp_path / "nowhere" / "sheet.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match=r"folder\.png"):
        contact_sheet([SheetRow("a", [])], tmp_path / "folder.png")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_odd_titles_are_drawn(pictures: list[Path], tmp_path: Path) -> None:
    """Empty, enormous, with control characters and with emoji: none stops the sheet."""
    for title in ("", " ", "x" * 5000, "a\x00b\x1b[31m", "🚗 car", "\u200bé"):
        contact_sheet([SheetRow(title, [(pictures[0], 1.0)])], tmp_path / "sheet.png")
