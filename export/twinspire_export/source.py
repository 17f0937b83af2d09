"""Where a checkpoint comes from: a local folder, or the Hugging Face hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from twinspire.errors import CheckpointError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

# What an export reads, at the top of a repository, and nothing else: no pickles, no code.
_HUB_FILES = [
    "config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "preprocessor_config.json",
    "README.md",
]


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint's folder on this machine, and what to call it.

    `name` is the hub id or the folder's name (never the path to it), `revision` the hub's commit, `licence`
    what the model card says.
    """

    folder: Path
    name: str
    revision: str | None
    licence: str | None


def locate(checkpoint: str | Path, *, revision: str | None = None) -> CheckpointSource:
    """Find `checkpoint`: an existing folder, else a hub id, whose files are downloaded to the hub's cache.

    Raises CheckpointError for a path that is no folder, a hub id that cannot be reached or does not exist,
    and a revision given for a folder.
    """
    path = Path(checkpoint).expanduser()
    if str(checkpoint).strip() and path.is_dir():
        if revision is not None:
            raise CheckpointError(
                f"revision {revision!r} was given for the folder {path}; only a checkpoint on the hub has revisions"
            )
        return CheckpointSource(folder=path, name=path.resolve().name, revision=None, licence=_licence(path))
    if str(checkpoint).strip() and path.exists():
        raise CheckpointError(
            f"{path} is a file; expected a checkpoint's folder or the id of one on the Hugging Face hub"
        )
    hub_id = str(checkpoint)
    if not _HUB_ID.fullmatch(hub_id):
        raise CheckpointError(
            f"no checkpoint {hub_id!r}: there is no such folder, and it is no id on the Hugging Face hub (those read "
            "like openai/clip-vit-base-patch32)"
        )
    folder = _download(hub_id, revision)
    # The hub's cache keeps each commit in a folder that bears its hash.
    return CheckpointSource(folder=folder, name=hub_id, revision=folder.name, licence=_licence(folder))


def _download(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"]))
    except LocalEntryNotFoundError as exc:
        raise CheckpointError(
            f"no folder {hub_id!r} here, and the Hugging Face hub cannot be reached to look for a checkpoint of that "
            "name, nor is it in the hub's cache. Give a local folder, or connect and try again"
        ) from exc
    except (HfHubHTTPError, HFValidationError, OSError) as exc:
        wanted = hub_id if revision is None else f"{hub_id} at revision {revision}"
        raise CheckpointError(
            f"no folder {hub_id!r} here, and the Hugging Face hub did not give the checkpoint {wanted}: "
            f"{str(exc).strip().splitlines()[0]}"
        ) from exc


def _licence(folder: Path) -> str | None:
    """Read the licence from the model card's metadata, the YAML between two `---` at the top of README.md."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    lines = card.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != "---":
        return None
    for line in lines[1:]:
        if line.strip() == "---":
            return None
        if match := re.fullmatch(r"license:\s*['\"]?([\w.+-]+)['\"]?\s*", line):
            return match.group(1)
    return None
