"""Measure how well a bundle finds images by their captions.

python examples/evaluate.py [--bundle BUNDLE] [--data scenes:300:7]

DATA is anything that `twinspire bench recall --data` takes: coco:DIR, karpathy:FILE, a CSV of images and captions, ...
"""

from __future__ import annotations

import argparse
from pathlib import Path

from twinspire import Client, sample_bundle
from twinspire_eval.datasets import open_dataset
from twinspire_eval.recall import estimates, rank_both_ways


def main() -> None:
    """Encode images and captions, rank both ways and print R@1, R@5 and R@10 with 95% intervals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=sample_bundle())
    parser.add_argument("--data", default="scenes:300:7")
    arguments = parser.parse_args()
    data = open_dataset(arguments.data)
    with Client.local(arguments.bundle) as client:
        images = client.encode_images(data.images)  # (N, D)
        for language in data.languages:
            captions = data.captions_in(language)
            texts = client.encode_texts(captions.texts)  # (T, D)
            print(f"{data.name}, captions in {language}: {len(images)} images, {len(texts)} captions")
            for direction, ranking in rank_both_ways(images, texts, captions.owners).items():
                found = estimates(ranking)
                for name in ("r1", "r5", "r10"):
                    value, interval = found[name].value, found[name].interval
                    print(f"  {direction:13} {name:3} {value:.3f} (95%: {interval.low:.3f} to {interval.high:.3f})")


if __name__ == "__main__":
    main()
