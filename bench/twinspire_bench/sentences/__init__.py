"""`python -m twinspire_bench.sentences`: the texts/s of a sentence encoder beside those of other libraries.

Two comparisons, each measured in interleaved rounds by processes that are idle while another one computes: `strings`,
from text to embedding, and `engine`, of token ids in batches sorted by length, without tokenizing. Every peer gets its
texts sorted by length, the plain engine where it takes ONNX, and as many threads.
"""
