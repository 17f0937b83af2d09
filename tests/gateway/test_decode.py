"""The decoding mode of a gateway."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from twinspire.bundle import DecodeMode
from twinspire.errors import InputError
from twinspire_server.gateway.embedder import Embedder
from twinspire_server.gateway.settings import GatewaySettings


@pytest.mark.parametrize(("decode", "mode"), [("exact", "exact"), ("scaled", "scaled"), ("auto", "exact")])
def test_the_client_decodes_as_told(tiny: Any, decode: str, mode: str) -> None:
    """A gateway's client has the mode of its settings; `auto` is what the bundle recommends, here nothing."""

    async def opened() -> DecodeMode:
        embedder = await Embedder.open(GatewaySettings(bundle=tiny.bundle.path, decode=decode))
        await embedder.client.close()
        return embedder.client.decode

    assert asyncio.run(opened()) == mode


def test_unknown_mode(tiny: Any) -> None:
    """Another word is an InputError that names the option."""
    with pytest.raises(InputError, match="scaled") as caught:
        GatewaySettings(bundle=tiny.bundle.path, decode="fast")
    assert caught.value.option == "--decode"
