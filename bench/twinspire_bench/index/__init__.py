"""Benchmark of indexes, ours and those of other libraries: recall against queries/s, build time and memory."""
