"""What runs the demo's towers: a Triton started for it, or this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from twinspire import Bundle, Client, LocalTowers, TritonTowers
from twinspire.bundle import Tower
from twinspire.errors import MissingDependencyError, ServerError
from twinspire_server.demo.settings import DemoRuntime


@dataclass(frozen=True)
class OpenRuntime:
    """A client and what is behind it. `fallback` says why `auto` did not take Triton."""

    client: Client
    runtime: DemoRuntime
    engine: str
    triton_version: str | None = None
    fallback: str | None = None

    def batches(self) -> tuple[int, int]:
        """How many requests the image tower's server has answered, in how many executions; zeros without a server."""
        towers = self.client.towers
        if not isinstance(towers, TritonTowers):
            return 0, 0
        counted = towers.statistics(Tower.IMAGE)
        return counted.requests, counted.executions


@contextmanager
def open_runtime(bundle: Bundle, wanted: DemoRuntime, folder: Path) -> Iterator[OpenRuntime]:
    """Open the towers of `bundle` as wanted; a server's repository and log go into `folder`.

    Each image is sent to the server in a request of its own, many at once: the server makes the batches. Raises what
    `TritonServer.start` raises where Triton was asked for by name and does not start.
    """
    if wanted is not DemoRuntime.LOCAL:
        from twinspire_server.repository import build_repository
        from twinspire_server.triton import TritonServer

        models = build_repository([bundle.path], folder / "models")
        server = TritonServer(folder / "models", log_file=folder / "triton.log")
        reason: str | None = None
        try:
            server.start()
        except (MissingDependencyError, ServerError) as error:
            if wanted is DemoRuntime.TRITON:
                raise
            reason = str(error)
        if reason is None:
            try:
                with Client.connect(server.grpc_url, bundle, send_images_singly=True) as client:
                    engine = f"Triton {server.version}, {models[0].precision}"
                    yield OpenRuntime(client, DemoRuntime.TRITON, engine, server.version)
            finally:
                server.stop()
            return
    else:
        reason = None
    towers = LocalTowers(bundle)
    with Client(bundle, towers) as client:
        yield OpenRuntime(client, DemoRuntime.LOCAL, str(towers.runtime), fallback=reason)
