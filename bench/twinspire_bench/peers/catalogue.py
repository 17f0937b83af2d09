"""Catalogues of peers: TOML files that name each peer's adapter and what pip installs into its environment."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from twinspire._codec import OPTIONAL, decode
from twinspire.errors import InputError

BUILT_IN = Path(__file__).with_name("catalogue.toml")
DEFAULT_MIN_COSINE = 0.99


class PeerKind(StrEnum):
    """What a peer does: encode images and texts, or store vectors and search them."""

    EMBEDDING = "embedding"
    STORE = "store"

    @property
    def reference(self) -> str:
        """The name of twinspire's own peer, which the others are compared with."""
        return {PeerKind.EMBEDDING: "twinspire", PeerKind.STORE: "twinspire-index"}[self]


@dataclass(frozen=True)
class Environment:
    """A Python environment: its name and what pip installs into it."""

    name: str
    requirements: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PeerDescription:
    """A peer as a catalogue describes it.

    `adapter` is a Python file, seen from the catalogue's folder (see `adapters/serve.py`); `environment` a name of the
    catalogue's environments, None for twinspire's own; `options` what the adapter gets; a peer with `needs_checkpoint`
    runs the checkpoint instead of the bundle. Vectors with a mean cosine to the fp32 engine's below `min_cosine`,
    by default 0.99, are other vectors.
    """

    kind: PeerKind
    adapter: Path
    environment: str | None = field(default=None, metadata=OPTIONAL)
    options: Mapping[str, Any] | None = field(default=None, metadata=OPTIONAL)
    needs_checkpoint: bool | None = field(default=None, metadata=OPTIONAL)
    min_cosine: float | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class CataloguedPeer:
    """A peer of an opened catalogue. `environment` None is twinspire's own."""

    name: str
    kind: PeerKind
    adapter: Path
    environment: Environment | None
    options: Mapping[str, Any]
    needs_checkpoint: bool
    min_cosine: float

    @property
    def is_reference(self) -> bool:
        """Whether the others of its kind are compared with it."""
        return self.name == self.kind.reference


@dataclass(frozen=True, kw_only=True)
class _Catalogue:
    environments: Mapping[str, tuple[str, ...]] | None = field(default=None, metadata=OPTIONAL)
    peers: Mapping[str, PeerDescription]


def open_catalogue(file: Path = BUILT_IN) -> dict[str, CataloguedPeer]:
    """Read a catalogue: its peers by name, in its order.

    Raises InputError, with the place, where it cannot be read, an adapter does not exist or an environment is unknown.
    """
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # TOMLDecodeError is a ValueError, as is text that is not UTF-8
        raise InputError(f"the catalogue {file} cannot be read: {error}. Expected a TOML file of peers") from error
    catalogue = decode(_Catalogue, document, str(file))
    environments = catalogue.environments or {}
    peers = {}
    for name, described in catalogue.peers.items():
        adapter = file.parent / described.adapter
        if not adapter.is_file():
            raise InputError(
                f"{file}: the adapter of {name} is {described.adapter}: expected a Python file in {file.parent}"
            )
        chosen = described.environment
        if chosen is not None and chosen not in environments:
            known = ", ".join(environments) or "none"
            raise InputError(
                f"{file}: the environment of {name} is {chosen!r}: expected one of its environments: {known}"
            )
        peers[name] = CataloguedPeer(
            name=name,
            kind=described.kind,
            adapter=adapter.absolute(),
            environment=None if chosen is None else Environment(chosen, environments[chosen]),
            options=described.options or {},
            needs_checkpoint=bool(described.needs_checkpoint),
            min_cosine=DEFAULT_MIN_COSINE if described.min_cosine is None else described.min_cosine,
        )
    return peers


def choose_peers(names: Sequence[str] | None, further: Path | None = None) -> list[CataloguedPeer]:
    """Return the built-in peers and those of a `further` catalogue, or only the named ones and their references.

    Raises InputError for an unknown name, and for a further peer that has the name of a built-in one.
    """
    peers = open_catalogue()
    if further is not None:
        added = open_catalogue(further)
        if taken := [name for name in added if name in peers]:
            raise InputError(f"{further}: {', '.join(taken)} is the name of a built-in peer: expected other names")
        peers |= added
    if names is None:
        return list(peers.values())
    if unknown := [name for name in names if name not in peers]:
        raise InputError(
            f"unknown peer {', '.join(map(repr, unknown))}: expected some of {', '.join(peers)}", option="--peers"
        )
    kinds = {peers[name].kind for name in names}
    return [peer for peer in peers.values() if peer.name in names or (peer.is_reference and peer.kind in kinds)]
