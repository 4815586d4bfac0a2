"""Long texts are encoded in parts, and have the tokens of the whole."""

import io

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ngpt.data import tokenizer as module
from megatron_ngpt.data.seams import Seams
from megatron_ngpt.data.tokenizer import Tokenizer
from megatron_ngpt.errors import DataError

WORDS = ["the", "def", "return", " ", "  ", "    ", "\n", "\n\n", "(",
         "aaa", "ab", "ba", "▁", "é", "漢字", "😀", "\t", "\x00", "1", "23", "x"]
TEXT = ["def return the ab ba aaa (x) 1 23", "aaa  aab", "the    é x", "ab ab ba"] * 30
OWN = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "add_dummy_prefix": False, "byte_fallback": True,
       "allow_whitespace_only_pieces": True, "user_defined_symbols": ["\n"]}
KINDS = {        # model: (options, whether it has seams)
    "ours": (OWN, True),
    "as Llama-2's": ({**OWN, "add_dummy_prefix": True, "user_defined_symbols": []}, True),
    "no bytes": ({**OWN, "byte_fallback": False}, True),
    "symbols of several characters": ({**OWN, "user_defined_symbols": ["\n", "ab\n", "(x", "aa"]}, True),
    "pieces over words": ({**OWN, "split_by_whitespace": False}, True),
    "unigram": ({**OWN, "model_type": "unigram"}, False),
    "another normalisation": ({**OWN, "normalization_rule_name": "nmt_nfkc"}, False),
    "spaces removed": ({**OWN, "remove_extra_whitespaces": True}, False),
    "spaces behind words": ({**OWN, "treat_whitespace_as_suffix": True}, False),
}


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory):
    """(tokenizer, whether it has seams)."""
    options, exact = KINDS[request.param]
    into, path = io.BytesIO(), tmp_path_factory.mktemp("seams") / "t.model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT), model_writer=into, minloglevel=2, **{"model_type": "bpe", **options}, hard_vocab_limit=False,
        vocab_size=256 + 70 if options["byte_fallback"] else 70, character_coverage=1.0, pad_id=3)
    path.write_bytes(into.getvalue())
    return Tokenizer(path), exact


@settings(deadline=None, max_examples=150)
@given(words=st.lists(st.one_of(st.sampled_from(WORDS), st.text(st.characters(codec="utf-8"), max_size=3)), max_size=60),
       size=st.integers(1, 20))
def test_the_tokens_of_the_parts_are_the_tokens_of_the_whole(model, words, size):
    tokenizer, _ = model
    text, whole = "".join(words), tokenizer.encode("".join(words))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PART_CHARACTERS", size)
        assert np.array_equal(tokenizer.encode(text), whole)
        ended = tokenizer.encode_ended([text, "x", text])
    assert [tokens.tolist() for tokens in ended] == [[*tokenizer.encode(one).tolist(), tokenizer.eos_id] for one in (text, "x", text)]
    assert all(tokens.dtype == np.int32 for tokens in ended)


def test_which_models_have_seams(model):
    tokenizer, exact = model
    assert tokenizer.whole("x" * (module.PART_CHARACTERS + 1)) is not exact and tokenizer.whole("x" * module.PART_CHARACTERS)


def test_parts_are_small(model):
    tokenizer, exact = model
    if exact:
        text = "the ab (x) é\n" * 500
        parts = list(Seams(tokenizer._processor.serialized_model_proto()).parts(text, 50))
        assert max(map(len, parts)) <= 70 and len(parts) > 80


def test_half_of_a_surrogate_pair_is_told(model):
    with pytest.raises(DataError, match=r"text '\\udcff.': half of a surrogate pair"):
        model[0].encode("ab\udcffx")
