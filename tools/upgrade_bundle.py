"""Upgrade of a bundle to the newest schema of bundle.json: `python tools/upgrade_bundle.py OLD NEW`.

The engines stay equal byte for byte. Opening a bundle does not need it: older schemas are still read.
"""

from __future__ import annotations

import sys

from twinspire.bundle import Bundle, BundleWriter

if __name__ == "__main__":
    source, destination = sys.argv[1:]
    bundle = Bundle.open(source)
    with BundleWriter(destination, base=bundle, links=False) as writer:
        writer.commit(bundle.manifest.draft(), {})
