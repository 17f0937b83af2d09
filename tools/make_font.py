"""Subset font for contact sheets: `python tools/make_font.py NotoSansCJK-Regular.ttc`.

The input is `usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc` of Debian's package
`fonts-noto-cjk 1:20220127+repack1-1` (`apt-get download`, then `dpkg-deb -x`; older versions are on
https://snapshot.debian.org). The output is the same byte by byte with fonttools as pinned in constraints.txt.

The subset is renamed, as the Open Font License recommends for modified versions; it keeps the copyright notice and the
licence in its name table, and OFL.txt beside it.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterable
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont

OUTPUT = Path(__file__).parents[1] / "client/twinspire/fonts/TwinspireSansSC-Regular.otf"
FAMILY = "Twinspire Sans SC"

_SOURCE_SHA256 = "b76b0433203017ca80401b2ee0dd69350349871c4b19d504c34dbdd80541690a"
_SIMPLIFIED_CHINESE = 2  # the collection's fonts: JP, KR, SC, TC, HK
_SYMBOLS = range(1, 4)  # rows of GB 2312: punctuation, numbering, full-width ASCII
_LEVEL_1 = range(16, 56)  # the 3,755 most frequent characters
_FURTHER = "橘咪筝€‐–—‘’“”•…‰←↑→↓"  # drawn scenes' words beyond level 1, and typographers' punctuation
# Copyright, trademark, manufacturer, designer, their addresses, licence and where it is.
_KEPT_NAMES = (0, 7, 8, 9, 11, 12, 13, 14)


def characters() -> set[str]:
    """Return ASCII, Latin-1, symbols and the level 1 characters of GB 2312, and a few more."""
    found = {chr(code) for code in (*range(0x20, 0x7F), *range(0xA0, 0x100))}
    return found | set(_gb2312((*_SYMBOLS, *_LEVEL_1))) | set(_FURTHER)


def _gb2312(rows: Iterable[int]) -> Iterable[str]:
    for row in rows:
        for cell in range(1, 95):
            try:
                yield bytes((0xA0 + row, 0xA0 + cell)).decode("gb2312")
            except UnicodeDecodeError:  # a cell without a character
                continue


def make_font(source: Path, output: Path) -> None:
    """Write the subset of `source` to `output`. Raises ValueError for another file than the pinned one."""
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    if digest != _SOURCE_SHA256:
        raise ValueError(f"{source} has the sha256 {digest}: expected {_SOURCE_SHA256}, see this script's docstring")
    options = subset.Options(
        font_number=_SIMPLIFIED_CHINESE,
        hinting=False,
        layout_features=[],
        name_IDs=list(_KEPT_NAMES),
        notdef_outline=True,
        recalc_timestamp=False,
    )
    options.drop_tables += ["BASE", "GDEF", "GPOS", "GSUB", "VORG", "vhea", "vmtx"]
    font = subset.load_font(source, options)
    wanted = characters()
    absent = {character for character in wanted if ord(character) not in font.getBestCmap()}
    if absent:
        raise ValueError(f"{source} lacks {''.join(sorted(absent))}")
    subsetter = subset.Subsetter(options)
    subsetter.populate(text="".join(wanted))
    subsetter.subset(font)
    _rename(font)
    subset.save_font(font, output, options)
    print(f"{output}: {len(wanted):,} characters, {output.stat().st_size / 2**10:,.0f} KiB")


def _rename(font: TTFont) -> None:
    postscript = f"{FAMILY.replace(' ', '')}-Regular"
    names = (FAMILY, "Regular", postscript, FAMILY, "subset of Noto Sans CJK SC 2.004", postscript)
    for name_id, text in enumerate(names, start=1):
        font["name"].setName(text, name_id, 3, 1, 0x409)
    cff = font["CFF "].cff
    cff.fontNames = [postscript]
    cff[0].FullName, cff[0].FamilyName = FAMILY, FAMILY


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the subset font of contact sheets.")
    parser.add_argument("source", type=Path, help="NotoSansCJK-Regular.ttc of fonts-noto-cjk 1:20220127+repack1-1")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT, help="the font to write")
    arguments = parser.parse_args()
    make_font(arguments.source, arguments.output)
