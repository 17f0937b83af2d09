"""Encode images and texts on a server by Triton's generated gRPC stubs alone, without twinspire.

python raw_inputs.py ADDRESS MODEL IMAGE... [--text TEXT]...

The stubs are those in the package tritonclient; for other languages generate them from Triton's grpc_service.proto.
Prints the cosine of each image and each text.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc


def main() -> None:
    """Encode the images and the texts, and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("model")
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--text", action="append", default=[])
    arguments = parser.parse_args()
    with grpc.insecure_channel(arguments.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        files = [path.read_bytes() for path in arguments.images]
        images = encode(stub, f"{arguments.model}_image_bytes", "image_bytes", files)
        texts = encode(stub, f"{arguments.model}_text_raw", "text", [text.encode() for text in arguments.text])
    for path, row in zip(arguments.images, images @ texts.T, strict=True):
        print(path.name, *(f"{cosine:.4f}" for cosine in row))


def encode(stub: service_pb2_grpc.GRPCInferenceServiceStub, model: str, name: str, items: Sequence[bytes]) -> NDArray:
    """Return the embeddings of files or texts, (n, D) float32, L2-normalised; n is at most the largest batch."""
    request = service_pb2.ModelInferRequest(model_name=model)
    tensor = request.inputs.add(name=name, datatype="BYTES", shape=[len(items), 1])
    tensor.contents.bytes_contents.extend(items)
    response = stub.ModelInfer(request, timeout=30)
    return np.frombuffer(response.raw_output_contents[0], "<f4").reshape(response.outputs[0].shape)


if __name__ == "__main__":
    main()
