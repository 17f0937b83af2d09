"""Loading and preprocessing of images: files and arrays in, uint8 arrays of the image tower's size out."""

from __future__ import annotations

from twinspire.bundle import DecodeMode
from twinspire.images.decode import load_image, load_thumbnail
from twinspire.images.items import ImageItem, ImageLimits
from twinspire.images.preprocess import Preprocessor

__all__ = ["DecodeMode", "ImageItem", "ImageLimits", "Preprocessor", "load_image", "load_thumbnail"]
