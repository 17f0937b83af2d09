"""Export of checkpoints to bundles, and of bundles to further precisions. The only package that uses torch.

`export_checkpoint` and `convert_checkpoint` need the extra `export`, `quantize_bundle` the extra `quantize` and no
torch; importing this package needs neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twinspire_export.convert import convert_checkpoint
    from twinspire_export.export import export_checkpoint
    from twinspire_export.quantize import quantize_bundle

__all__ = ["convert_checkpoint", "export_checkpoint", "quantize_bundle"]


def __getattr__(name: str) -> object:
    """Import a public name at first use. Raises MissingDependencyError where a package that it needs is missing."""
    from twinspire_export.dependencies import Extra, require

    if name == "convert_checkpoint":
        require(Extra.EXPORT, "converting a checkpoint")
        from twinspire_export.convert import convert_checkpoint

        return convert_checkpoint
    if name == "export_checkpoint":
        require(Extra.EXPORT, "exporting a checkpoint")
        from twinspire_export.export import export_checkpoint

        return export_checkpoint
    if name == "quantize_bundle":
        require(Extra.QUANTIZE, "quantizing a bundle")
        from twinspire_export.quantize import quantize_bundle

        return quantize_bundle
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
