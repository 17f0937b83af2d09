"""Texts become the ids that CLIP's own tokenizers give, ragged and within the context."""

from __future__ import annotations

import gzip
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.data import PHOTO_CAPTIONS, TOKENIZATIONS, VOCABULARY
from twinspire.bundle import Padding, TextSettings
from twinspire.errors import BundleError, InputError, TextLengthError
from twinspire.text import Tokenizer

START, END = 49406, 49407


def _text_settings(context_length: int = 77, eos_id: int = END) -> TextSettings:
    return TextSettings(context_length=context_length, pad_id=eos_id, eos_id=eos_id, padding=Padding.TRIM)


@pytest.fixture(scope="module")
def clip_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer.json that transformers makes of CLIP's real vocabulary."""
    source = VOCABULARY / "bpe_simple_vocab_16e6.txt.gz"
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    # As OpenAI's simple_tokenizer.py builds it: bytes, bytes that end a word, merges, start and end.
    merges = gzip.decompress(source.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    letters = list(transformers.models.clip.tokenization_clip.bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    vocabulary = {word: place for place, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    transformers.CLIPTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    return folder / "tokenizer.json"


@pytest.fixture(scope="module")
def clip(clip_json: Path) -> Tokenizer:
    """CLIP's tokenizer."""
    return Tokenizer(clip_json, _text_settings())


@pytest.fixture
def tiny_tokenizer(tiny: Any) -> Tokenizer:
    """The tiny bundle's tokenizer: words, start 1, end 2, context 20."""
    return Tokenizer(tiny.bundle.tokenizer_path, tiny.bundle.text)


def test_reference_vectors(clip_json: Path) -> None:
    """All published CLIP tokenizations come out id by id, start and end included."""
    cases = json.loads(TOKENIZATIONS.read_text(encoding="utf-8"))
    long_enough = Tokenizer(clip_json, _text_settings(context_length=200))
    for case, ids in zip(cases, long_enough.encode([case["text"] for case in cases]), strict=True):
        assert ids.tolist() == case["ids"] == case["openai_ids"], case["name"]


def test_real_captions_agree_with_transformers(clip: Tokenizer, clip_json: Path) -> None:
    """COCO captions get the ids that transformers' slow tokenizer gives them."""
    transformers = pytest.importorskip("transformers")
    slow = transformers.CLIPTokenizer.from_pretrained(clip_json.parent)
    pictures = json.loads(PHOTO_CAPTIONS.read_text(encoding="utf-8"))
    texts = [caption for picture in pictures for caption in picture["captions"]]
    expected = slow(texts, truncation=True, max_length=77)["input_ids"]
    assert [ids.tolist() for ids in clip.encode(texts)] == expected


def test_empty_text(clip: Tokenizer) -> None:
    """An empty text is start and end, and so is one of spaces."""
    assert [ids.tolist() for ids in clip.encode(["", "  \n"])] == [[START, END]] * 2


def test_no_texts(clip: Tokenizer) -> None:
    """No texts give no sequences."""
    assert clip.encode([]) == []


@pytest.fixture(scope="module")
def by_context(clip_json: Path) -> dict[int, Tokenizer]:
    """CLIP's tokenizer with several contexts, the last one longer than any text here."""
    return {length: Tokenizer(clip_json, _text_settings(length)) for length in (2, 3, 8, 77, 100_000)}


@settings(deadline=None)
@given(texts=st.lists(st.text(max_size=120), max_size=6), context_length=st.sampled_from([2, 3, 8, 77]))
def test_every_text(by_context: dict[int, Tokenizer], texts: list[str], context_length: int) -> None:
    """Any text becomes 1-D int32 from start to end, within the context; where it was cut, the beginning is kept."""
    whole = by_context[100_000].encode(texts)
    cut = by_context[context_length].encode(texts)
    assert len(cut) == len(texts)
    for ids, all_ids in zip(cut, whole, strict=True):
        assert ids.dtype == np.int32
        assert ids.ndim == 1
        assert ids[0] == START
        assert ids[-1] == END
        assert len(ids) == min(len(all_ids), context_length)
        assert ids[:-1].tolist() == all_ids[: len(ids) - 1].tolist()


def test_batch_is_the_same_as_one_by_one(clip: Tokenizer) -> None:
    """A text's ids do not depend on what it is encoded with: nothing is padded."""
    texts = ["a cat", "a photograph of a very long train " * 3, "", "雪"]
    assert [ids.tolist() for ids in clip.encode(texts)] == [clip.encode([text])[0].tolist() for text in texts]


def test_padding_and_truncation_in_the_file_are_ignored(clip_json: Path, tmp_path: Path) -> None:
    """A tokenizer.json that asks for padding to 77 and truncation to 8 still gives ragged, whole sequences."""
    document = json.loads(clip_json.read_text(encoding="utf-8"))
    document["padding"] = {
        "strategy": {"Fixed": 77},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    document["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    encoded = Tokenizer(tmp_path / "tokenizer.json", _text_settings()).encode(["a cat", "one two " * 8])
    assert [len(ids) for ids in encoded] == [4, 18]


def test_a_cut_is_said_once(tiny_tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    """The first text that is cut is logged with both lengths; later ones, also of other threads, are not."""
    with caplog.at_level(logging.WARNING, logger="twinspire"):
        tiny_tokenizer.encode(["a cat"])
        assert not caplog.records
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(tiny_tokenizer.encode, [["a " * 30]] * 8))
    (record,) = caplog.records
    assert "32" in record.getMessage()
    assert "20" in record.getMessage()


def test_exactly_the_context_is_not_cut(tiny_tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    """A text that fills the context is whole; one word more loses that word, not the end token."""
    full, over = tiny_tokenizer.encode(["cat " * 18]), tiny_tokenizer.encode(["cat " * 18 + "dog"])
    assert full[0].tolist() == over[0].tolist()
    assert len(full[0]) == 20


@pytest.mark.parametrize(
    ("texts", "word"),
    [
        ("a cat", r"\bstr\b"),
        (b"a cat", "bytes"),
        (None, "NoneType"),
        ({"a cat"}, r"\bset\b"),
        (["a", 7], "text 1"),
        (["a", "b", None], "text 2"),
        (["a", b"b"], "text 1"),
        (["a", "half a pair: \ud83d"], "text 1"),
        (["a", "half a pair: \ud83d"], "UTF-8"),
    ],
)
def test_what_is_no_text(tiny_tokenizer: Tokenizer, texts: Any, word: str) -> None:
    """What is no list of str is an InputError that names the position and what came."""
    with pytest.raises(InputError, match=word):
        tiny_tokenizer.encode(texts)


@pytest.mark.parametrize("content", [None, "", "{}", "not json"])
def test_no_tokenizer(tmp_path: Path, content: str | None) -> None:
    """A file that is missing or no tokenizer is a BundleError that names it."""
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path / "tokenizer.json", _text_settings())


def test_end_token_must_fit(tiny: Any) -> None:
    """Settings whose end token the tokenizer does not write are a BundleError: pooling would go wrong in silence."""
    with pytest.raises(BundleError, match=r"\[1, 2\]"):
        Tokenizer(tiny.bundle.tokenizer_path, _text_settings(eos_id=9))


@pytest.mark.parametrize("context_length", [2, 3, 8])
def test_truncation_at_the_start(by_context: dict[int, Tokenizer], context_length: int) -> None:
    """`truncation="start"` keeps the start token and the last tokens that the context holds."""
    text = "a photo of a red double decker bus in front of a church"
    (whole,) = by_context[100_000].encode([text])
    cut, short = by_context[context_length].encode([text, ""], truncation="start")
    assert list(cut) == [START, *whole[len(whole) - context_length + 1 :]]
    assert list(short) == [START, END]


def test_truncation_as_an_error(tiny_tokenizer: Tokenizer) -> None:
    """`truncation="error"` names the first text that is too long, its length and the context's."""
    fits, longer = " ".join(["cat"] * 18), " ".join(["cat"] * 19)
    assert [ids.size for ids in tiny_tokenizer.encode([fits], truncation="error")] == [20]
    with pytest.raises(TextLengthError, match="context") as caught:
        tiny_tokenizer.encode([fits, longer, longer + " dog"], truncation="error")
    assert (caught.value.position, caught.value.tokens, caught.value.limit) == (1, 21, 20)


def test_an_unknown_truncation(tiny_tokenizer: Tokenizer) -> None:
    """Another word is an error that names the known ones."""
    with pytest.raises(InputError, match="start") as caught:
        tiny_tokenizer.encode(["cat"], truncation="middle")
    assert caught.value.option == "truncation"
