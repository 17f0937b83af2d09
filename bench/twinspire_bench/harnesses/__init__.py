"""Adapters to evaluation harnesses of the field: they drive a bundle's engines as they drive any other model.

`clip_benchmark` for CLIP_benchmark, `mteb` for MTEB and MIEB. Each needs its harness, the extra `harness`.
"""
