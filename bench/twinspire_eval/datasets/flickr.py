"""The captions files of Flickr30k (Young et al. 2014), and of Flickr8k, which has the same form.

`results_20130124.token` has a line a caption, `1000092795.jpg#0<TAB>Two young guys ...`; `results.csv`, the form in
which it is passed on, has `1000092795.jpg| 0| Two young guys ...` under a line of names.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from twinspire.errors import InputError
from twinspire_eval.datasets.captioned import Caption
from twinspire_eval.datasets.listing import Listed, caption_of

FOLDERS = [
    *("flickr30k-images", "flickr30k_images", "images", "Images", "Flicker8k_Dataset"),
    *("flickr30k_images/flickr30k_images", "../flickr30k-images", "../flickr30k_images", "../images"),
]
"""Where the images may lie, seen from the file's folder."""

_TOKEN = re.compile(r"(?P<file>[^\t]+)#(?P<number>\d+)\t(?P<caption>.*)")
# One line of the results.csv that is passed on, that of 2199200278.jpg, has lost its second bar.
_BARS = re.compile(r"(?P<file>[^|]+)\|\s*(?P<number>\d+)(?:\s*\||\s\s+)(?P<caption>.*)")


def has_bars(text: str) -> bool:
    """Whether a captions file begins as results.csv does."""
    return text.lstrip()[:64].replace(" ", "").lower().startswith("image_name|")


def read_flickr(path: Path, text: str) -> list[Listed]:
    """List the images of a captions file, in the order in which they come first."""
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    with_bars = has_bars(text)
    if with_bars:
        del lines[0]
    if not lines:
        raise InputError(f"{path} has no captions: expected a line for each")
    captions: dict[str, list[Caption]] = {}
    parse = _parser(path, with_bars=with_bars)
    for number, line in lines:
        file, caption = parse(number, line.rstrip("\r"))
        captions.setdefault(file, []).append(caption)
    return [Listed(file, (file,), tuple(said)) for file, said in captions.items()]


def _parser(path: Path, *, with_bars: bool) -> Callable[[int, str], tuple[str, Caption]]:
    form = _BARS if with_bars else _TOKEN
    example = "name.jpg| 0| caption" if with_bars else "name.jpg#0, a tab and the caption"

    def parse(number: int, line: str) -> tuple[str, Caption]:
        where = f"{path}, line {number}"
        match = form.fullmatch(line)
        if match is None:
            shown = line if len(line) <= 60 else line[:60] + "…"
            raise InputError(f"{where} is {shown!r}: expected {example}")
        return match["file"].strip(), caption_of(match["caption"], None, where)

    return parse
