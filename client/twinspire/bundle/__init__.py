"""The bundle: one folder with all that is needed to serve or query one model."""

from __future__ import annotations

from twinspire.bundle.folder import Bundle
from twinspire.bundle.manifest import (
    MANIFEST_NAME,
    PROBES_NAME,
    SCHEMA_VERSION,
    TOKENIZER_NAME,
    Certificate,
    EngineRecord,
    FileRecord,
    Manifest,
    ManifestDraft,
    Source,
)
from twinspire.bundle.probes import Probes
from twinspire.bundle.recommendation import RecommendedRuntime
from twinspire.bundle.settings import (
    ImageSettings,
    Interpolation,
    Padding,
    Precision,
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
    "Bundle",
    "BundleWriter",
    "Certificate",
    "EngineRecord",
    "FileRecord",
    "ImageSettings",
    "Interpolation",
    "Manifest",
    "ManifestDraft",
    "Padding",
    "Precision",
    "Probes",
    "RecommendedRuntime",
    "Source",
    "TextSettings",
    "Tower",
    "space_id",
]
