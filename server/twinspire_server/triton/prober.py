"""Probing a running server: the probes of its models are sent through it, and the answers compared.

The probes of a tower are sent as single requests and as batches, all at once, so that the server joins them with one
another and with the requests of clients: a fault that exchanges the rows of a batch does not show in a lone request.
Encoded images and texts are sent beside their tensors, where the server has models for them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from twinspire.bundle import Tower
from twinspire.errors import InputError
from twinspire_server.repository.config import read_config
from twinspire_server.repository.served_probes import PROBES, ServedProbes, smallest_cosines
from twinspire_server.triton.comparison import Answers, compare_raw, compare_with_first, compare_with_reference
from twinspire_server.triton.inference import Inference, Sender, http_get, infer_until_answered, open_sender
from twinspire_server.triton.wrong_vectors import Fault, ProbeResult

if TYPE_CHECKING:
    from twinspire_server.triton.server import TritonServer

Wait: TypeAlias = Callable[[float], object]

RAW_MODELS = {Tower.IMAGE: "bytes", Tower.TEXT: "raw"}
"""The ends of the names of the models that take encoded inputs: scenes_image_bytes, scenes_text_raw."""


@dataclass(frozen=True, kw_only=True)
class _Model:
    """A tower's model in one version, and the model that takes its encoded inputs. The requests have no rows yet."""

    name: str
    version: int
    probes: ServedProbes
    reference: ServedProbes | None
    request: Inference
    raw_request: Inference | None
    max_batch: int


class Prober:
    """Sends the probes of a running server's models through it. Close it when the server has ended.

    Models without probes, which an older `twinspire build` or somebody else wrote, are not probed. The version that is
    probed is the one that the server has loaded. `reference` is a repository that is known to be right: towers of the
    same name must answer the probes there too, so that a build whose own probes are wrong is noticed.
    """

    def __init__(self, server: TritonServer, *, reference: Path | None = None) -> None:
        self._server, self._reference = server, reference
        self._sender: Sender = open_sender(server)
        self._models: dict[str, _Model] = {}
        self._first: dict[str, NDArray[np.float32]] = {}
        self._random = random.Random()

    def check(self, *, timeout_s: float = 20.0, wait: Wait = time.sleep) -> dict[str, ProbeResult]:
        """Send all probes and return what they show of each model; those refused for overload are sent again.

        `timeout_s` is for each tower. Raises BundleError where probes cannot be read.
        """
        models = [model for model in map(self._model, self._server.models) if model is not None]
        results = [result for model in models for result in self._check(model, timeout_s, wait)]
        return {result.model: result for result in results}

    def close(self) -> None:
        """Close the connection; a check that runs ends without answers."""
        self._sender.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _model(self, name: str) -> _Model | None:
        """Return a model with probes, None for others. Its version may have changed since the last check."""
        known, folder = self._models.get(name), self._server.repository / name
        if known is None and not _has_probes(folder):
            return None
        about = http_get(self._server, f"/v2/models/{name}")
        if about is None and known is not None:  # the server has gone, or is too busy: no probe is answered either
            return known
        version = max(map(int, about["versions"])) if about else max(map(_version, folder.glob(f"*/{PROBES}")))
        if known is None or known.version != version:
            self._first.pop(name, None)
            known = self._models[name] = _read_model(folder, version, self._server.models, self._reference)
        return known

    def _check(self, model: _Model, timeout_s: float, wait: Wait) -> list[ProbeResult]:
        probes, shape = model.probes, model.probes.embedding.shape[1:]
        count, raw_count = len(probes.inputs), len(probes.raw)
        positions = [np.arange(at, at + 1) for at in range(count)]
        positions += [np.arange(count)[at : at + model.max_batch] for at in range(0, count, model.max_batch)]
        requests = [replace(model.request, rows=probes.inputs[at]) for at in positions]
        raw_positions = [np.arange(at, at + 1) for at in range(raw_count)]
        if model.raw_request is not None:
            requests += [replace(model.request, rows=probes.raw_inputs[at]) for at in raw_positions]
            requests += [replace(model.raw_request, rows=[item]) for item in probes.raw]
        order = self._random.sample(range(len(requests)), len(requests))
        shuffled = infer_until_answered(self._sender, [requests[at] for at in order], timeout_s=timeout_s, wait=wait)
        answers = dict(zip(order, shuffled, strict=True))
        towers = [answers[at] for at in range(len(positions))]
        result = self._tower_result(model, Answers.of(positions, towers, shape), timeout_s, wait)
        if model.reference is not None and result.ok:
            result = self._reference_result(model, model.reference, result, timeout_s, wait)
        results = [result]
        if model.raw_request is not None:
            rest = [answers[at] for at in range(len(positions), len(requests))]
            tensors, raw = (Answers.of(raw_positions, part, shape) for part in (rest[:raw_count], rest[raw_count:]))
            result = ProbeResult(model=model.raw_request.model, version=model.version, bound=probes.min_raw_agreement)
            results.append(compare_raw(raw, tensors, probes, result))
        return results

    def _tower_result(self, model: _Model, answers: Answers, timeout_s: float, wait: Wait) -> ProbeResult:
        result = ProbeResult(model=model.name, version=model.version, bound=model.probes.min_cosine)
        result = compare_with_reference(answers, model.probes, result)
        if result.fault is Fault.INACCURATE:
            return self._diagnosed(model, result, timeout_s, wait)
        if not (result.ok and result.is_answered):
            return result
        # The first answers are those to the single requests, in order.
        first = self._first.get(model.name, answers.vectors[: len(model.probes.inputs)])
        result = compare_with_first(answers, model.probes, first, result)
        if result.ok:
            self._first[model.name] = first
        return result

    def _reference_result(
        self, model: _Model, probes: ServedProbes, own: ProbeResult, timeout_s: float, wait: Wait
    ) -> ProbeResult:
        """Return what the probes of the reference show, or `own` where that is no worse."""
        every = np.arange(len(probes.inputs))
        positions = [every[at : at + model.max_batch] for at in range(0, len(every), model.max_batch)]
        requests = [replace(model.request, rows=probes.inputs[at], dims=probes.inputs.shape[1:]) for at in positions]
        answers = infer_until_answered(self._sender, requests, timeout_s=timeout_s, wait=wait)
        found = Answers.of(positions, answers, probes.embedding.shape[1:])
        result = compare_with_reference(found, replace(probes, min_cosine=own.bound), replace(own, cosine=None))
        if not result.ok:
            return replace(result, detail=f"{result.detail}, of the version that is served now")
        return own if result.is_answered else result

    def _diagnosed(self, model: _Model, result: ProbeResult, timeout_s: float, wait: Wait) -> ProbeResult:
        """Send a probe that was answered wrong once more alone: right alone, wrong among others is an exchange."""
        assert result.position is not None
        at = np.array([result.position])
        request = replace(model.request, rows=model.probes.inputs[at])
        answers = infer_until_answered(self._sender, [request], timeout_s=timeout_s, wait=wait)
        alone = Answers.of([at], answers, model.probes.embedding.shape[1:])
        if len(alone.vectors):
            (cosine,) = smallest_cosines(alone.vectors, model.probes.embedding[at])
            if cosine >= result.bound:
                detail = f"{result.detail} is answered wrong among others, right alone"
                return replace(result, fault=Fault.EXCHANGED, detail=detail)
        return result


