"""`python -m twinspire_bench.engines`: int8 engines compared with onnxruntime, OpenVINO, transformers and fastembed.

Makes ViT-B/32 at full size with random weights, quantizes it, and measures in interleaved rounds, each peer in a
process of its own that is idle while another one computes:

- the image tower on batches of 32;
- the text tower on 5,000 captions in the given order;
- a folder of 640x480 JPEG files to embeddings, and the limit that decoding and tower set;
- one caption, from string to embedding;
- the cosine of int8 to fp32 embeddings of images and captions.
"""

from __future__ import annotations
