"""Checkpoint to bundle: its towers and its reranker as fp32 engines, compared with torch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from twinspire.bundle import (
    PROBES_NAME,
    TOKENIZER_NAME,
    Bundle,
    BundleWriter,
    Certificate,
    ManifestDraft,
    Padding,
    Precision,
    Probes,
    Reranker,
    Source,
    Tower,
    TowerProbes,
    space_id,
)
from twinspire.contract import INPUT_NAMES
from twinspire.errors import CheckpointError, InputError
from twinspire.text import Tokenizer
from twinspire.towers.batching import one_batch
from twinspire_export.checkpoint import open_checkpoint
from twinspire_export.dims import allowed_dims
from twinspire_export.engine_check import EngineRunner, certify, check_engine
from twinspire_export.families import Checkpoint
from twinspire_export.onnx_export import export_graph
from twinspire_export.probes import probe_captions, probe_images
from twinspire_export.reranker import RERANKER_FILE, export_reranker
from twinspire_export.rewrite import ALL, apply_rewrites, check_rewrites
from twinspire_export.sounds import PROBES, generated_sounds
from twinspire_export.weights import stored_tensors

MIN_COSINE = 0.99999
"""The smallest cosine to torch that an fp32 engine may have on any probe. Measured: 1 - 1e-7."""

_MAX_NORM_ERROR = 1e-3
_TRACED_LENGTH = 5
_VERSIONS = ("torch", "transformers", "optimum-onnx", "onnx", "onnxruntime")


def export_checkpoint(
    checkpoint: str | Path,
    destination: str | Path,
    *,
    name: str | None = None,
    revision: str | None = None,
    rewrites: Iterable[str] = ALL,
    dims: Sequence[int] | None = None,
    reranker: bool = True,
    on_step: Callable[[str], None] | None = None,
) -> Bundle:
    """Turn a checkpoint, a local folder or a Hugging Face hub id, into the bundle `destination` with fp32 engines.

    `name` is the bundle's, by default the checkpoint's own; `revision` is a branch, tag or commit on the hub.
    `rewrites` are names in `twinspire_export.rewrite.REWRITES`, which make engines faster and change neither embeddings
    nor space; those that the checkpoint's family does not allow are skipped. `dims` are shorter lengths that the model
    was trained for, where the checkpoint does not state them (`allowed_dims`). The bundle has the checkpoint's reranker
    where there is one, unless `reranker` is False. `on_step` is called with a description of each step as it begins.

    Leaves nothing behind where it raises: CheckpointError for a checkpoint that cannot be used and for an engine that
    differs from torch, InputError for an invalid name of the bundle, for rewrites that are unknown or lack another and
    for impossible `dims`, BundleError where `destination` cannot be written.
    """
    chosen = check_rewrites(rewrites)
    step = on_step or (lambda _: None)
    with BundleWriter(destination) as writer:
        step("opening the checkpoint")
        opened = open_checkpoint(checkpoint, revision=revision)
        allowed = allowed_dims(opened.source.folder, opened.dim, dims)
        step("hashing the weights")
        draft = _draft(opened, name, allowed)

        if opened.tokenizer_json is not None:
            writer.path(TOKENIZER_NAME).write_text(opened.tokenizer_json, encoding="utf-8")
        step("encoding the probes with torch")
        probes = _probes(opened, writer.folder / TOKENIZER_NAME)
        probes.save(writer.path(PROBES_NAME))

        applied = [rewrite for rewrite in chosen if rewrite in opened.family.rewrites]
        engines: dict[tuple[Tower, Precision], tuple[str, Certificate | None]] = {}
        for tower in draft.towers.present:
            step(f"exporting the {tower} tower")
            file = f"{tower}.{Precision.FP32}.onnx"
            module = apply_rewrites(opened.tower(tower), applied)
            export_graph(
                module,
                writer.path(file),
                inputs={INPUT_NAMES[tower]: _example(draft, tower)},
                exporter=opened.family.exporter,
            )
            check_engine(writer.folder / file, tower, draft.tower(tower))
            step(f"comparing the {tower} tower with torch")
            engines[tower, Precision.FP32] = (file, _certify(module, writer.folder / file, draft, tower, probes))
        if reranker and opened.reranker_name is not None:
            step(f"exporting the reranker {opened.reranker_name} and comparing it with torch")
            scored = _export_reranker(opened, writer, applied)
            draft = replace(draft, rerankers={opened.reranker_name: scored})
        step("writing the bundle")
        return writer.commit(draft, engines)


def checkpoint_space(opened: Checkpoint) -> str:
    """Compute the space id of a checkpoint's embeddings. Raises CheckpointError where two shards share a tensor."""
    try:
        return space_id(
            stored_tensors(opened.files),
            opened.image,
            opened.tokenizer_json,
            pooling=opened.pooling,
            context_length=0 if opened.text is None else opened.text.context_length,
            audio=opened.audio,
        )
    except InputError as exc:
        raise CheckpointError(f"the checkpoint {opened.source.folder} is malformed: {exc}") from exc


