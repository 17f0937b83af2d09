"""Filters: a condition over an item's metadata, parsed, compiled to SQL and explained."""
