"""The model `twinspire`, which describes the bundles of a repository: their manifests, tokenizers and contracts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinspire.bundle import MANIFEST_NAME, TOKENIZER_NAME, Manifest, Tower
from twinspire.contract import BUNDLE, CONTRACT, DESCRIPTION_MODEL, FREE, MANIFEST, NAMES, SPACES, TOKENIZER, TensorSpec
from twinspire.errors import BundleError
from twinspire_server.repository.spec import CopiedFile, ModelFile, ModelSpec, WarmUp
from twinspire_server.repository.towers import MODEL_FILE, ServedBundle

DESCRIBES = "describes"
"""The parameter that lists the bundles' names."""
CONTRACT_NAME = "contract.json"
_FOLDER = "bundles"
_MODEL = Path(__file__).with_name("description_model.py")
_INPUT = TensorSpec(BUNDLE, "object", (1,))
_OUTPUTS = [
    *(TensorSpec(name, "object", (FREE,)) for name in (NAMES, SPACES)),
    *(TensorSpec(name, "object", (1,)) for name in (MANIFEST, TOKENIZER, CONTRACT)),
]


@dataclass(frozen=True)
class _Descriptions:
    """The folder with a folder for each bundle: those of `served` are written, those in `kept` copied."""

    served: Sequence[ServedBundle]
    specs: Sequence[ModelSpec]
    kept: Sequence[Path]
    name: str = _FOLDER

    def write(self, path: Path) -> None:
        """Write the folder."""
        path.mkdir()
        for folder in self.kept:
            shutil.copytree(folder, path / folder.name)
        for served in self.served:
            bundle, folder = served.bundle, path / served.bundle.name
            folder.mkdir()
            (folder / MANIFEST_NAME).write_text(bundle.manifest.to_json(), encoding="utf-8")
            if Tower.TEXT in bundle.towers:
                shutil.copyfile(bundle.tokenizer_path, folder / TOKENIZER_NAME)
            document = contract_document(served, self.specs)
            (folder / CONTRACT_NAME).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def description_model(served: Sequence[ServedBundle], specs: Sequence[ModelSpec], repository: Path) -> ModelSpec:
    """Return the model that describes the bundles in `served`, and those that `repository` has beside them."""
    kept = _kept(repository, {bundle.bundle.name for bundle in served})
    names = sorted([*(bundle.bundle.name for bundle in served), *(folder.name for folder in kept)])
    content = names[0].encode()
    files: list[ModelFile] = [CopiedFile(MODEL_FILE, _MODEL), _Descriptions(served, specs, kept)]
    return ModelSpec(
        name=DESCRIPTION_MODEL,
        backend="python",
        max_batch=0,
        inputs=[_INPUT],
        outputs=_OUTPUTS,
        files=files,
        dynamic_batching=False,
        parameters={DESCRIBES: ",".join(names)},
        warm_ups=[WarmUp("1_bundle", 0, (_INPUT,), {BUNDLE: len(content).to_bytes(4, "little") + content})],
    )


def contract_document(served: ServedBundle, specs: Sequence[ModelSpec]) -> dict[str, Any]:
    """Return the models of a bundle that clients call, with their tensors, as Triton's requests name them."""
    bundle = served.bundle
    models = [
        spec
        for spec in specs
        if spec.bundle == bundle.name and spec.called_by is None and (spec.precision is not None or spec.steps)
    ]
    return {
        "bundle": bundle.name,
        "space": bundle.space,
        "dim": bundle.dim,
        "vectors_per_item": bundle.vectors_per_item,
        "models": {
            spec.name: {
                "max_batch": spec.max_batch,
                "inputs": list(map(_tensor, spec.inputs)),
                "outputs": list(map(_tensor, spec.outputs)),
            }
            for spec in models
        },
    }


def _tensor(tensor: TensorSpec) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.triton_type, "shape": list(tensor.shape)}


def _kept(repository: Path, replaced: set[str]) -> list[Path]:
    """List the folders of bundles described before whose models are still there."""
    versions = sorted((repository / DESCRIPTION_MODEL).glob(f"[1-9]*/{_FOLDER}"))
    found = []
    for folder in sorted(versions[-1].iterdir()) if versions else []:
        try:
            manifest = Manifest.from_json((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, BundleError):
            continue  # cannot be served
        is_served = any((repository / f"{folder.name}_{tower}").is_dir() for tower in manifest.towers.present)
        if folder.name not in replaced and is_served:
            found.append(folder)
    return found
