"""Data sets of captioned images, from files that others publish and from scenes that are drawn here."""

from __future__ import annotations

from twinspire_eval.datasets.captioned import Caption, CaptionedImages, Said
from twinspire_eval.datasets.spec import FORMS, Form, open_dataset

__all__ = ["FORMS", "Caption", "CaptionedImages", "Form", "Said", "open_dataset"]
