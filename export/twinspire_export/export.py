"""Checkpoint to bundle: both towers as fp32 engines, measured against torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from twinspire.bundle import (
    PROBES_NAME,
    TOKENIZER_NAME,
    Bundle,
    BundleWriter,
    Certificate,
    ManifestDraft,
    Precision,
    Probes,
    Source,
    Tower,
    TowerSpecs,
    space_id,
)
from twinspire.contract import padded
from twinspire.errors import CheckpointError, InputError
from twinspire.text import Tokenizer
from twinspire_export.certificate import EngineRunner, certify
from twinspire_export.checkpoint import Checkpoint, open_checkpoint
from twinspire_export.engine_check import check_engine
from twinspire_export.onnx_export import export_graph
from twinspire_export.probes import CAPTIONS, probe_images
from twinspire_export.rewrite import ALL, apply_rewrites, check_rewrites
from twinspire_export.towers import ImageTower, TextTower
from twinspire_export.weights import stored_tensors

MIN_COSINE = 0.99999
"""The least cosine that an fp32 engine may have to torch on any probe. Seen: 1 - 1e-7."""

# Both ways of pooling that transformers knows end at the same token; `text_settings` refuses a checkpoint
# where not.
_POOLING = "end token"
_VERSIONS = ("torch", "transformers", "optimum-onnx", "onnx", "onnxruntime")


def export_checkpoint(
    checkpoint: str | Path,
    destination: str | Path,
    *,
    name: str | None = None,
    revision: str | None = None,
    rewrites: Iterable[str] = ALL,
    on_step: Callable[[str], None] | None = None,
) -> Bundle:
    """Turn a Hugging Face CLIP checkpoint, a local folder or a hub id, into the bundle `destination`.

    `name` is the bundle's, by default the checkpoint's own; `revision` is a branch, tag or commit on the hub;
    `rewrites` are names out of `twinspire_export.rewrite.REWRITES`; they make engines faster and change neither
    embeddings nor space. `on_step` is told in a few words what begins. Makes fp32 engines only.

    Nothing is left where it fails: CheckpointError for a checkpoint that cannot be used and for an engine
    that differs from torch, InputError for a name that a bundle cannot have and a rewrite that is not known or
    lacks another, BundleError where `destination` cannot be written.
    """
    chosen = check_rewrites(rewrites)
    step = on_step or (lambda _: None)
    with BundleWriter(destination) as writer:
        step("opening the checkpoint")
        opened = open_checkpoint(checkpoint, revision=revision)
        step("hashing the weights")
        draft = _draft(opened, name)

        writer.path(TOKENIZER_NAME).write_text(opened.tokenizer_json, encoding="utf-8")
        step("encoding the probes with torch")
        probes = _probes(opened, Tokenizer(writer.folder / TOKENIZER_NAME, opened.text))
        probes.save(writer.path(PROBES_NAME))

        engines: dict[tuple[Tower, Precision], tuple[str, Certificate | None]] = {}
        for tower in Tower:
            step(f"exporting the {tower} tower")
            file = f"{tower}.{Precision.FP32}.onnx"
            plain = ImageTower(opened.model, opened.image) if tower is Tower.IMAGE else TextTower(opened.model)
            export_graph(apply_rewrites(plain, chosen), writer.path(file))
            check_engine(writer.folder / file, tower, dim=opened.dim, size=opened.image.size)
            step(f"comparing the {tower} tower with torch")
            engines[tower, Precision.FP32] = (
                file,
                _certify(writer.folder / file, tower, probes, opened.text.pad_id),
            )
        step("writing the bundle")
        return writer.commit(draft, engines)


def checkpoint_space(opened: Checkpoint) -> str:
    """Name the space of a checkpoint's embeddings. Raises CheckpointError where two shards hold the same tensor."""
    try:
        return space_id(
            stored_tensors(opened.files),
            opened.image,
            opened.tokenizer_json,
            pooling=_POOLING,
            context_length=opened.text.context_length,
        )
    except InputError as exc:
        raise CheckpointError(f"the checkpoint {opened.source.folder} is malformed: {exc}") from exc


def _draft(opened: Checkpoint, name: str | None) -> ManifestDraft:
    return ManifestDraft(
        name=_plain(opened.source.name) if name is None else name,
        family=opened.family,
        space=checkpoint_space(opened),
        dim=opened.dim,
        towers=TowerSpecs.of_contract(opened.image, opened.text, dim=opened.dim),
        logit_scale=opened.logit_scale,
        logit_bias=None,
        source=Source(checkpoint=opened.source.name, revision=opened.source.revision, licence=opened.source.licence),
    )


def _probes(opened: Checkpoint, tokenizer: Tokenizer) -> Probes:
    """Encode the probes with torch; captions of more tokens than the context are left out."""
    pictures = probe_images(opened.image.size)
    captions = [text for text in CAPTIONS if len(opened.tokenizer(text)["input_ids"]) <= opened.text.context_length]
    image_embedding, text_embedding = opened.embed_images(pictures), opened.embed_texts(captions)
    try:
        return Probes(
            image=pictures,
            input_ids=tokenizer.encode(captions),
            image_embedding=image_embedding,
            text_embedding=text_embedding,
        )
    except InputError as exc:
        raise CheckpointError(
            f"the checkpoint {opened.source.folder} does not give embeddings of length 1 in torch itself ({exc}); its "
            "weights hold NaN, infinities or zeros"
        ) from exc


def _certify(engine: Path, tower: Tower, probes: Probes, pad_id: int) -> Certificate:
    runner = EngineRunner(engine)
    if tower is Tower.IMAGE:
        measured, expected = runner.embed([probes.image]), probes.image_embedding
        data = f"{len(expected)} drawn probes"
    else:
        # All in one batch, so that the short ones are padded: what stands right of the end must not matter.
        measured = runner.embed([padded(probes.input_ids, pad_id)])
        expected = probes.text_embedding
        data = f"{len(expected)} captions in English and Chinese"
    certificate = certify(measured, expected, reference="torch fp32", data=data, packages=_VERSIONS)
    if certificate.min_cosine < MIN_COSINE:
        raise CheckpointError(
            f"the exported {tower} tower differs from torch: its least cosine on {data} is "
            f"{certificate.min_cosine:.7f}, at least {MIN_COSINE} is required. Nothing was written; the checkpoint has "
            "something that this export does not know, please report it"
        )
    return certificate


def _plain(name: str) -> str:
    """Make a bundle's name out of a hub id or folder name: its last part, other characters as dashes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name.rsplit("/", maxsplit=1)[-1]).lstrip("._-")[:200] or "model"
