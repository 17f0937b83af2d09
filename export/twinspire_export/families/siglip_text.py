"""The tokenizers of SigLIP and SigLIP 2 in the tokenizers format, with the cleaning of texts that their authors do."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, processors
from transformers.utils import sentencepiece_model_pb2_new as sentencepiece_model

from twinspire.errors import CheckpointError
from twinspire_export.families.huggingface import load_tokenizer

SENTENCEPIECE_FILE, TOKENIZER_FILE = "spiece.model", "tokenizer.json"
_SPACE = "▁"  # how SentencePiece writes a space
_UNIGRAM = 1  # `TrainerSpec.ModelType`
_NORMAL, _USER_DEFINED = 1, 4  # `ModelProto.SentencePiece.Type`
_UNMATCHED = -1e6
"""Score of a piece that SentencePiece never matches in a text, such as `</s>`: below any other way to write it."""
_WIDE_TILDE, _NO_CHARACTER = "\uff5e", "\ufdd0"

_CONTEXT = 64
_ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_EQUAL = (("Ab CD", "ab cd"), (" a\t\n b ", "a b"), *((f"a{mark}b", "ab") for mark in string.punctuation))
"""Texts that SigLIP's cleaning makes equal."""

# Python's `\s`, which differs from that of the library's regular expressions.
_WHITESPACE = "[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+"
_PUNCTUATION = "[" + "".join(f"\\{character}" for character in string.punctuation) + "]"


@dataclass(frozen=True)
class SiglipTokenizer:
    """A tokenizer of SigLIP or SigLIP 2.

    `plain` cleans texts and appends the end token. `reference` gives the ids of a text without end token by other code:
    the authors' cleaning in Python, and the original tokenizer. `max_length` counts the end token.
    """

    plain: Tokenizer
    reference: Callable[[str], list[int]]
    pad_id: int
    end_id: int
    max_length: int


def open_tokenizer(folder: Path) -> SiglipTokenizer:
    """Open the tokenizer of a checkpoint: `spiece.model` where it is there, else tokenizer.json.

    Raises CheckpointError where both are missing, or tokenizer.json does not clean texts as the model expects and
    cannot be completed.
    """
    config = _config(folder / "tokenizer_config.json")
    serialised = folder / TOKENIZER_FILE
    if (folder / SENTENCEPIECE_FILE).is_file():
        return _from_sentencepiece(folder / SENTENCEPIECE_FILE, config)
    if not serialised.is_file():
        raise CheckpointError(
            f"the checkpoint {folder} has no tokenizer: expected {SENTENCEPIECE_FILE} (SigLIP) or {TOKENIZER_FILE}. "
            "Copy them from the model's repository"
        )
    try:
        plain = Tokenizer.from_file(str(serialised))
    except Exception as exc:  # the library raises bare Exception
        raise CheckpointError(f"{serialised} is not a tokenizer: {exc}") from exc
    plain.no_padding()
    plain.no_truncation()
    if isinstance(plain.model, models.BPE):
        return _gemma(plain, serialised, config)
    return _canonical(plain, serialised, config)


def ascii_lower(text: str) -> str:
    """Lowercase A to Z alone, as `tf.strings.lower` does, which big_vision cleans texts with."""
    return text.translate(_ASCII_LOWER)


