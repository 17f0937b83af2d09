"""Which releases may take each other's place: those whose models give vectors of one space, of the same inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from twinspire.bundle import MANIFEST_NAME, Manifest, Tower
from twinspire.bundle.folder import read_manifest
from twinspire.bundle.manifest import TOKENIZER_NAME
from twinspire.bundle.space import tokenizer_essence
from twinspire.errors import InputError, SpaceMismatchError
from twinspire_server.repository.config import CONFIG, read_config
from twinspire_server.repository.installation import versions
from twinspire_server.repository.spec import BUNDLE, MANIFEST


@dataclass(frozen=True, kw_only=True)
class _ServedTower:
    """A tower's model: its bundle's manifest and tokenizer (JSON; None without text tower)."""

    model: str
    tower: Tower
    manifest: Manifest
    tokenizer: str | None


def check_interchangeable(release: Path, served: Path) -> None:
    """Raise where a tower of the repository `release` differs from the model of its name in `served` in its inputs.

    Raises SpaceMismatchError for another space, InputError for another preprocessing or tokenizer of the same space and
    for a config that cannot be read, BundleError for a manifest that cannot be read.
    """
    for config in sorted(release.glob(f"*/{CONFIG}")):
        if not (served / config.parent.name / CONFIG).is_file():
            continue
        own, known = _read_tower(config.parent), _read_tower(served / config.parent.name)
        if own is not None and known is not None:
            _check_equal(own, known)


def _read_tower(model: Path) -> _ServedTower | None:
    """Read what a model's newest version has of its bundle; None where it is no tower or has nothing of it."""
    parameters = {name: value.string_value for name, value in read_config(model).parameters.items()}
    version = model / str(max(versions(model), default=0))
    bundle = next((folder for folder in (version / BUNDLE, version / MANIFEST) if folder.is_dir()), None)
    if not parameters.get("tower") or bundle is None:
        return None
    tokenizer = bundle / TOKENIZER_NAME
    return _ServedTower(
        model=model.name,
        tower=Tower(parameters["tower"]),
        manifest=Manifest.from_json(read_manifest(bundle / MANIFEST_NAME, "a copy of a bundle")),
        tokenizer=tokenizer.read_text(encoding="utf-8") if tokenizer.is_file() else None,
    )


def _check_equal(own: _ServedTower, known: _ServedTower) -> None:
    if own.manifest.space != known.manifest.space:
        raise SpaceMismatchError(
            f"the model {own.model} is of another space than the version that is served",
            expected=known.manifest.space,
            found=own.manifest.space,
        )
    if own.manifest.tower(own.tower) != known.manifest.tower(known.tower):
        raise InputError(
            f"the {own.tower} tower of {own.model} has another preprocessing or other tensors than the version that is "
            "served, though the same space"
        )
    texts = [tower.tokenizer for tower in (own, known) if tower.tokenizer is not None]
    if len(set(texts)) > 1 and tokenizer_essence(texts[0]) != tokenizer_essence(texts[1]):
        raise InputError(
            f"the model {own.model} has another tokenizer than the version that is served, though the same space"
        )
