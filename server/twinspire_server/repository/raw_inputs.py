"""The models for raw inputs: encoded images, encoded sounds and plain texts, for clients in any language.

A tower gets two: a preprocessing model, and an ensemble of that model and the tower. Each of the three forms its own
batches, so that requests to the ensemble and to the tower itself are computed together.
"""

from __future__ import annotations

import io
import logging
import wave
from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image

from twinspire.audio.decode import soundfile
from twinspire.bundle import MANIFEST_NAME, TOKENIZER_NAME, Bundle, DecodeMode, Tower
from twinspire.contract import TensorSpec
from twinspire.errors import BrokenDependencyError, MissingDependencyError
from twinspire_server.repository.code import PREPROCESSING_CODE, code_parameters
from twinspire_server.repository.settings import RepositoryRuntime
from twinspire_server.repository.spec import CopiedFile, EnsembleStep, ModelFile, ModelSpec, WarmUp, WrittenFile
from twinspire_server.repository.towers import MODEL_FILE, ServedBundle, container_towers, model_name, wheel_towers

_log = logging.getLogger("twinspire")


@dataclass(frozen=True)
class RawInput:
    """A raw input's tensor name, and what the names of its preprocessing model and its ensemble end with."""

    tensor: str
    preprocessing: str
    ensemble: str


RAW_INPUTS = {
    Tower.IMAGE: RawInput("image_bytes", "decode", "image_bytes"),
    Tower.TEXT: RawInput("text", "tokenize", "text_raw"),
    Tower.AUDIO: RawInput("audio_bytes", "decode_audio", "audio_bytes"),
}


def raw_names(bundle: str, tower: Tower) -> tuple[str, str]:
    """Return the names of a tower's preprocessing model and ensemble."""
    raw = RAW_INPUTS[tower]
    return f"{bundle}_{raw.preprocessing}", f"{bundle}_{raw.ensemble}"


def raw_models(served: ServedBundle) -> list[ModelSpec]:
    """Return the preprocessing model and the ensemble of each tower, none without `raw_inputs`.

    Sounds are read by the package soundfile: there are none where this machine, which will serve, lacks it, and none in
    the container.
    """
    if not served.options.raw_inputs:
        return []
    is_wheel = served.options.runtime is RepositoryRuntime.WHEEL
    called = {spec.name: spec for spec in (wheel_towers if is_wheel else container_towers)(served)}
    towers = [tower for tower in served.bundle.towers if tower is not Tower.AUDIO or (is_wheel and _reads_sounds())]
    return [spec for tower in towers for spec in _raw_models(served, tower, called[model_name(served.bundle, tower)])]


def without_raw_models(specs: Sequence[ModelSpec]) -> list[ModelSpec]:
    """Return the specs of towers, which now replace the models for raw inputs of an earlier build."""
    return [
        replace(spec, replaces=[*spec.replaces, *raw_names(spec.bundle, spec.tower)])
        if spec.bundle is not None and spec.tower is not None and spec.called_by is None
        else spec
        for spec in specs
    ]


def _raw_models(served: ServedBundle, tower: Tower, called: ModelSpec) -> list[ModelSpec]:
    bundle, threads, decode = served.bundle, served.options.threads, served.options.decode
    raw, (preprocessing, ensemble) = RAW_INPUTS[tower], raw_names(served.bundle.name, tower)
    given = TensorSpec(raw.tensor, "object", (1,))
    (prepared,), (output,) = called.inputs, called.outputs
    files: list[ModelFile] = [
        CopiedFile(MODEL_FILE, PREPROCESSING_CODE),
        WrittenFile(MANIFEST_NAME, bundle.manifest.to_json()),
    ]
    if tower is Tower.TEXT:
        files.append(CopiedFile(TOKENIZER_NAME, bundle.tokenizer_path))
    sample = _sample(bundle, tower)
    content = len(sample).to_bytes(4, "little") + sample  # Triton's form of a string
    return [
        ModelSpec(
            name=preprocessing,
            bundle=bundle.name,
            space=bundle.space,
            backend="python",
            max_batch=called.max_batch,
            inputs=[given],
            outputs=[prepared],
            files=files,
            parameters={
                "prepares": tower,
                **({} if threads is None else {"threads": str(threads)}),
                **({"decode": decode} if tower is Tower.IMAGE and decode is not DecodeMode.EXACT else {}),
                **code_parameters(PREPROCESSING_CODE),
            },
            warm_ups=[WarmUp(f"1_{raw.tensor}", 1, (given,), {given.name: content})],
        ),
        ModelSpec(
            name=ensemble,
            bundle=bundle.name,
            space=bundle.space,
            max_batch=called.max_batch,
            inputs=[given],
            outputs=[output],
            files=[],
            parameters={"dim": str(bundle.dim)},
            steps=[
                EnsembleStep(preprocessing, {given.name: given.name}, {prepared.name: prepared.name}),
                EnsembleStep(called.name, {prepared.name: prepared.name}, {output.name: output.name}),
            ],
        ),
    ]


def _reads_sounds() -> bool:
    try:
        soundfile()
    except (MissingDependencyError, BrokenDependencyError) as error:
        _log.warning("no model for encoded sounds: %s", error)
        return False
    return True


def _sample(bundle: Bundle, tower: Tower) -> bytes:
    """Return an input for the warm-up: a grey JPEG of the tower's size, a text, or a tenth of a second of silence."""
    file = io.BytesIO()
    if tower is Tower.TEXT:
        return b"a"
    if tower is Tower.IMAGE:
        Image.new("RGB", (bundle.image.width, bundle.image.height), "grey").save(file, "JPEG")
    else:
        with wave.open(file, "wb") as sound:
            rate = bundle.audio.sample_rate
            sound.setparams((1, 2, rate, 0, "NONE", "NONE"))
            sound.writeframes(bytes(2 * (rate // 10)))
    return file.getvalue()
