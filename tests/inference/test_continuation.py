"""A continuation's text: whole characters as they come, stop texts never."""

import pytest

from megatron_ngpt.data.tokenizer import Tokenizer
from megatron_ngpt.inference.continuation import Continuation
from tests.data.small_data import make_tokenizer


@pytest.fixture(scope="module", params=["plain", "llama"])
def tokenizer(request, tmp_path_factory):
    """Ours, which keeps every space, and one that adds a space in front as Llama's does."""
    options = {} if request.param == "plain" else {"add_dummy_prefix": True}
    lines = ["the quick brown fox jumps over the lazy dog, and then over another one", "a house by the sea in the summer"] * 20
    path = tmp_path_factory.mktemp("tokenizer") / "small.model"
    return Tokenizer(make_tokenizer(path, lines, 300 + 20, **options))


def feed(tokenizer, prompt, text, stops=()):
    """Pieces that a continuation shows while the tokens of `text` come, the tokens it took, and its text."""
    pieces = []
    row = Continuation(tokenizer, prompt, list(stops), pieces.append)
    for token in tokenizer.encode(prompt + text).tolist()[len(row.given) if prompt else 0 :]:
        if row.ended:
            break
        row.add(token)
    return pieces, len(row.tokens), row.finish()


@pytest.mark.parametrize("text", [" the house", ", über Straße", " 日本語 and 🙂🙃", "  \n\n  x", " é"])
def test_pieces_are_whole_characters_and_make_up_the_text(tokenizer, text):
    pieces, _, found = feed(tokenizer, "quick", text)
    assert found == text and "".join(pieces) == text
    assert all("\N{REPLACEMENT CHARACTER}" not in piece and piece for piece in pieces)
    assert len(pieces) > 1


def test_an_incomplete_character_at_the_end_is_told_at_the_end(tokenizer):
    pieces = []
    row = Continuation(tokenizer, "the", show=pieces.append)
    for token in tokenizer.encode("日").tolist()[-3:-1]:
        row.add(token)
    assert pieces == []
    assert row.finish() == "".join(pieces) != ""


def test_empty_prompt(tokenizer):
    pieces, _, found = feed(tokenizer, "", "the sea")
    assert found == "".join(pieces) == "the sea"


@pytest.mark.parametrize(("stops", "left"), [
    (["over"], " fox jumps "),
    (["lazy", "jumps"], " fox "),
    (["x j"], " fo"),
    (["over the lazy cat"], " fox jumps over the lazy dog"),
    (["dog,"], " fox jumps over the lazy dog"),
    (["", "nowhere"], " fox jumps over the lazy dog"),
    ([" fox"], ""),
    (["x", "f", "o"], " "),
])
def test_stop_texts_end_it_and_are_never_shown(tokenizer, stops, left):
    text = " fox jumps over the lazy dog"
    pieces, taken, found = feed(tokenizer, "quick", text, stops)
    assert found == left and "".join(pieces) == left
    everything = feed(tokenizer, "quick", text)[1]
    assert taken < everything if left != text else taken == everything


def test_a_stop_text_of_several_bytes_a_character(tokenizer):
    assert feed(tokenizer, "the", " 日本語", ["本"])[2] == " 日"


def test_the_end_token_ends_it_and_is_no_text(tokenizer):
    row = Continuation(tokenizer, "the")
    row.add(tokenizer.encode("the sea").tolist()[-1])
    row.add(tokenizer.eos_id)
    assert row.ended and len(row.tokens) == 1


def test_a_prompt_of_which_the_end_is_kept(tokenizer):
    """What follows keeps its space, whatever the tokenizer does at the start of a text."""
    row = Continuation(tokenizer, "the quick brown fox", room=3)
    assert row.given == tokenizer.encode("the quick brown fox").tolist()[-3:]
    for token in tokenizer.encode("the quick brown fox jumps").tolist()[len(tokenizer.encode("the quick brown fox")) :]:
        row.add(token)
    assert row.finish() == " jumps"
