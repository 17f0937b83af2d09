"""Sizes of the test sets on which recall is published.

| name | split | images | captions | source |
|---|---|---|---|---|
| `coco` | Karpathy's `test` | 5,000 | 25,010 | Karpathy and Fei-Fei, arXiv:1412.2306 |
| `flickr30k` | Karpathy's `test` | 1,000 | 5,000 | the same |
| `coco-cn` | `test` | 1,000 | 1,053, human-written | Li et al., arXiv:1805.08661; Chinese-CLIP takes these captions |
| `flickr30k-cn` | `test` | 1,000 | 5,000 | Lan et al., arXiv:1708.04390; Flickr30k-CNA |
| `xflickrco` | `test` | 2,000 | 2,000 in each language | Bugliarello et al., arXiv:2201.11732 |
| `xm3600` | `test` | 3,600 | 261,375 in 36 languages | Thapliyal et al., arXiv:2205.12522 |
| `xm3600-first` | `first` | 3,600 | 3,600 in each language | the first captions, on which OpenCLIP publishes |

The figures of `muge`, `valid`, are published without the set's size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from twinspire_eval.datasets.captioned import CaptionedImages


@dataclass(frozen=True)
class TestSetSize:
    """Numbers of images and captions, the latter in each language or in all; None where none is published."""

    images: int | None
    captions: int | None
    each_language: bool = False


TEST_SETS = {
    "coco": TestSetSize(5_000, 25_010),
    "flickr30k": TestSetSize(1_000, 5_000),
    "coco-cn": TestSetSize(1_000, 1_053),
    "flickr30k-cn": TestSetSize(1_000, 5_000),
    "muge": TestSetSize(None, None),
    "xflickrco": TestSetSize(2_000, 2_000, each_language=True),
    "xm3600": TestSetSize(3_600, 261_375),
    "xm3600-first": TestSetSize(3_600, 3_600, each_language=True),
}
"""The published test sets by name."""


def as_test_set(data: CaptionedImages, name: str) -> CaptionedImages:
    """Return the data set as the published test set of a name, or with a note on how its size differs from it."""
    size = TEST_SETS[name]
    captions = {language or "": len(data.captions_in(language).texts) for language in data.languages}
    counts = captions if size.each_language else {"": sum(captions.values())}
    wrong = [f"{len(data):,} images, published {size.images:,}"] if size.images not in (None, len(data)) else []
    if size.captions is not None:
        wrong += [
            f"{count:,} captions{f' in {language}' if language else ''}, published {size.captions:,}"
            for language, count in counts.items()
            if count != size.captions
        ]
    if not wrong:
        return replace(data, test_set=name)
    note = f"this is not the whole test set {name}: {'; '.join(wrong)}. Do not compare with published figures"
    return replace(data, note=note)
