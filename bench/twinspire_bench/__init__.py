"""Benchmarks of twinspire: `twinspire bench` and scripts that compare engines, serving and indexes with peers."""
