"""What can only be checked on a machine with a GPU, in ten minutes: `python -m twinspire_bench.gpu_check`.

Steps run cheapest first; the record is written after each, so that an interrupted run keeps what it has found. With
`--rehearse` the same steps run on a processor: what a GPU is needed for is skipped, with the reason.
"""

from __future__ import annotations
