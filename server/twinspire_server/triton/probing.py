"""Probing: the probes of a served model's bundle, sent to a running server and compared with their embeddings.

The embeddings in probes.npz are those of the fp32 reference. What a server answers may differ from them as far as the
certificate of its engine says, and by what other processors and bf16 add to that.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire.bundle import MANIFEST_NAME, Certificate, Manifest, Precision, Probes, Tower, TowerProbes
from twinspire.bundle.folder import check_probes, read_manifest
from twinspire.bundle.manifest import PROBES_NAME, TOKENIZER_NAME
from twinspire.bundle.space import tokenizer_essence
from twinspire.contract import EMBEDDING, INPUT_NAMES, padded
from twinspire.errors import InputError, ServerError, SpaceMismatchError
from twinspire_server.repository.config import CONFIG, HttpRequest, read_config
from twinspire_server.repository.installation import versions
from twinspire_server.repository.spec import BUNDLE, PROBES
from twinspire_server.triton.ports import LOOPBACK

_UNCERTIFIED_COSINE = 0.99
"""The bound for an engine without a certificate."""
_TOLERANCE = 1e-3
"""How far below its certificate's minimum a cosine may be: probes are other inputs than the certificate's (the sample's
int8 text engine has 0.99958 on them, 0.99968 in its certificate), and a server may compute on another processor or in
bf16."""
_TIMEOUT_S = 60.0
_SHOWN = 500


@dataclass(frozen=True, eq=False, kw_only=True)
class ModelProbes:
    """A model of a repository and its bundle's probes.

    `bound` is the lowest cosine that its engine may have to a probe's embedding; `max_batch` the most rows of a
    request, `text_length` the length that texts are padded to. `manifest` and `tokenizer` (JSON; None without text
    tower) are its bundle's.
    """

    model: str
    version: int
    tower: Tower
    precision: str
    probes: TowerProbes
    bound: float
    max_batch: int
    text_length: int
    manifest: Manifest
    tokenizer: str | None

    def requests(self) -> list[HttpRequest]:
        """Return inferences of all probes, in order, by Triton's HTTP protocol."""
        rows: Any = self.probes.inputs
        if self.tower is Tower.TEXT:
            rows = padded(list(rows), self.manifest.text.pad_id, self.text_length)
        size = self.max_batch or 1
        return [
            _request(INPUT_NAMES[self.tower], self._datatype, np.asarray(rows[start : start + size]))
            for start in range(0, len(rows), size)
        ]

    @property
    def _datatype(self) -> str:
        return self.manifest.tower(self.tower).input.triton_type


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """How a served model's answers compare with its probes.

    `cosine` is the lowest cosine of an answer to its probe's embedding, `bound` what it may be at least; both are None
    for a model without probes in the repository. `problem` says why there is no cosine although there are probes.
    """

    model: str
    version: int
    precision: str | None = None
    cosine: float | None = None
    bound: float | None = None
    problem: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the model may be served: it has no probes, or answers within the bound. False for NaN."""
        if self.problem is not None:
            return False
        return self.bound is None or (self.cosine is not None and self.cosine >= self.bound)

    def __str__(self) -> str:
        name = f"{self.model} version {self.version}" + (f" ({self.precision})" if self.precision else "")
        if self.problem is not None:
            return f"{name}: {self.problem}"
        if self.bound is None:
            return f"{name}: no probes"
        return f"{name}: cosine {self.cosine:.6f} to its probes, at least {self.bound:.6f} expected"

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON document; a cosine that is not a number is null."""
        document = asdict(self)
        if self.cosine is not None and not math.isfinite(self.cosine):
            document["cosine"] = None
        return document


def read_probes(model: Path) -> ModelProbes | None:
    """Read the probes of a model's newest version; None where it is no tower or has none in the repository.

    Raises InputError for a config and BundleError for a bundle that cannot be read.
    """
    config = read_config(model)
    parameters = {name: value.string_value for name, value in config.parameters.items()}
    version = max(versions(model), default=0)
    folders = [model / str(version) / name for name in (BUNDLE, PROBES)]
    bundle = next((folder for folder in folders if folder.is_dir()), None)
    if not parameters.get("tower") or bundle is None:
        return None
    if [tensor.name for tensor in config.input] != [INPUT_NAMES[Tower(parameters["tower"])]]:
        return None
    manifest = Manifest.from_json(read_manifest(bundle / MANIFEST_NAME, "a copy of a bundle"))
    tower, precision = Tower(parameters["tower"]), Precision(parameters["precision"])
    probes = Probes.load(bundle / PROBES_NAME)
    check_probes(probes, manifest, bundle / PROBES_NAME)
    tokenizer = bundle / TOKENIZER_NAME
    return ModelProbes(
        model=model.name,
        version=version,
        tower=tower,
        precision=precision,
        probes=probes.towers[tower],
        bound=lowest_cosine(manifest.engines[tower][precision].certificate),
        max_batch=config.max_batch_size,
        text_length=int(parameters.get("text_lengths", "0").rpartition(",")[2]),
        manifest=manifest,
        tokenizer=tokenizer.read_text(encoding="utf-8") if tokenizer.is_file() else None,
    )


def lowest_cosine(certificate: Certificate | None) -> float:
    """Return the lowest cosine that the answer to a probe may have to the reference's embedding."""
    return _UNCERTIFIED_COSINE if certificate is None else certificate.min_cosine - _TOLERANCE


