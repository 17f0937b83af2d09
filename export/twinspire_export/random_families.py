"""Models of other families than CLIP at published sizes, with stand-in tokenizers of the published vocabulary sizes.

For `random_checkpoints`, which fills in random weights.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TRAINED_PIECES = 1_000
"""Pieces that a stand-in tokenizer learns from captions; the rest of its vocabulary occurs in no text."""
_UNREACHABLE = -100.0  # score of such a piece


class FamilySize(StrEnum):
    """Published sizes of other families."""

    SIGLIP_B_16 = "siglip-b-16"
    SIGLIP_SO400M_14 = "siglip-so400m-14"
    CHINESE_CLIP_B_16 = "chinese-clip-b-16"
    METACLIP_2_B_32 = "metaclip-2-b-32"


def make_family(
    size: FamilySize, folder: Path, captions: Sequence[str], *, layers: int | None = None
) -> PreTrainedModel:
    """Write the tokenizer and the preprocessing of a checkpoint to `folder`; return its model with undefined weights.

    `captions` are what the tokenizer learns, `layers` is the depth of both towers, by default the published one.
    """
    from transformers.modeling_utils import no_init_weights

    depth = {} if layers is None else {"num_hidden_layers": layers}
    with no_init_weights():
        model = _MAKERS[size](folder, captions, depth)
    return model.eval()


_SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}


def _siglip_b_16(folder: Path, captions: Sequence[str], depth: Mapping[str, int]) -> PreTrainedModel:
    """Make google/siglip-base-patch16-224: 32,000 tokens, 64 ids."""
    return _siglip(folder, captions, depth, patch_size=16)


def _siglip_so400m_14(folder: Path, captions: Sequence[str], depth: Mapping[str, int]) -> PreTrainedModel:
    """Make google/siglip-so400m-patch14-224: 32,000 tokens, 64 ids."""
    return _siglip(folder, captions, {**_SO400M, **depth}, patch_size=14)


def _siglip(folder: Path, captions: Sequence[str], tower: Mapping[str, int], *, patch_size: int) -> PreTrainedModel:
    """Make a SigLIP for images of 224 pixels whose two towers have the sizes `tower`."""
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    config = SiglipConfig(text_config=dict(tower), vision_config={"image_size": 224, "patch_size": patch_size, **tower})
    pieces = config.text_config.vocab_size
    (folder / "spiece.model").write_bytes(_sentencepiece(captions, pieces))
    special = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "SiglipTokenizer", "do_lower_case": True, "model_max_length": 64, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    SiglipImageProcessor(size={"height": 224, "width": 224}, resample=3).save_pretrained(folder)
    return SiglipModel(config)


def _chinese_clip(folder: Path, captions: Sequence[str], depth: Mapping[str, int]) -> PreTrainedModel:
    """Make OFA-Sys/chinese-clip-vit-base-patch16: 21,128 tokens of single Chinese characters and parts of words."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast, ChineseCLIPConfig, ChineseCLIPImageProcessor, ChineseCLIPModel

    vocabulary = 21_128
    learner = BertWordPieceTokenizer(lowercase=True)
    learner.train_from_iterator(captions, vocab_size=_TRAINED_PIECES, show_progress=False)
    pieces = [*learner.get_vocab(with_added_tokens=True)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    rest = sorted(set(pieces) - set(special))
    names = [*special, *rest, *(f"[unused{number}]" for number in range(vocabulary - len(special) - len(rest)))]
    (folder / "vocab.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=512).save_pretrained(folder)
    config = ChineseCLIPConfig(
        text_config={"vocab_size": vocabulary, **depth},
        vision_config={"image_size": 224, "patch_size": 16, **depth},
        projection_dim=512,
    )
    size = {"height": 224, "width": 224}
    ChineseCLIPImageProcessor(size=size, do_center_crop=False).save_pretrained(folder)
    return ChineseCLIPModel(config)


def _metaclip_2(folder: Path, captions: Sequence[str], depth: Mapping[str, int]) -> PreTrainedModel:
    """Make facebook/metaclip-2-worldwide-b32: XLM-V's 901,629 tokens, 77 ids."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import CLIPImageProcessor, MetaClip2Config, MetaClip2Model, PreTrainedTokenizerFast

    vocabulary, special = 901_629, ["<s>", "<pad>", "</s>", "<unk>"]
    learner = Tokenizer(models.Unigram())
    learner.normalizer, learner.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=_TRAINED_PIECES,
        special_tokens=special,
        unk_token="<unk>",  # noqa: S106 - no password
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    learned = json.loads(learner.to_str())["model"]["vocab"]
    unused = ((f"\ue000{number}", _UNREACHABLE) for number in range(vocabulary - len(learned)))
    tokenizer = Tokenizer(models.Unigram([*map(tuple, learned), *unused], unk_id=special.index("<unk>")))
    tokenizer.normalizer, tokenizer.pre_tokenizer = learner.normalizer, learner.pre_tokenizer
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", special.index("</s>"))]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=77, **names).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    config = MetaClip2Config(
        text_config={"vocab_size": vocabulary, "hidden_size": 512, "eos_token_id": 2, "pad_token_id": 1, **depth},
        vision_config={"image_size": 224, "patch_size": 32, **depth},
        projection_dim=512,
    )
    return MetaClip2Model(config)


def _sentencepiece(captions: Sequence[str], pieces: int) -> bytes:
    """Return a SentencePiece model of `pieces` pieces with T5's ids: `<pad>` 0, `</s>` 1, `<unk>` 2."""
    import sentencepiece
    from transformers.utils import sentencepiece_model_pb2_new as sentencepiece_model

    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=islice((caption.lower() for caption in captions), 4_000),
        model_writer=trained,
        vocab_size=_TRAINED_PIECES,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    model = sentencepiece_model.ModelProto.FromString(trained.getvalue())
    for number in range(pieces - len(model.pieces)):
        model.pieces.add(piece=f"\ue000{number}", score=_UNREACHABLE)
    serialised: bytes = model.SerializeToString()
    return serialised


_Maker = Callable[[Path, Sequence[str], Mapping[str, int]], Any]
_MAKERS: Mapping[FamilySize, _Maker] = MappingProxyType(
    {
        FamilySize.SIGLIP_B_16: _siglip_b_16,
        FamilySize.SIGLIP_SO400M_14: _siglip_so400m_14,
        FamilySize.CHINESE_CLIP_B_16: _chinese_clip,
        FamilySize.METACLIP_2_B_32: _metaclip_2,
    }
)
