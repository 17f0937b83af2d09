"""The certificate of scaled decoding: what a bundle's best engines lose by it on the data set."""

from __future__ import annotations

import PIL
from PIL import features

from twinspire import Client
from twinspire.bundle import DecodeCertificate, DecodeMode
from twinspire_eval.datasets import CaptionedImages
from twinspire_eval.recall import R1
from twinspire_eval.recall.benchmark import DatasetEmbeddings, OnProgress, RecallReport
from twinspire_eval.recall.decoding import compare_decoding
from twinspire_export.precision.candidates import PrecisionCandidate
from twinspire_export.precision.measurement import open_towers

_FP32 = "fp32"


def certify_scaled_decoding(
    best: PrecisionCandidate,
    data: CaptionedImages,
    fp32: DatasetEmbeddings,
    *,
    threads: int,
    on_progress: OnProgress,
) -> DecodeCertificate | None:
    """Measure scaled decoding with the engines of `best`, against `fp32` with exact decoding and against the same.

    None where no image of the data set is a JPEG that is large enough. Raises as `compare_decoding` does.
    """
    with Client(best.config.engines.bundle, open_towers(best, threads=threads), threads=threads) as client:
        compared = compare_decoding(client, data, threads=threads, on_progress=on_progress)
    if not compared.reduced:
        return None
    found = {str(mode): embeddings for mode, embeddings in compared.embeddings.items()}
    scaled = str(DecodeMode.SCALED)
    overall = RecallReport.of(data, {_FP32: fp32, scaled: found[scaled]}, reference=_FP32).losses[scaled].pooled[R1]
    own = RecallReport.of(data, found, reference=DecodeMode.EXACT).losses[scaled].pooled[R1]
    return DecodeCertificate(
        data=data.name,
        images=compared.images,
        reduced=compared.reduced,
        mean_difference=compared.mean_difference,
        max_difference=compared.max_difference,
        min_cosine=float(compared.cosines.min()),
        mean_cosine=float(compared.cosines.mean()),
        recall_drop=0 - overall.value,  # subtracted from 0, so that no loss is 0.0 and not -0.0
        recall_drop_high=0 - overall.interval.low,
        decode_drop=0 - own.value,
        decode_drop_high=0 - own.interval.low,
        speed=round(compared.speed, 4),
        versions={"pillow": PIL.__version__, "libjpeg-turbo": str(features.version("libjpeg_turbo"))},
    )