def _draft(opened: Checkpoint, name: str | None, dims: tuple[int, ...] | None) -> ManifestDraft:
    return ManifestDraft(
        name=_bundle_name(opened.source.name) if name is None else name,
        family=opened.family.model_type,
        space=checkpoint_space(opened),
        dim=opened.dim,
        towers=opened.towers,
        logit_scale=opened.logit_scale,
        logit_bias=opened.logit_bias,
        source=Source(checkpoint=opened.source.name, revision=opened.source.revision, licence=opened.source.licence),
        dims=dims,
    )


def _export_reranker(opened: Checkpoint, writer: BundleWriter, rewrites: Sequence[str]) -> Reranker:
    assert opened.image is not None, "a reranker takes an image"
    assert opened.text is not None, "and a text"
    try:
        return export_reranker(
            apply_rewrites(opened.reranker(), rewrites),
            writer.path(RERANKER_FILE),
            image=opened.image,
            tokenizer=Tokenizer(writer.folder / TOKENIZER_NAME, opened.text),
            reference=opened.score_pairs,
        )
    except CheckpointError as exc:
        raise CheckpointError(f"{exc}. The towers alone can be exported by --no-reranker") from exc


def _bundle_name(name: str) -> str:
    """Derive a bundle's name from a hub id or folder name: its last part, other characters replaced by dashes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name.rsplit("/", maxsplit=1)[-1]).lstrip("._-")[:200] or "model"


def _example(draft: ManifestDraft, tower: Tower) -> torch.Tensor:
    """Return the input that a tower is traced on: two rows."""
    shape = (2, *draft.tower(tower).input.shape)
    if tower is Tower.IMAGE:
        return torch.arange(math.prod(shape)).remainder(256).to(torch.uint8).view(shape)
    if tower is Tower.AUDIO:
        return torch.linspace(-100, 20, math.prod(shape)).view(shape)
    context = draft.text.context_length
    length = context if draft.text.padding is Padding.MAX_LENGTH else min(_TRACED_LENGTH, context)
    return torch.full((2, length), draft.text.eos_id, dtype=torch.int32)


def _probes(opened: Checkpoint, tokenizer_path: Path) -> Probes:
    """Encode the probes with torch, without the captions that are longer than the context."""
    towers: dict[Tower, TowerProbes] = {}
    if opened.image is not None:
        images = probe_images(opened.image.height, opened.image.width)
        towers[Tower.IMAGE] = TowerProbes(images, opened.embed_images(images))
    if opened.text is not None:
        tokenizer = Tokenizer(tokenizer_path, opened.text)
        captions = probe_captions(tokenizer)
        towers[Tower.TEXT] = TowerProbes(tokenizer.encode(captions), opened.embed_texts(captions))
    if opened.audio is not None:
        sounds = generated_sounds(PROBES, opened.audio)
        towers[Tower.AUDIO] = TowerProbes(sounds, opened.embed_audio(sounds))
    try:
        return Probes(towers)
    except InputError as exc:
        raise CheckpointError(
            f"the checkpoint {opened.source.folder} does not give embeddings of length 1 in torch itself ({exc}); its "
            "weights hold NaN, infinities or zeros"
        ) from exc


def _certify(module: torch.nn.Module, engine: Path, draft: ManifestDraft, tower: Tower, probes: Probes) -> Certificate:
    inputs, expected = probes.towers[tower]
    if tower is Tower.TEXT:
        # In one batch, so that short captions are padded: the padding must not change their embeddings.
        batch: NDArray[Any] = one_batch(list(inputs), draft.text)
        data = f"{len(expected)} captions in English and Chinese"
    else:
        batch, data = np.asarray(inputs), f"{len(expected)} generated probes"
    measured = EngineRunner(engine).embed([batch])
    if any(parameter.dtype == torch.float16 for parameter in module.parameters()):
        data += "; token embeddings stored in fp16"
    certificate = certify(measured, expected, reference="torch fp32", data=data, packages=_VERSIONS)
    norm_error = float(np.abs(np.linalg.norm(measured, axis=-1) - 1).max())
    if certificate.min_cosine < MIN_COSINE or norm_error > _MAX_NORM_ERROR:
        raise CheckpointError(
            f"the exported {tower} tower differs from torch: on {data} its smallest cosine is "
            f"{certificate.min_cosine:.7f} and its norms differ from 1 by up to {norm_error:.1g}; expected at least "
            f"{MIN_COSINE} and at most {_MAX_NORM_ERROR:g}. Nothing was written. The checkpoint has a feature that "
            "this export does not support: please report it"
        )
    return certificate
