"""Sentence-BERT: text encoders in the layout of sentence-transformers, https://arxiv.org/abs/1908.10084.

A BERT-like encoder, a pooling of its tokens and optionally a normalisation, which `modules.json` lists. The bundle has
a text tower alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as Normalizers
from transformers import BertModel, CamembertModel, PreTrainedTokenizerFast, RobertaModel, XLMRobertaModel

from twinspire.bundle import Tower
from twinspire.errors import CheckpointError
from twinspire_export.dependencies import silenced
from twinspire_export.families.bert_text import load_bert_tokenizer, text_settings
from twinspire_export.families.family import CheckpointSource, ModelFamily
from twinspire_export.families.huggingface import HuggingFaceTexts, fit_one_file, load_model, tokenizer_json
from twinspire_export.rewrite import ALL
from twinspire_export.text_encoder import TextEncoder, TextPooling, counts_positions, encoder_of

MODULES_FILE = "modules.json"

_ENCODERS = {"bert": BertModel, "roberta": RobertaModel, "xlm-roberta": XLMRobertaModel, "camembert": CamembertModel}
_POOLINGS = {"mean": TextPooling.MEAN, "cls": TextPooling.FIRST_TOKEN}
_OLD_POOLINGS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
"""The flags of sentence-transformers before 5.7, which has a name instead; the other modes have flags of this kind."""
_LAYOUTS = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
_PACKAGE = "sentence_transformers."
"""Where the modules' own classes are; others are code that comes with the checkpoint."""


