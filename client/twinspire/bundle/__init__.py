"""Bundles: folders with everything needed to serve or query one model. Manifest, engines, tokenizer, probes."""

from __future__ import annotations

from twinspire._decode_mode import DecodeMode
from twinspire.bundle.description import BundleDescription
from twinspire.bundle.folder import Bundle
from twinspire.bundle.manifest import (
    MANIFEST_NAME,
    PROBES_NAME,
    SCHEMA_VERSION,
    TOKENIZER_NAME,
    AudioTowerSpec,
    ImageTowerSpec,
    Manifest,
    ManifestDraft,
    OutputForm,
    Reranker,
    TextTowerSpec,
    TowerSpec,
    TowerSpecs,
)
from twinspire.bundle.probes import Probes, TowerProbes
from twinspire.bundle.records import (
    Certificate,
    DecodeCertificate,
    EngineRecord,
    FileRecord,
    RecommendedRuntime,
    Source,
)
from twinspire.bundle.settings import (
    AudioCut,
    AudioPadding,
    AudioSettings,
    CropRounding,
    ImageSettings,
    Interpolation,
    MelNorm,
    MelScale,
    Padding,
    Precision,
    Resize,
    TextSettings,
    Tower,
)
from twinspire.bundle.space import space_id
from twinspire.bundle.writer import BundleWriter

__all__ = [
    "MANIFEST_NAME",
    "PROBES_NAME",
    "SCHEMA_VERSION",
    "TOKENIZER_NAME",
    "AudioCut",
    "AudioPadding",
    "AudioSettings",
    "AudioTowerSpec",
    "Bundle",
    "BundleDescription",
    "BundleWriter",
    "Certificate",
    "CropRounding",
    "DecodeCertificate",
    "DecodeMode",
    "EngineRecord",
    "FileRecord",
    "ImageSettings",
    "ImageTowerSpec",
    "Interpolation",
    "Manifest",
    "ManifestDraft",
    "MelNorm",
    "MelScale",
    "OutputForm",
    "Padding",
    "Precision",
    "Probes",
    "RecommendedRuntime",
    "Reranker",
    "Resize",
    "Source",
    "TextSettings",
    "TextTowerSpec",
    "Tower",
    "TowerProbes",
    "TowerSpec",
    "TowerSpecs",
    "space_id",
]
