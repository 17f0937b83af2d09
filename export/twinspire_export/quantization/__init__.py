"""Int8: recipes, the graphs that NNCF makes by them, and the search for a good one."""

from __future__ import annotations
