"""Model families: all that the export knows of one kind of two-tower checkpoint.

To add a family, write a module beside `clip.py` with a `ModelFamily` and a `Checkpoint`, and list the family here.
"""

from __future__ import annotations

from twinspire_export.families.align import AlignFamily
from twinspire_export.families.altclip import AltClipFamily
from twinspire_export.families.chinese_clip import ChineseClipFamily
from twinspire_export.families.clip import ClipFamily
from twinspire_export.families.dual_encoder import DualEncoderFamily
from twinspire_export.families.family import Checkpoint, CheckpointSource, ModelFamily

__all__ = ["FAMILIES", "Checkpoint", "CheckpointSource", "ModelFamily"]

FAMILIES: dict[str, ModelFamily] = {
    family.model_type: family
    for family in (
        ClipFamily(),
        ChineseClipFamily(),
        AltClipFamily(),
        AlignFamily(),
        DualEncoderFamily(),
    )
}
"""The families that can be exported, by `model_type` of their config.json."""