def probe_models(
    repository: Path, *, http_port: int, headers: Mapping[str, str], reference: Path | None = None
) -> list[ProbeResult]:
    """Send every model's probes to the running server of `repository`, over HTTP on this machine, with its admin key.

    `reference` is a repository that is known to be right: models of the same name must have its space, preprocessing
    and tokenizer and answer its probes too, so that a bundle whose own probes are wrong is noticed. Raises
    SpaceMismatchError or ServerError where they differ, InputError and BundleError for models that cannot be read.
    """
    results = []
    for config in sorted(repository.glob(f"*/{CONFIG}")):
        own = read_probes(config.parent)
        if own is None:
            version = max(versions(config.parent), default=0)
            results.append(ProbeResult(model=config.parent.name, version=version))
            continue
        known = None
        if reference is not None and (reference / own.model / CONFIG).is_file():
            known = read_probes(reference / own.model)
        if known is not None:
            _check_equal(own, known)
        results.append(_probe(own, [own.probes] if known is None else [own.probes, known.probes], http_port, headers))
    return results


def cosines(found: NDArray[np.float32], expected: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosine of each answer to its embedding (N,), the lowest of its vectors where an item has several.

    Answers that are not unit vectors, to 1e-3, give NaN: clients would refuse them.
    """
    one, other = found.astype(np.float64), expected.astype(np.float64)
    norms = np.linalg.norm(one, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.sum(one * other, axis=-1) / (norms * np.linalg.norm(other, axis=-1))
    values[~(np.abs(norms - 1) <= 1e-3)] = np.nan
    lowest: NDArray[np.float64] = values.reshape(len(values), -1).min(axis=1)
    return lowest


def _probe(own: ModelProbes, probes: Sequence[TowerProbes], http_port: int, headers: Mapping[str, str]) -> ProbeResult:
    result = ProbeResult(model=own.model, version=own.version, precision=own.precision, bound=own.bound)
    lowest = math.inf
    for each in probes:
        asked = ModelProbes(**{**vars(own), "probes": each})
        try:
            answers = [infer(own.model, request, http_port, headers) for request in asked.requests()]
            found = np.concatenate(answers) if answers else each.embedding[:0]
            if found.shape != each.embedding.shape:
                raise ServerError(f"answered {found.shape}: expected {each.embedding.shape}")
        except ServerError as error:
            return ProbeResult(**{**vars(result), "problem": str(error)})
        lowest = min(lowest, *map(float, cosines(found, each.embedding)), key=_nan_first)
    return ProbeResult(**{**vars(result), "cosine": lowest})


def _nan_first(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def infer(model: str, request: HttpRequest, http_port: int, headers: Mapping[str, str]) -> NDArray[np.float32]:
    """Send an inference over HTTP; return its only output. Raises ServerError where that is not FP32."""
    try:
        with closing(HTTPConnection(LOOPBACK, http_port, timeout=_TIMEOUT_S)) as connection:
            connection.request("POST", f"/v2/models/{model}/infer", request.body, {**headers, **request.headers})
            answer = connection.getresponse()
            content = answer.read()
            length = int(answer.headers.get("Inference-Header-Content-Length", len(content)))
        document = json.loads(content[:length])
        if answer.status != HTTPStatus.OK:
            raise ServerError(str(document.get("error", answer.status))[:_SHOWN], model=model)
        (output,) = document["outputs"]
        if output["datatype"] != "FP32":
            raise ServerError(f"answered {output['datatype']}: expected FP32", model=model)
        return np.frombuffer(content[length:], np.float32).reshape(output["shape"])
    except (OSError, HTTPException, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ServerError(f"did not answer: {error!r}", model=model) from error


def _request(name: str, datatype: str, rows: NDArray[Any]) -> HttpRequest:
    """Return an inference of rows (n, ...): a header in JSON, then the tensor's bytes."""
    data = np.ascontiguousarray(rows).tobytes()
    tensor = {
        "name": name,
        "datatype": datatype,
        "shape": list(rows.shape),
        "parameters": {"binary_data_size": len(data)},
    }
    output = {"name": EMBEDDING, "parameters": {"binary_data": True}}
    header = json.dumps({"inputs": [tensor], "outputs": [output]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(header)), "Content-Type": "application/octet-stream"}
    return HttpRequest(header + data, headers)


def _check_equal(own: ModelProbes, known: ModelProbes) -> None:
    """Raise where a model would give vectors that cannot be compared with those of the version that is served."""
    if own.manifest.space != known.manifest.space:
        raise SpaceMismatchError(
            f"the model {own.model} is of another space than the version that is served",
            expected=known.manifest.space,
            found=own.manifest.space,
        )
    if own.manifest.tower(own.tower) != known.manifest.tower(known.tower):
        raise InputError(
            f"the {own.tower} tower of {own.model} has another preprocessing or other tensors than the version that is "
            "served, though the same space"
        )
    texts = [probes.tokenizer for probes in (own, known) if probes.tokenizer is not None]
    if len(set(texts)) > 1 and tokenizer_essence(texts[0]) != tokenizer_essence(texts[1]):
        raise InputError(
            f"the model {own.model} has another tokenizer than the version that is served, though the same space"
        )
