"""Int8 recipes and the graphs that NNCF makes by them."""

from __future__ import annotations
