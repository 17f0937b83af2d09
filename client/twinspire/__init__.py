"""Search pictures in words with a two-tower vision-language model."""

from __future__ import annotations
