"""Data sets of captioned pictures, from files that others publish and from scenes that are drawn here."""

from __future__ import annotations

from twinspire_bench.datasets.captioned import Caption, CaptionedPictures, Said
from twinspire_bench.datasets.spec import FORMS, Form, open_dataset

__all__ = ["FORMS", "Caption", "CaptionedPictures", "Form", "Said", "open_dataset"]
