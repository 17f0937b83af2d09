"""Model families: all that the export knows of one kind of checkpoint.

To add a family, write a module beside `clip.py` with a `ModelFamily` and a `Checkpoint`, and list the family here.
"""

from __future__ import annotations

from twinspire_export.families.altclip import AltClipFamily
from twinspire_export.families.chinese_clip import ChineseClipFamily
from twinspire_export.families.clip import ClipFamily
from twinspire_export.families.family import Checkpoint, CheckpointSource, ModelFamily
from twinspire_export.families.sentence_bert import SentenceBertFamily

__all__ = ["FAMILIES", "Checkpoint", "CheckpointSource", "ModelFamily"]

FAMILIES: dict[str, ModelFamily] = {
    family.model_type: family
    for family in (
        ClipFamily(),
        ChineseClipFamily(),
        AltClipFamily(),
        SentenceBertFamily(),
    )
}
"""The families that can be exported, by `model_type`. The first that recognises a checkpoint opens it."""
