"""Encode texts of many tasks at once with asyncio, on servers or in this process.

python examples/encode_async.py [BUNDLE] [--server HOST:PORT ...] [--texts "a red bus" "a blue boat"]

With --server, once or more, the least busy of the servers encodes each call, and this process while none is available.
Prints the cosines of the texts and how the calls were distributed.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

import numpy as np

from twinspire import AsyncClient, sample_bundle


async def encode(arguments: argparse.Namespace) -> None:
    """Encode each text in a task of its own, all at once, and print how similar they are."""
    if arguments.server:
        opening = AsyncClient.connect(arguments.server, arguments.bundle, fallback=arguments.bundle)
    else:
        opening = AsyncClient.local(arguments.bundle)
    async with await opening as client:
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:  # on time-out their requests are cancelled
            tasks = [group.create_task(client.encode_texts([text])) for text in arguments.texts]
        vectors = np.concatenate([task.result() for task in tasks])  # (N, D) float32, L2-normalised
        for text, row in zip(arguments.texts, vectors @ vectors.T, strict=True):
            print("  ".join(f"{cosine:5.2f}" for cosine in row), text, sep="  ")
        if (counters := client.counters) is not None:
            for server in counters.servers:
                print(f"{server.address}: {server.calls} calls, {server.failures} failed")
            print(f"this process: {counters.local_calls} calls")


def main() -> None:
    """Parse the arguments and run the event loop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?", default=sample_bundle())
    parser.add_argument("--server", metavar="HOST:PORT", action="append")
    parser.add_argument("--texts", nargs="+", default=["a red bus", "a blue boat", "一辆红色的公共汽车"])
    asyncio.run(encode(parser.parse_args()))


if __name__ == "__main__":
    main()
