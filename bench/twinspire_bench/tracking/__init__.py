"""Benchmarks that are followed over time: a plan of steps, the history of their records, and the gate between two."""
