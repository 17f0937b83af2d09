"""Settings of a gateway."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from twinspire.errors import InputError


@dataclass(frozen=True, kw_only=True)
class GatewaySettings:
    """What a gateway serves, and its limits.

    Embeddings are computed by the Tritons at `servers` (HOST:PORT), or with `bundle` alone in this process. `bundle`
    beside `servers` saves asking them for the model's description. The model is called by its bundle's name, or by one
    of `aliases`. `index` is the folder or URI of the index that is searched. A request may have `max_inputs` texts and
    images; while `max_pending` of them are being computed or wait, further ones are refused. Raises InputError for
    neither servers nor bundle.
    """

    servers: tuple[str, ...] = ()
    bundle: Path | None = None
    index: str | None = None
    aliases: tuple[str, ...] = ()
    max_inputs: int = 2048
    max_pending: int = 1024

    def __post_init__(self) -> None:
        if not self.servers and self.bundle is None:
            raise InputError("nothing to serve: name a server of models with --server, or a bundle with --bundle")
