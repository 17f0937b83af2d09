"""Evaluation library: what the benchmarks measure with, and what users may measure with.

- `scenes`: synthetic images with captions, generated from a seed
- `datasets`: images with captions, of published formats
- `recall`: retrieval metrics with confidence intervals, in a registry
- `statistics`: percentiles, bootstrap intervals and ratios
- `load`: closed and open loops, interleaved rounds; `payloads`: random inputs that never repeat
- `flops`: operations of an engine; `machine`: hardware and its measured peaks
- `records`: results as JSON documents; `comparison`: two records compared
- `tables`, `smoke`: output and the option `--smoke` of the commands
"""