def _from_sentencepiece(file: Path, config: dict[str, Any]) -> SiglipTokenizer:
    """Build the tokenizer that gives the ids of transformers' `SiglipTokenizer`, which is in Python only.

    That one removes ASCII punctuation, lowercases, and makes one space of whitespace. Unlike it, special tokens that
    are written in a text (`</s>`) are cleaned like any other, as SentencePiece itself does.
    """
    try:
        proto = sentencepiece_model.ModelProto.FromString(file.read_bytes())
    except Exception as exc:  # protobuf's error is no public class
        raise CheckpointError(f"{file} is not a SentencePiece model: {exc}. Copy or download it again") from exc
    trainer, cleaning = proto.trainer_spec, proto.normalizer_spec
    if trainer.model_type != _UNIGRAM or trainer.treat_whitespace_as_suffix or not cleaning.remove_extra_whitespaces:
        raise CheckpointError(
            f"{file} is not a unigram model of words with a space in front: expected the one that comes with SigLIP. "
            "Copy it from the model's repository"
        )
    if matched := [piece.piece for piece in proto.pieces if piece.type == _USER_DEFINED and not _unclean(piece.piece)]:
        raise CheckpointError(f"{file} has user-defined pieces such as {matched[0]!r}, which no released SigLIP has")
    lowercase = bool(config.get("do_lower_case", True))
    ids = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    end, pad, unknown = (_token(config, name) for name in ("eos_token", "pad_token", "unk_token"))
    if missing := [token for token in (end, pad) if token not in ids]:
        raise CheckpointError(f"{file} has no piece {missing[0]!r}, a special token of tokenizer_config.json")
    pieces = [(piece.piece, piece.score if piece.type == _NORMAL else _UNMATCHED) for piece in proto.pieces]
    plain = Tokenizer(models.Unigram(pieces, trainer.unk_id, trainer.byte_fallback))
    charsmap = _charsmap(cleaning.precompiled_charsmap)
    plain.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(_SPACE, " "),
            *([normalizers.Lowercase()] if lowercase else []),
            normalizers.Replace(Regex(_PUNCTUATION), ""),
            normalizers.Replace(Regex(_WHITESPACE), " "),
            normalizers.Strip(left=False, right=True),
            charsmap,
            normalizers.Prepend(charsmap.normalize_str(_SPACE)),
            # As SentencePiece itself does after its own cleaning.
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Replace(Regex(f"[ {_SPACE}]+$"), ""),
            normalizers.Replace(" ", _SPACE),
        ]
    )
    plain.post_processor = _appended(end, ids[end])
    return SiglipTokenizer(
        plain, _sentencepiece_ids(proto, unknown, lowercase=lowercase), ids[pad], ids[end], _max_length(config)
    )


def _sentencepiece_ids(proto: Any, unknown: str, *, lowercase: bool) -> Callable[[str], list[int]]:  # noqa: ANN401
    """Return the tokenization of transformers' `SiglipTokenizer`, by SentencePiece itself."""
    import sentencepiece

    changed = sentencepiece_model.ModelProto()
    changed.CopyFrom(proto)
    changed.normalizer_spec.add_dummy_prefix = False
    processor = sentencepiece.SentencePieceProcessor(model_proto=changed.SerializeToString())
    # SentencePiece cuts spaces off the front of a text: something must stand before them.
    front = len(processor.encode(unknown))

    def ids(text: str) -> list[int]:
        text = _SPACE + text.replace(_SPACE, " ")
        if lowercase:
            text = "".join(character.lower() for character in text)
        text = re.sub(r"\s+", " ", text.translate(_NO_PUNCTUATION)).strip()
        encoded: list[int] = processor.encode(unknown + text)
        return encoded[front:]

    return ids


def _canonical(plain: Tokenizer, file: Path, config: dict[str, Any]) -> SiglipTokenizer:
    """Take a tokenizer.json without `spiece.model` as it is, if it cleans texts. Raises CheckpointError if not."""
    ids = {text: plain.encode(text).ids for written in _EQUAL for text in written}
    unequal = [written for written in _EQUAL if ids[written[0]] != ids[written[1]]]
    if unequal:
        written, cleaned = unequal[0]
        raise CheckpointError(
            f"{file} lacks SigLIP's normaliser: it gives {written!r} other ids than {cleaned!r}, but the model knows "
            f"texts in lower case and without punctuation only. Copy {SENTENCEPIECE_FILE} from the model's repository; "
            "the normaliser is then made of it"
        )
    end_id, pad_id = (plain.token_to_id(_token(config, name)) for name in ("eos_token", "pad_token"))
    if end_id is None or pad_id is None or plain.encode("").ids[-1:] != [end_id]:
        raise CheckpointError(
            f"{file} must end every text with the end token {_token(config, 'eos_token')!r}, but encodes the empty "
            f"text as {plain.encode('').ids}. Give it a post-processor that appends the end token"
        )
    return SiglipTokenizer(
        plain, lambda text: list(plain.encode(text, add_special_tokens=False).ids), pad_id, end_id, _max_length(config)
    )


