"""Quantization of ONNX graphs to int8, by recipes."""

from __future__ import annotations
