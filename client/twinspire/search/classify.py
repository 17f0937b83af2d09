"""Zero-shot classification of images and sounds by labels in plain words, and moderation by thresholds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from twinspire._arguments import as_list, is_finite, require_list, require_text, shown
from twinspire.audio import AudioItem
from twinspire.bundle import BundleDescription
from twinspire.errors import AudioError, ImageError, InputError
from twinspire.images import ImageItem
from twinspire.search.calibration import Calibration
from twinspire.search.encoding import Templates
from twinspire.search.text_files import read_lines
from twinspire.similarity import similarities


@dataclass(frozen=True, slots=True)
class Label:
    """A label in words; with a `threshold`, an image is flagged from that score on, whatever the other labels are."""

    text: str
    threshold: float | None = None

    def __post_init__(self) -> None:
        if not require_text(self.text, "a label").strip():
            raise InputError(f"a label: expected a text with words, got {shown(self.text)}")
        if self.threshold is not None and not (is_finite(self.threshold) and -1 <= self.threshold <= 1):
            raise InputError(
                f"the threshold of the label {shown(self.text)} is {shown(self.threshold)}: expected -1 to 1, since "
                "scores are inner products"
            )


@dataclass(frozen=True, slots=True)
class LabelScore:
    """The score of one label for an image: an inner product, and a probability where the model gives one.

    `flagged` says whether the score reaches the label's threshold, None without a threshold.
    """

    label: str
    score: float
    probability: float | None
    flagged: bool | None


@dataclass(frozen=True, slots=True, repr=False)
class Classification:
    """The scores of all labels for one image, best first."""

    scores: tuple[LabelScore, ...]

    def __repr__(self) -> str:
        flagged = f", {len(self.flagged)} flagged" if self.flagged else ""
        return (
            f"<Classification: {shown(self.best.label)} {self.best.score:.4f}, of {len(self.scores)} labels{flagged}>"
        )

    @property
    def best(self) -> LabelScore:
        """The label with the largest score."""
        return self.scores[0]

    @property
    def flagged(self) -> tuple[LabelScore, ...]:
        """The labels whose threshold the score reaches."""
        return tuple(score for score in self.scores if score.flagged)


class ClassifierEncoder(Protocol):
    """What a classifier needs of a client; `twinspire.Client` is one."""

    bundle: BundleDescription

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode N texts to (N, D) float32, L2-normalised."""

    @overload
    def encode_images(
        self, items: Iterable[ImageItem], *, on_error: Literal["raise"] = "raise"
    ) -> NDArray[np.float32]: ...
    @overload
    def encode_images(
        self, items: Iterable[ImageItem], *, on_error: Literal["skip"]
    ) -> tuple[NDArray[np.float32], list[ImageError]]: ...

    @overload
    def encode_audio(
        self, items: Iterable[AudioItem], *, on_error: Literal["raise"] = "raise"
    ) -> NDArray[np.float32]: ...
    @overload
    def encode_audio(
        self, items: Iterable[AudioItem], *, on_error: Literal["skip"]
    ) -> tuple[NDArray[np.float32], list[AudioError]]: ...


class Classifier:
    """Scores images and sounds by labels, which are encoded once, when it is made.

    With a bundle that has a logit bias the probability is that of each label by itself. Without one it is the softmax
    over the labels, which assumes that one of them fits; for a single label there is none then. Raises `InputError` for
    no labels and for repeated ones.
    """

    def __init__(
        self, client: ClassifierEncoder, labels: Sequence[Label | str], *, templates: Templates | None = None
    ) -> None:
        listed = as_list(labels, "labels")
        self.labels = tuple(label if isinstance(label, Label) else Label(label) for label in listed)
        if not self.labels:
            raise InputError("no labels: expected at least one")
        texts = [label.text for label in self.labels]
        repeated = next((text for position, text in enumerate(texts) if text in texts[:position]), None)
        if repeated is not None:
            raise InputError(f"the label {repeated!r} is repeated: expected every label once")
        self._client = client
        manifest = client.bundle.manifest
        self._scale = manifest.logit_scale
        self._calibration = Calibration.of(manifest.logit_scale, manifest.logit_bias)
        sentences = templates or Templates()
        encoded = client.encode_texts([sentence for text in texts for sentence in sentences.filled(text)])
        self._vectors = sentences.averaged(encoded, texts)  # (L, D)

    def __repr__(self) -> str:
        return f"<Classifier of {len(self.labels)} labels: {shown([label.text for label in self.labels])}>"

    def classify(self, images: Iterable[ImageItem]) -> list[Classification]:
        """Score each image. Raises `ImageError` for the first that cannot be used, `EngineError`, `ServerError`."""
        return self._classified(self._client.encode_images(require_list(images, "images")))

    def classify_or_skip(self, images: Iterable[ImageItem]) -> tuple[list[Classification], list[ImageError]]:
        """Score the images that can be used, in order, and return an error for each of the others."""
        embeddings, errors = self._client.encode_images(require_list(images, "images"), on_error="skip")
        return self._classified(embeddings), errors

    def classify_audio(self, sounds: Iterable[AudioItem]) -> list[Classification]:
        """Score each sound. Raises `AudioError` for the first that cannot be used, `EngineError`, `ServerError`."""
        return self._classified(self._client.encode_audio(require_list(sounds, "sounds")))

    def classify_audio_or_skip(self, sounds: Iterable[AudioItem]) -> tuple[list[Classification], list[AudioError]]:
        """Score the sounds that can be used, in order, and return an error for each of the others."""
        embeddings, errors = self._client.encode_audio(require_list(sounds, "sounds"), on_error="skip")
        return self._classified(embeddings), errors

    def _classified(self, embeddings: NDArray[np.float32]) -> list[Classification]:
        return [self._classification(scores) for scores in similarities(embeddings, self._vectors)]  # (L,)

    def _classification(self, scores: NDArray[Any]) -> Classification:
        probabilities = self._probabilities(scores.astype(np.float64))
        by_label = [
            LabelScore(
                label.text,
                float(score),
                probability,
                float(score) >= label.threshold if label.threshold is not None else None,
            )
            for label, score, probability in zip(self.labels, scores, probabilities, strict=True)
        ]
        return Classification(tuple(sorted(by_label, key=lambda score: -score.score)))

    def _probabilities(self, scores: NDArray[np.float64]) -> Sequence[float | None]:
        if self._calibration is not None:
            return [self._calibration.probability(float(score)) for score in scores]
        if len(scores) == 1:
            return [None]
        powers = np.exp(self._scale * (scores - scores.max()))
        return [float(share) for share in powers / powers.sum()]


def read_labels(path: str | Path) -> list[Label]:
    """Read a file with one label on each line, for moderation with a threshold after a bar: `a knife | 0.25`.

    Empty lines and what follows a # are ignored. Raises `InputError` with the line.
    """
    labels: list[Label] = []
    for number, line in read_lines(path, "the labels"):
        text, bar, threshold = (part.strip() for part in line.rpartition("|"))
        try:
            label = Label(text, float(threshold)) if bar else Label(line)
            if any(label.text == other.text for other in labels):
                raise InputError(f"the label {label.text!r} is repeated: expected every label once")
        except ValueError:
            problem = f"{threshold!r} is not a threshold: expected a number, as in: a knife | 0.25"
        except InputError as error:
            problem = str(error)
        else:
            labels.append(label)
            continue
        raise InputError(f"{path}, line {number}: {problem}", path=path, line=number)
    return labels
