"""Model families: all that the export knows of one kind of two-tower checkpoint.

To add a family, write a module beside `clip.py` with a `ModelFamily` and a `Checkpoint`, and list the family here.
"""

from __future__ import annotations

from twinspire_export.families.clap import ClapFamily
from twinspire_export.families.clip import ClipFamily
from twinspire_export.families.family import Checkpoint, CheckpointSource, ModelFamily

__all__ = ["FAMILIES", "Checkpoint", "CheckpointSource", "ModelFamily"]

FAMILIES: dict[str, ModelFamily] = {family.model_type: family for family in (ClipFamily(), ClapFamily())}
"""The families that can be exported, by `model_type` of their config.json."""
