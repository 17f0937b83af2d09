"""The index that the page's tests show: pictures of many shapes, captions in two languages, hostile texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from twinspire import Client, Index
from twinspire.ingest import Captions, IngestOptions, add_images, add_texts
from twinspire.stores import BundleReference
from twinspire_eval.scenes import Split, scene_set

COUNT = 130
HOSTILE = '<img src=x onerror="window.hacked=1"> \u202e<script>window.hacked=1</script>'
_SHAPES = ((256, 256), (256, 192), (256, 144), (192, 256), (256, 128))


@dataclass(frozen=True)
class PageIndex:
    """The index's folder, and the files of its pictures: item ID is `files[ID]`."""

    path: Path
    files: list[Path]
    captions: list[str]


def make_page_index(client: Client, folder: Path) -> PageIndex:
    """Draw scenes, cut them to several shapes, and index them; the last one has a hostile caption and metadata."""
    scenes = scene_set(COUNT, seed=11, split=Split.HELDOUT)
    files = [folder / f"scene{number:03}.jpg" for number in range(COUNT)]
    captions: dict[str, list[str]] = {}
    metadata: dict[str, dict[str, object]] = {}
    for number, (scene, file) in enumerate(zip(scenes, files, strict=True)):
        width, height = _SHAPES[number % len(_SHAPES)]
        scene.draw().crop((0, 0, width, height)).save(file, quality=90)
        captions[file.name] = list(scene.captions.values())
        metadata[file.name] = {
            "background": scene.scene.background.value,
            "colours": sorted({group.colour.value for group in scene.scene.groups}),
            "shot date": f"20{10 + number % 10}-05-17",
            "exposure": number / 10,
        }
    captions[files[-1].name] = [HOSTILE]
    metadata[files[-1].name]["background"] = HOSTILE
    texts = folder / "texts.txt"
    texts.write_text("a red house by the sea\nשלום עולם\n", encoding="utf-8")
    reference = BundleReference("scenes")
    with Index.create(folder / "index", space=client.space, dim=client.dim, bundle=reference) as index:
        options = IngestOptions(captions=Captions(captions, folder=folder, metadata=metadata))
        add_images(index, client, files, options)
        add_texts(index, client, [texts])
    return PageIndex(folder / "index", files, ["\n".join(captions[file.name]) for file in files])
