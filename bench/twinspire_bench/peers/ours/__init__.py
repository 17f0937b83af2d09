"""Adapters of twinspire itself, which run in its own environment and are served as those of the peers are."""
