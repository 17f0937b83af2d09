"""Serve a bundle with a Triton Inference Server and encode texts on it.

python examples/serve_and_query.py [BUNDLE] [--texts "a red bus" "a blue boat"]

Needs the extra `server`. Prints how far the server's embeddings are from those of the engines in this process.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from twinspire import Client, sample_bundle
from twinspire_server.repository import build_repository
from twinspire_server.triton import TritonServer


def main() -> None:
    """Build a model repository, serve it, encode there and here, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?", default=sample_bundle())
    parser.add_argument("--texts", nargs="+", default=["a red bus", "a blue boat", "一辆红色的公共汽车"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = build_repository([arguments.bundle], Path(folder) / "models")
        print(f"built {', '.join(model.name for model in models)}")
        with (
            TritonServer(Path(folder) / "models") as server,
            Client.connect(server.grpc_url, arguments.bundle) as remote,
            Client.local(arguments.bundle) as local,
        ):
            print(f"serving at {server.grpc_url}")
            served = remote.encode_texts(arguments.texts)  # (N, D) float32, L2-normalised
            difference = np.abs(served - local.encode_texts(arguments.texts)).max()
            print(f"{served.shape[0]} texts of {served.shape[1]} numbers, largest difference {difference:.1e}")
            for text, row in zip(arguments.texts, served @ served.T, strict=True):
                print("  ".join(f"{cosine:5.2f}" for cosine in row), text, sep="  ")


if __name__ == "__main__":
    main()
