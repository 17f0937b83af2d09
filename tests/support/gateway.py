"""A gateway that listens in a thread of this process, with all of its settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from support.live_gateway import serving
from twinspire_server.gateway.settings import GatewaySettings


@contextmanager
def served(settings: GatewaySettings) -> Iterator[str]:
    """Serve a gateway on a free port; yield its address. Raises what opening the gateway raises."""
    with serving(settings, **vars(settings.safety)) as gateway:
        yield gateway.url
