"""Zero-shot classification: images sorted into labels that are only words, and moderation by thresholds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from twinspire._arguments import as_list, is_finite, require_list, require_text, shown
from twinspire.bundle import Bundle
from twinspire.errors import ImageError, InputError
from twinspire.images import ImageItem
from twinspire.search.calibration import Calibration
from twinspire.search.templates import Templates
from twinspire.search.text_files import read_lines


@dataclass(frozen=True, slots=True)
class Label:
    """What an image may be; with a `threshold` it is judged by itself: the score from which on an image is it."""

    text: str
    threshold: float | None = None

    def __post_init__(self) -> None:
        if not require_text(self.text, "a label").strip():
            raise InputError(f"a label: expected words, got {shown(self.text)}")
        if self.threshold is not None and not (is_finite(self.threshold) and -1 <= self.threshold <= 1):
            raise InputError(
                f"the threshold of {shown(self.text)} is {shown(self.threshold)}: scores are inner products, expected "
                "-1 to 1"
            )


@dataclass(frozen=True, slots=True)
class LabelScore:
    """One label and an image: the inner product, a probability where the model gives one, whether it is flagged.

    `flagged` is None for a label without a threshold.
    """

    label: str
    score: float
    probability: float | None
    flagged: bool | None


@dataclass(frozen=True, slots=True, repr=False)
class Classification:
    """All labels of one image, the largest score first."""

    judged: tuple[LabelScore, ...]

    def __repr__(self) -> str:
        flagged = f", {len(self.flagged)} flagged" if self.flagged else ""
        return (
            f"<Classification: {shown(self.best.label)} {self.best.score:.4f}, of {len(self.judged)} labels{flagged}>"
        )

    @property
    def best(self) -> LabelScore:
        """The label with the largest score."""
        return self.judged[0]

    @property
    def flagged(self) -> tuple[LabelScore, ...]:
        """The labels whose threshold the image reaches."""
        return tuple(each for each in self.judged if each.flagged)


class ClassifyingClient(Protocol):
    """What classifying needs of a client; `twinspire.Client` is one."""

    bundle: Bundle

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


class Classifier:
    """Sorts images into labels, encoded once when it is made.

    A probability is that of a bundle's logit scale and bias for each label by itself; of a bundle without a bias it is
    the softmax over the labels, which takes for granted that one of them fits. Of a single label there is none then.
    Raises `InputError` for no labels and for one that comes twice.
    """

    def __init__(
        self, client: ClassifyingClient, labels: Sequence[Label | str], *, templates: Templates | None = None
    ) -> None:
        listed = as_list(labels, "labels")
        self.labels = tuple(each if isinstance(each, Label) else Label(each) for each in listed)
        if not self.labels:
            raise InputError("no labels came: expected at least one")
        texts = [label.text for label in self.labels]
        twice = next((text for place, text in enumerate(texts) if text in texts[:place]), None)
        if twice is not None:
            raise InputError(f"the label {twice!r} comes twice: expected every label once")
        self._client = client
        manifest = client.bundle.manifest
        self._scale = manifest.logit_scale
        self._calibration = Calibration.of(manifest.logit_scale, manifest.logit_bias)
        sentences = templates or Templates()
        encoded = client.encode_texts([sentence for text in texts for sentence in sentences.filled(text)])
        self._vectors = sentences.averaged(encoded, texts)  # (L, D)

    def __repr__(self) -> str:
        return f"<Classifier of {len(self.labels)} labels: {shown([label.text for label in self.labels])}>"

    def classify(self, pictures: Iterable[ImageItem]) -> list[Classification]:
        """Judge each image. Raises `ImageError` for the first that cannot be used, `EngineError`, `ServerError`."""
        return self._judge(self._client.encode_images(require_list(pictures, "pictures")))

    def classify_or_skip(self, pictures: Iterable[ImageItem]) -> tuple[list[Classification], list[ImageError]]:
        """Judge the images that can be used, in order; beside them an error for each of the others."""
        embeddings, errors = self._client.encode_images(require_list(pictures, "pictures"), on_error="skip")
        return self._judge(embeddings), errors

    def _judge(self, embeddings: NDArray[np.float32]) -> list[Classification]:
        return [self._of(row) for row in embeddings @ self._vectors.T]  # rows (L,)

    def _of(self, scores: NDArray[np.float32]) -> Classification:
        probabilities = self._probabilities(scores.astype(np.float64))
        judged = [
            LabelScore(
                label.text,
                float(score),
                probability,
                float(score) >= label.threshold if label.threshold is not None else None,
            )
            for label, score, probability in zip(self.labels, scores, probabilities, strict=True)
        ]
        return Classification(tuple(sorted(judged, key=lambda each: -each.score)))

    def _probabilities(self, scores: NDArray[np.float64]) -> Sequence[float | None]:
        if self._calibration is not None:
            return [self._calibration.probability(float(score)) for score in scores]
        if len(scores) == 1:
            return [None]
        powers = np.exp(self._scale * (scores - scores.max()))
        return [float(share) for share in powers / powers.sum()]


def read_labels(path: str | Path) -> list[Label]:
    """Read a file with a label a line; for moderation with a threshold behind a bar: `a knife | 0.25`.

    Empty lines and what follows a # are passed over. Raises `InputError` with the line.
    """
    labels: list[Label] = []
    for number, line in read_lines(path, "the labels"):
        text, bar, threshold = (part.strip() for part in line.rpartition("|"))
        try:
            label = Label(text, float(threshold)) if bar else Label(line)
        except ValueError:
            raise InputError(
                f"{path}, line {number}: {threshold!r} is no threshold: expected a number, as in: a knife | 0.25"
            ) from None
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
        if any(label.text == other.text for other in labels):
            raise InputError(f"{path}, line {number}: the label {label.text!r} comes twice: expected every label once")
        labels.append(label)
    return labels