def _gemma(plain: Tokenizer, file: Path, config: dict[str, Any]) -> SiglipTokenizer:
    """Build SigLIP 2's tokenizer: Gemma's, with lower case, no start token, and an end token.

    As in big_vision, `lower(key="text")|tok(length=64, model="gemma", bos="no", eos="sticky", key="text")`:
    https://github.com/google-research/big_vision/blob/main/big_vision/configs/proj/image_text/SigLIP2_demo.ipynb
    """
    if plain.normalizer is None or plain.normalizer.normalize_str("a b") != f"a{_SPACE}b":
        raise CheckpointError(
            f"{file} lacks Gemma's normaliser, which writes spaces as {_SPACE!r}: its ids would be wrong. Copy it from "
            "the model's repository"
        )
    names = ("eos_token", "pad_token")
    defaults = {"eos_token": "<eos>", "pad_token": "<pad>", **config}
    end_id, pad_id = (plain.token_to_id(_token(defaults, name)) for name in names)
    if end_id is None or pad_id is None:
        raise CheckpointError(f"{file} has no {' or no '.join(_token(defaults, name) for name in names)}")
    original = load_tokenizer(file.parent)
    plain.normalizer = normalizers.Sequence(
        [*(normalizers.Replace(letter.upper(), letter) for letter in string.ascii_lowercase), plain.normalizer]
    )
    plain.post_processor = _appended(_token(defaults, "eos_token"), end_id)

    def reference(text: str) -> list[int]:
        return list(original.encode(ascii_lower(text), add_special_tokens=False))

    return SiglipTokenizer(plain, reference, pad_id, end_id, _max_length(config))


def _config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as exc:
        raise CheckpointError(f"{file} is not JSON: {exc}. Download the checkpoint again") from exc
    return config if isinstance(config, dict) else {}


def _token(config: dict[str, Any], name: str) -> str:
    """Return a special token of tokenizer_config.json, which is a string or an object; SigLIP's by default."""
    token = config.get(name) or {"unk_token": "<unk>"}.get(name, "</s>")
    return str(token["content"] if isinstance(token, dict) else token)


def _max_length(config: dict[str, Any]) -> int:
    return int(config.get("model_max_length") or _CONTEXT)


def _charsmap(precompiled: bytes) -> normalizers.Normalizer:
    """Return what SentencePiece's own table does to a text, mostly NFKC.

    The library looks up whole grapheme clusters, and of one such as a letter with two accents or half-width kana with a
    voicing mark it drops or keeps apart what follows the first match, where SentencePiece takes the longest. After
    Unicode's own normalisation no such clusters are left. The wide tilde alone is not in SentencePiece's NFKC.
    """
    if not precompiled:
        return normalizers.Sequence([])
    table = normalizers.Precompiled(precompiled)
    if table.normalize_str("\uff21") != "A":
        return normalizers.Sequence([normalizers.NFC(), table])
    if table.normalize_str(_WIDE_TILDE) != _WIDE_TILDE:
        return normalizers.Sequence([normalizers.NFKC(), table])
    hide, show = (_WIDE_TILDE, _NO_CHARACTER), (_NO_CHARACTER, _WIDE_TILDE)
    return normalizers.Sequence([normalizers.Replace(*hide), normalizers.NFKC(), table, normalizers.Replace(*show)])


def _unclean(piece: str) -> bool:
    """Whether a piece cannot occur in a cleaned text: it has punctuation or capitals."""
    return any(character in string.punctuation or character.isupper() for character in piece)


def _appended(token: str, token_id: int) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(single=f"$A {token}", special_tokens=[(token, token_id)])
