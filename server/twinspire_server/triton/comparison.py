"""Comparison of a model's answers to probes with their references."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from twinspire_server.repository.served_probes import ServedProbes, smallest_cosines
from twinspire_server.triton.inference import Answer, Refusal
from twinspire_server.triton.wrong_vectors import Fault, ProbeResult


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """The answers to requests of one model: `vectors` (M, D) or (M, Q, D), and each one's input, `positions` (M,).

    `problem` says what came instead of vectors, None where nothing did. `is_complete` is whether all were answered.
    """

    positions: NDArray[np.intp]
    vectors: NDArray[np.float32]
    problem: str | None
    is_complete: bool

    @classmethod
    def of(cls, positions: Sequence[NDArray[np.intp]], answers: Sequence[Answer], shape: tuple[int, ...]) -> Self:
        """Collect the answers to requests of the inputs at `positions`; `shape` is that of one input's vectors."""
        at, vectors, problem = [np.zeros(0, np.intp)], [np.zeros((0, *shape), np.float32)], None
        for where, answer in zip(positions, answers, strict=True):
            if isinstance(answer, Refusal):
                problem = answer.message
            elif answer is not None and answer.shape != (len(where), *shape):
                problem = f"vectors of shape {answer.shape}: expected {(len(where), *shape)}"
            elif answer is not None:
                at.append(where)
                vectors.append(answer)
        return cls(
            positions=np.concatenate(at),
            vectors=np.concatenate(vectors),
            problem=problem,
            is_complete=all(answer is not None for answer in answers),
        )


def compare_with_reference(answers: Answers, probes: ServedProbes, result: ProbeResult) -> ProbeResult:
    """Compare a tower's answers with the fp32 embeddings; a vector of another probe is an exchange of rows."""
    if answers.problem is not None:
        return replace(result, cosine=math.nan, fault=Fault.REFUSED, detail=answers.problem)
    return _compared(answers, probes.embedding, probes.min_cosine, Fault.INACCURATE, result)


def compare_with_first(
    answers: Answers, probes: ServedProbes, first: NDArray[np.float32], result: ProbeResult
) -> ProbeResult:
    """Compare a tower's answers, which agree with the reference, with its first ones (N, D)."""
    changed = _compared(answers, first, probes.min_agreement, Fault.CHANGED, result)
    return result if changed.ok else replace(changed, fault=Fault.CHANGED)


def compare_raw(raw: Answers, tensors: Answers, probes: ServedProbes, result: ProbeResult) -> ProbeResult:
    """Compare the answers to encoded inputs with those to their tensors."""
    if raw.problem is not None:
        return replace(result, cosine=math.nan, fault=Fault.REFUSED, detail=raw.problem)
    if not (tensors.is_complete and len(tensors.vectors) == len(probes.raw)):  # its tower's result says why
        return result
    return _compared(raw, tensors.vectors, probes.min_raw_agreement, Fault.PREPROCESSING, result)


def _compared(
    answers: Answers, expected: NDArray[np.float32], bound: float, fault: Fault, result: ProbeResult
) -> ProbeResult:
    """Compare each answer with that one of `expected` (N, D) that it is to be equal to, up to `bound`."""
    result = replace(result, bound=bound)
    if not len(answers.vectors):
        return result
    cosines = smallest_cosines(answers.vectors, expected[answers.positions])
    worst = int(np.argmin(np.nan_to_num(cosines, nan=-2.0)))
    if cosines[worst] >= bound:
        return replace(result, cosine=float(cosines[worst]) if answers.is_complete else None)
    position = int(answers.positions[worst])
    same = np.repeat(answers.vectors[worst][None], len(expected), axis=0)
    others = np.nan_to_num(smallest_cosines(same, expected), nan=-2.0)
    others[position] = -2.0
    nearest, detail = int(np.argmax(others)), f"probe {position}"
    if others[nearest] >= bound:
        fault, detail = Fault.EXCHANGED, f"probe {position} got the vector of probe {nearest}"
    return replace(result, cosine=float(cosines[worst]), fault=fault, detail=detail, position=position)
