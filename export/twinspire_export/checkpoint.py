"""Opening a checkpoint: a local folder or one of the Hugging Face hub, of any family in the registry."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twinspire.errors import CheckpointError, InputError
from twinspire_export.families import FAMILIES, UNSUPPORTED, Checkpoint, CheckpointSource, ModelFamily
from twinspire_export.families.huggingface import OPEN_CLIP_CONFIG
from twinspire_export.families.open_clip import OPEN_CLIP_WEIGHTS, OpenClipFamily
from twinspire_export.weights import INDEX_FILE, WEIGHTS_FILE, stored_shapes

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

# What an export reads, and nothing else: no pickles, no code, no weights in subfolders.
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
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_WEIGHTS,
    "preprocessor_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "*_Pooling/config.json",
    "README.md",
]

CONVERTIBLE_HUB_FILES = [
    *_HUB_FILES,
    "*.txt",
    "*.model",
    "open_clip_config.json",
    "pytorch_model.bin",
    "pytorch_model-*.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
]
"""What a conversion reads: the same, and pickles, which nothing else downloads."""

_OWN_CODE = (
    "Its model is a program that comes with it ('auto_map' in config.json), and such programs are never run. Look for "
    "a conversion of the same weights to a class of transformers"
)
_ONE_TOWER = re.compile(r"_(vision|text|audio)_model$")
_MIN_LIKENESS = 0.6  # difflib's own default


def open_checkpoint(checkpoint: str | Path, *, revision: str | None = None) -> Checkpoint:
    """Open a checkpoint, a local folder or a hub id, in float32.

    Reads safetensors only, and runs no code that comes with the checkpoint.

    Raises CheckpointError where it cannot be found, is of an unknown family, is pickled, damaged, lacks tensors or
    files, or has preprocessing that a bundle cannot express.
    """
    source = locate(checkpoint, revision=revision)
    family = _family_of(source.folder)
    files = family.weight_files(source.folder)
    try:
        return family.open(source, files)
    except (InputError, TypeError, ValueError, KeyError) as exc:
        raise CheckpointError(
            f"the tokenizer or preprocessing of the checkpoint {source.folder} is malformed: {exc}"
        ) from exc


def _is_open_clip(folder: Path) -> bool:
    """Whether only OpenCLIP's files can be read: many repositories have transformers' as well, which are preferred."""
    if not (folder / OPEN_CLIP_CONFIG).is_file():
        return False
    if not (folder / "config.json").is_file():
        return True
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        return not (folder / INDEX_FILE).is_file()
    return any(name.startswith("visual.") for name in stored_shapes((weights,)))


def _family_of(folder: Path) -> ModelFamily:
    if _is_open_clip(folder):
        return FAMILIES[OpenClipFamily.model_type]
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise CheckpointError(
            f"the checkpoint {folder} has no config.json: expected the folder of a model in transformers' format, or "
            f"in OpenCLIP's with {OPEN_CLIP_CONFIG}"
        )
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        model_type, architectures = config.get("model_type"), config.get("architectures")
        family = next((family for family in FAMILIES.values() if family.recognises(folder, config)), None)
    except (OSError, ValueError, AttributeError) as exc:
        raise CheckpointError(f"{config_file} is not a JSON object: {exc}. Download the checkpoint again") from exc
    if family is None:
        raise CheckpointError(
            f"the checkpoint {folder} has the 'model_type' {model_type!r} and the 'architectures' {architectures!r} in "
            f"config.json, which cannot be exported. {_remedy(config)}"
        )
    named = _words(architectures)
    if family.architecture_in_config and architectures is not None and family.architecture not in named:
        remedy = _OWN_CODE if "auto_map" in config else "A model of one tower, or with another head, lacks tensors"
        raise CheckpointError(
            f"the checkpoint {folder} holds {architectures!r} ('architectures' in config.json); expected "
            f"{family.architecture}, which has both towers and their projections. {remedy}"
        )
    return family


def _remedy(config: dict[str, Any]) -> str:
    """Say what kind of model a config.json of no known family describes, and which known family is the closest."""
    model_type, architectures = config.get("model_type"), config.get("architectures")
    supported = f"Supported: {', '.join(FAMILIES)}; `twinspire export --list` shows examples"
    if "auto_map" in config:
        return f"{_OWN_CODE}. {supported}"
    words = _words([model_type]) + _words(architectures)
    if words and (reason := UNSUPPORTED.get(words[0])):
        return f"{reason}. {supported}"
    names = {name: family for family in FAMILIES.values() for name in (family.architecture, family.model_type)}
    for word in words:
        family = names.get(_ONE_TOWER.sub("", word))
        if family is not None and word not in names:
            return (
                f"It is one tower of {family.model_type}; expected {family.architecture}, which has both. {supported}"
            )
        if close := difflib.get_close_matches(word, names, n=1, cutoff=_MIN_LIKENESS):
            closest = names[close[0]]
            return f"The closest supported one is {closest.model_type} ({closest.architecture}). {supported}"
    return supported


def _words(values: object) -> list[str]:
    return [value for value in values if isinstance(value, str)] if isinstance(values, list) else []


def locate(
    checkpoint: str | Path, *, revision: str | None = None, files: Sequence[str] = _HUB_FILES
) -> CheckpointSource:
    """Find `checkpoint`: an existing folder, else a hub id, whose `files` are downloaded to the hub's cache.

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
    folder = _download(hub_id, revision, files)
    # The hub's cache keeps each commit in a folder named by its hash.
    return CheckpointSource(folder=folder, name=hub_id, revision=folder.name, licence=_licence(folder))


def _download(hub_id: str, revision: str | None, files: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        # Folders are those of modules alone: what else a repository has in them is no part of the model's.
        return Path(
            snapshot_download(hub_id, revision=revision, allow_patterns=list(files), ignore_patterns=["model-*/*"])
        )
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
