"""Model families: all that the export knows of one kind of checkpoint.

To add a family, write a module beside `clip.py` with a `ModelFamily` and a `Checkpoint`, and list the family here.
"""

from __future__ import annotations

from twinspire_export.families.align import AlignFamily
from twinspire_export.families.altclip import AltClipFamily
from twinspire_export.families.blip_2 import Blip2Family
from twinspire_export.families.chinese_clip import ChineseClipFamily
from twinspire_export.families.clap import ClapFamily
from twinspire_export.families.clip import ClipFamily
from twinspire_export.families.dual_encoder import DualEncoderFamily
from twinspire_export.families.family import Checkpoint, CheckpointSource, ModelFamily
from twinspire_export.families.metaclip_2 import MetaClip2Family
from twinspire_export.families.open_clip import OpenClipFamily
from twinspire_export.families.sentence_bert import SentenceBertFamily
from twinspire_export.families.siglip import SiglipFamily

__all__ = ["FAMILIES", "UNSUPPORTED", "Checkpoint", "CheckpointSource", "ModelFamily"]

FAMILIES: dict[str, ModelFamily] = {
    family.model_type: family
    for family in (
        ClipFamily(),
        OpenClipFamily(),
        MetaClip2Family(),
        SiglipFamily(),
        ChineseClipFamily(),
        AltClipFamily(),
        AlignFamily(),
        DualEncoderFamily(),
        Blip2Family(),
        ClapFamily(),
        SentenceBertFamily(),
    )
}
"""The families that can be exported, by `model_type`. The first that recognises a checkpoint opens it."""

UNSUPPORTED = {
    "siglip2": "SigLIP 2 NaFlex takes images of any number of patches, and a bundle has one size of images. Use a "
    "checkpoint of fixed resolution, such as google/siglip2-base-patch16-224",
}
"""Why a near relative of a family cannot be exported and what to use instead, by `model_type`."""