class SentenceBertFamily(ModelFamily):
    """A BERT-like text encoder pooled as `modules.json` says."""

    model_type = "sentence_bert"
    architecture = "SentenceTransformer"
    architecture_in_config = False
    title = "Sentence-BERT: text encoders of sentence-transformers"
    examples = (
        "sentence-transformers/all-MiniLM-L6-v2",
        "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
        "BAAI/bge-small-en-v1.5",
    )
    modalities = ("text",)
    rewrites = ALL

    def recognises(self, folder: Path, config: Mapping[str, Any]) -> bool:
        """Whether the checkpoint has the layout of sentence-transformers, or is one of its encoders without it."""
        return (folder / MODULES_FILE).is_file() or config.get("model_type") in list(_ENCODERS)

    def open(self, source: CheckpointSource, files: tuple[Path, ...]) -> SentenceBertCheckpoint:
        """Open a checkpoint. Raises what `ModelFamily.open` says."""
        folder = source.folder
        kind = str(_settings(folder / "config.json").get("model_type"))
        pooling = _pooling(folder)
        if kind not in _ENCODERS:
            raise CheckpointError(
                f"the checkpoint {folder} has the encoder {kind!r} ('model_type' in config.json); expected one of: "
                f"{', '.join(_ENCODERS)}. Other models of sentence-transformers cannot be exported yet"
            )
        _check_scores(folder)
        options = _settings(folder / "sentence_bert_config.json", default={})
        with silenced("transformers"):
            tokenizer = load_bert_tokenizer(folder)
            # The encoder's own pooler is no part of these models, and often missing.
            model = load_model(_ENCODERS[kind], folder, files, add_pooling_layer=False)
        if not counts_positions(model):
            # config.json's is of no account in BERT, and wrong in multilingual MiniLM: the tokenizer's is padded with.
            model.config.pad_token_id = tokenizer.pad_token_id
        if options.get("do_lower_case"):
            _lowercase(tokenizer)
        serialised = tokenizer_json(tokenizer, folder)
        longest = options.get("max_seq_length")
        return SentenceBertCheckpoint(
            source=source,
            family=self,
            files=files,
            dim=int(model.config.hidden_size),
            text=text_settings(
                tokenizer, serialised, model, folder, context_length=None if longest is None else int(longest)
            ),
            tokenizer_json=serialised,
            pooling=pooling.value,
            # Trained on cosines; the factor of its loss is stored nowhere.
            logit_scale=1.0,
            model=model,
            tokenizer=tokenizer,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class SentenceBertCheckpoint(HuggingFaceTexts):
    """An opened text encoder, `model` one of `_ENCODERS`."""

    def tower(self, tower: Tower) -> TextEncoder:
        """Return a new module of the text tower."""
        assert tower is Tower.TEXT
        return fit_one_file(encoder_of(self.model, pooling=TextPooling(self.pooling)))

    def text_features(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Encode a text without padding: `input_ids` (1, L) int64 to (1, D)."""
        states: torch.Tensor = self.model(input_ids=input_ids).last_hidden_state  # (1, L, D)
        return states[:, 0] if self.pooling == TextPooling.FIRST_TOKEN else states.mean(dim=1)


def _pooling(folder: Path) -> TextPooling:
    """Read how tokens are pooled. Raises CheckpointError where the modules do anything else."""
    file = folder / MODULES_FILE
    if not file.is_file():
        raise CheckpointError(
            f"the checkpoint {folder} is a text encoder without {file.name}, so the pooling of its tokens is unknown. "
            "Export a model in the layout of sentence-transformers, or save this one in it: "
            "SentenceTransformer(modules=[Transformer(...), Pooling(...)]).save(...)"
        )
    modules = json.loads(file.read_text(encoding="utf-8"))
    classes = [str(module["type"]) for module in modules]
    if foreign := [name for name in classes if not name.startswith(_PACKAGE)]:
        raise CheckpointError(
            f"{file} names the module {foreign[0]!r}, which is code that comes with the checkpoint; no code of a "
            "checkpoint is run. Use a model of sentence-transformers' own modules"
        )
    names = [name.rpartition(".")[2] for name in classes]
    if names not in _LAYOUTS or modules[0].get("path"):
        raise CheckpointError(
            f"{file} lists the modules {', '.join(names)}; expected Transformer in the checkpoint's folder itself, "
            "Pooling and, optionally, Normalize"
        )
    pooling_file = folder / str(modules[1]["path"]) / "config.json"
    settings = _settings(pooling_file)
    flags = [name for name, value in settings.items() if name.startswith("pooling_mode_") and value]
    modes = [_OLD_POOLINGS.get(flag, flag) for flag in flags] if flags else settings.get("pooling_mode")
    mode = modes[0] if isinstance(modes, list) and len(modes) == 1 else modes
    if not isinstance(mode, str) or mode not in _POOLINGS:
        raise CheckpointError(f"{pooling_file}: the pooling is {mode!r}; expected one of: {', '.join(_POOLINGS)}")
    return _POOLINGS[mode]


def _check_scores(folder: Path) -> None:
    """Raise CheckpointError where the model is scored by more than the cosine of texts as they are given."""
    file = folder / "config_sentence_transformers.json"
    settings = _settings(file, default={})
    score = settings.get("similarity_fn_name")
    normalised = "Normalize" in (folder / MODULES_FILE).read_text(encoding="utf-8")
    if score not in (None, "cosine") and not (score == "dot" and normalised):
        raise CheckpointError(
            f"{file}: the similarity is {score!r} of vectors that are not normalised; expected 'cosine', since "
            "embeddings in a bundle have length 1. Use a model that was trained for the cosine"
        )
    name = settings.get("default_prompt_name")
    if name is not None and (prompt := (settings.get("prompts") or {}).get(name)):
        raise CheckpointError(
            f"{file}: the model puts the prompt {prompt!r} before every text ('default_prompt_name'), which a bundle "
            "cannot express. Set it to null, and put the prompt before your texts yourself"
        )


def _settings(file: Path, *, default: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read a JSON object. Raises CheckpointError where it is missing, unless there is a `default`, or is malformed."""
    if default is not None and not file.is_file():
        return default
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise CheckpointError(f"{file} cannot be read: {exc}. Download the checkpoint again") from exc
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} is not a JSON object. Download the checkpoint again")
    return found


def _lowercase(tokenizer: PreTrainedTokenizerFast) -> None:
    """Lowercase texts before all else, as sentence-transformers does where `do_lower_case` is true."""
    backend = tokenizer.backend_tokenizer
    backend.normalizer = Normalizers([Lowercase(), *([] if backend.normalizer is None else [backend.normalizer])])