def unprobed_models(server: TritonServer) -> tuple[str, ...]:
    """Return the models of a server that clients ask for embeddings and that have no probes."""
    found = {name: _parameters(server.repository / name) for name in server.models}
    called = {parameters["engine"] for parameters in found.values() if "engine" in parameters}
    return tuple(
        name
        for name, parameters in found.items()
        if "tower" in parameters and name not in called and not _has_probes(server.repository / name)
    )


def _version(probes: Path) -> int:
    return int(probes.parent.name)


def _has_probes(folder: Path) -> bool:
    return any(folder.glob(f"*/{PROBES}"))


def _parameters(folder: Path) -> dict[str, str]:
    """Return the parameters of a model's config, none where only Triton can read it."""
    try:
        return {name: value.string_value for name, value in read_config(folder).parameters.items()}
    except InputError:
        return {}


def _read_model(folder: Path, version: int, models: tuple[str, ...], reference: Path | None) -> _Model:
    probes = ServedProbes.load(folder / str(version) / PROBES)
    others = [] if reference is None else sorted(reference.glob(f"{folder.name}/*/{PROBES}"), key=_version)
    raw = f"{folder.name}_{RAW_MODELS.get(probes.tower)}"
    return _Model(
        name=folder.name,
        version=version,
        probes=probes,
        reference=ServedProbes.load(others[-1]) if others else None,
        request=replace(_request(folder), dims=probes.inputs.shape[1:]),
        raw_request=_request(folder.with_name(raw)) if raw in models else None,
        max_batch=read_config(folder).max_batch_size,
    )


def _request(folder: Path) -> Inference:
    """Return a request of a model without rows, as its config says; a free axis has one element."""
    from tritonclient.grpc import model_config_pb2

    tensor = read_config(folder).input[0]
    datatype = model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_")
    return Inference(
        model=folder.name,
        name=tensor.name,
        datatype="BYTES" if datatype == "STRING" else datatype,
        rows=[],
        dims=tuple(1 if size < 0 else size for size in tensor.dims),
    )
