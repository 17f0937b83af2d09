"""Filters over the metadata of items: grammar, syntax tree and explanations, without any store's query language."""
