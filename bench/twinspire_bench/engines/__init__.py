"""What the engines bring against what is used today: onnxruntime, OpenVINO, transformers and fastembed, side by side.

`python -m twinspire_bench.engines` makes ViT-B/32 at full size with seeded weights, quantizes it, and measures in
interleaved rounds, each contestant in a process of its own that waits while another computes:

- the image tower on batches of 32;
- the text tower on 5,000 captions in the order given;
- a folder of 640x480 JPEG files to embeddings, and what decoding and tower alone would allow;
- one caption, from string to embedding;
- and how far the int8 engines are from the fp32 ones on photographs and their captions.
"""

from __future__ import annotations
