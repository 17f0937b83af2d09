"""Opening a checkpoint: a local folder or one of the Hugging Face hub, of any family in the registry."""

from __future__ import annotations

import json
import re
from pathlib import Path

from twinspire.errors import CheckpointError, InputError
from twinspire_export.families import FAMILIES, Checkpoint, CheckpointSource, ModelFamily
from twinspire_export.weights import weight_files

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
    "vocab.txt",
    "sentencepiece.bpe.model",
    "preprocessor_config.json",
    "README.md",
]


def open_checkpoint(checkpoint: str | Path, *, revision: str | None = None) -> Checkpoint:
    """Open a checkpoint, a local folder or a hub id, in float32.

    Reads safetensors only, and runs no code that comes with the checkpoint.

    Raises CheckpointError where it cannot be found, is of an unknown family, is pickled, damaged, lacks tensors or
    files, or has preprocessing that a bundle cannot express.
    """
    source = locate(checkpoint, revision=revision)
    family = _family_of(source.folder)
    files = weight_files(source.folder)
    try:
        return family.open(source, files)
    except (InputError, TypeError, ValueError, KeyError) as exc:
        raise CheckpointError(
            f"the tokenizer or preprocessing of the checkpoint {source.folder} is malformed: {exc}"
        ) from exc


def _family_of(folder: Path) -> ModelFamily:
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise CheckpointError(
            f"the checkpoint {folder} has no config.json: expected the folder of a model in transformers' format"
        )
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        model_type, architectures = config.get("model_type"), config.get("architectures")
    except (OSError, ValueError, AttributeError) as exc:
        raise CheckpointError(f"{config_file} is not a JSON object: {exc}. Download the checkpoint again") from exc
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise CheckpointError(
            f"the checkpoint {folder} has the 'model_type' {model_type!r} in config.json; expected "
            f"{' or '.join(FAMILIES)}, in the format of transformers. Other families cannot be exported yet"
        )
    if architectures is not None and family.architecture not in architectures:
        raise CheckpointError(
            f"the checkpoint {folder} holds {architectures!r} ('architectures' in config.json); expected "
            f"{family.architecture}, which has both towers and their projections"
        )
    return family


def locate(checkpoint: str | Path, *, revision: str | None = None) -> CheckpointSource:
    """Find `checkpoint`: an existing folder, else a hub id, whose files are downloaded to the hub's cache.

    Raises CheckpointError for a path that is not a folder, a hub id that cannot be reached or does not exist, and a
    revision of a folder.
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
            f"{path} is a file: expected a checkpoint's folder or the id of one on the Hugging Face hub"
        )
    hub_id = str(checkpoint)
    if not _HUB_ID.fullmatch(hub_id):
        raise CheckpointError(
            f"no checkpoint {hub_id!r}: there is no such folder, and it is not an id on the Hugging Face hub, such "
            "as OWNER/NAME"
        )
    folder = _download(hub_id, revision)
    # The hub's cache keeps each commit in a folder named by its hash.
    return CheckpointSource(folder=folder, name=hub_id, revision=folder.name, licence=_licence(folder))


def _download(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"]))
    except LocalEntryNotFoundError as exc:
        raise CheckpointError(
            f"no folder {hub_id!r} here, no such checkpoint in the Hugging Face hub's cache, and the hub cannot be "
            "reached. Give a local folder, or connect and try again"
        ) from exc
    except (HfHubHTTPError, HFValidationError, OSError) as exc:
        wanted = hub_id if revision is None else f"{hub_id} at revision {revision}"
        raise CheckpointError(
            f"no folder {hub_id!r} here, and downloading the checkpoint {wanted} from the Hugging Face hub failed: "
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
