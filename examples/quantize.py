"""Quantize a bundle to int8 and say what that costs.

python examples/quantize.py [BUNDLE] [-o NEW]

Needs the extra `quantize`. The sample model has int8 engines already, so by default its fp32 engines are copied to a
bundle of their own first. With images of your own: `twinspire quantize BUNDLE -o NEW --images DIR`.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from twinspire import Bundle, sample_bundle
from twinspire.bundle import PROBES_NAME, BundleWriter, Precision
from twinspire_export import quantize_bundle


def main() -> None:
    """Quantize, and print the size and certificate of each engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = Bundle.open(arguments.bundle) if arguments.bundle else fp32_only(Path(folder) / "fp32")
        quantized = quantize_bundle(bundle, arguments.output or Path(folder) / "int8", on_step=print)
        for tower in quantized.towers:
            for precision in quantized.precisions(tower):
                engine = quantized.manifest.engines[tower][precision]
                cosine = f"mean cosine {engine.certificate.mean_cosine:.4f}" if engine.certificate else "no certificate"
                print(f"{tower:5} {precision:4} {engine.size_bytes / 1e6:6.2f} MB  {cosine}")


def fp32_only(destination: Path) -> Bundle:
    """Write the sample model with the fp32 engines of its towers alone."""
    sample = Bundle.open(sample_bundle())
    engines = {tower: sample.engine(tower, Precision.FP32) for tower in sample.towers}
    with BundleWriter(destination) as writer:
        for file in (sample.tokenizer_path, sample.path / PROBES_NAME, *engines.values()):
            writer.put_file(file.name, file)
        records = {(tower, Precision.FP32): (file.name, None) for tower, file in engines.items()}
        return writer.commit(replace(sample.manifest.draft(), rerankers={}), records)


if __name__ == "__main__":
    main()
