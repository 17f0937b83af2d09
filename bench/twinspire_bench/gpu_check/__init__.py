"""`python -m twinspire_bench.gpu_check`: the checks that need a machine with a GPU, in ten minutes.

The shortest steps run first; the record is written after each, so that an interrupted run keeps its results. With
`--rehearse` the same steps run on a processor, and those that need a GPU are skipped with the reason.
"""

from __future__ import annotations
