"""Index a folder of images and search it in words.

python examples/search_folder.py [FOLDER] [--query "a red bus"] [--index FOLDER]

Without FOLDER, 200 scenes are drawn, which the sample model knows. With --index the index is kept, and a second run
encodes only what is new.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from twinspire import Client, Index, Searcher, sample_bundle
from twinspire.ingest import add_images, find_images
from twinspire_eval.scenes import Split, draw_dataset


def main() -> None:
    """Index, search and print the hits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--query", default="a red bus")
    parser.add_argument("--index", type=Path)
    parser.add_argument("-k", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder
        if folder is None:
            folder = Path(temporary) / "scenes"
            draw_dataset(folder, 200, seed=7, split=Split.HELDOUT)
        with Client.local(sample_bundle()) as client:
            path = arguments.index or Path(temporary) / "scenes.index"
            with Index.open_or_create(path, space=client.space, dim=client.dim) as index:
                report = add_images(index, client, find_images([folder]))
                print(f"{report.added} images added, {report.already} known, {len(report.failed)} failed")
                response = Searcher(client, index).search(arguments.query, arguments.k)
        for hit in response.hits:
            print(f"{hit.rank}. {hit.score:.3f}  {hit.uri}")


if __name__ == "__main__":
    main()
