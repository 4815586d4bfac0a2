"""The tokenizer of an export: `AutoTokenizer` gives SentencePiece's tokens, for our tokenizers and for other people's."""

import json
import shutil
import sysconfig
from pathlib import Path

import pytest
import tokenizers
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_tools.train_tokenizer import Options, train_tokenizer
from megatron_ngpt.checkpoint.export import export
from megatron_ngpt.checkpoint.hub import tokenizer as hub
from megatron_ngpt.checkpoint.hub.tokenizer import write_tokenizer
from megatron_ngpt.data.tokenizer import Tokenizer
from tests.checkpoint.trained import fine_tune, make_model, save_run
from tests.data.small_data import make_tokenizer

SOURCES = [path.read_text("utf-8", errors="replace") for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:60]]
OTHER = ["Ärger, naïve café", "これは日本語の文章です。", "ｆｕｌｌ ①②③ ﬁ", "привет мир", "👍🏽 emoji 👨‍👩‍👧"] * 60
FAST, WRAPPED = True, False
KINDS = {
    "our bpe": FAST,
    "our unigram": WRAPPED,
    "like llama's": FAST,
    "unigram, normalised": WRAPPED,
    "bpe, normalised, no bytes": WRAPPED,
    "symbols": FAST,
    "symbols with spaces": WRAPPED,
}
ATOMS = [
    " ", "  ", "\n", "\t", "\r\n", "\x00", "\x7f", "\u00a0", "\u2028", "\u200d", "\ufffd", "▁", "é", "e\u0301", "ﬁ", "①", "ｆ",
    "日本", "각", "👍", "🏽", "👨‍👩‍👧", "<s>", "</s>", "<unk>", "<pad>", "<0x41>", "<mask>", "::", "def ", "import", "self.",
    "aaa", "aba", "----", "####", "12", "3.5",
]  # fmt: skip
PART = st.one_of(
    st.sampled_from(ATOMS),
    st.sampled_from(ATOMS).map(lambda atom: atom * 7),
    st.text(max_size=8),
    st.tuples(st.sampled_from(SOURCES), st.integers(0, 10_000), st.integers(1, 200)).map(lambda cut: cut[0][cut[1] : cut[1] + cut[2]]),
)
TEXT = st.lists(PART, max_size=8).map("".join)


def train(directory: Path, kind: str) -> str:
    """A small tokenizer of a kind."""
    lines = [line for text in SOURCES[:30] for line in text.split("\n") if line] + OTHER
    if kind.startswith("our"):
        (directory / "text.txt").write_text("\n".join(lines), "utf-8")
        options = Options([str(directory / "text.txt")], str(directory / "ours"), 1500, model=kind.removeprefix("our "))
        return train_tokenizer(options)[0]
    default = {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True, "byte_fallback": False}
    symbols = {"user_defined_symbols": ["<mask>", "::", "\n"], "allow_whitespace_only_pieces": True}
    changes = {
        "like llama's": {"pad_id": -1, "split_digits": True, "allow_whitespace_only_pieces": True, "character_coverage": 0.9995},
        "unigram, normalised": {**default, "byte_fallback": True, "model_type": "unigram"},
        "bpe, normalised, no bytes": default,
        "symbols": {**symbols, "add_dummy_prefix": False},
        "symbols with spaces": {**symbols, "user_defined_symbols": ["def ", "::"]},
    }[kind]
    return make_tokenizer(directory / "other.model", lines, 1500, hard_vocab_limit=False, **changes)


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """(kind, SentencePiece's tokenizer, the one of `transformers`)."""
    directory = tmp_path_factory.mktemp("tokenizer")
    ours = Tokenizer(train(directory, request.param))
    (directory / "export").mkdir()
    write_tokenizer(ours, directory / "export", 512)
    return request.param, ours, load(directory / "export", trust_remote_code=not KINDS[request.param])


def load(directory: Path, trust_remote_code: bool):
    if not (directory / "config.json").exists():
        (directory / "config.json").write_text('{"model_type": "llama"}')
    return AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)


def check(ours: Tokenizer, theirs, text: str) -> None:
    """The same tokens, and the same text of them; a text is never given special tokens, nor are any found in it."""
    tokens = ours.encode(text).tolist()
    assert theirs(text)["input_ids"] == tokens
    if 0 not in tokens:  # the unknown token, which SentencePiece writes as a sign of its own
        assert theirs.decode(tokens) == ours.decode(tokens)


def test_form(pair):
    kind, ours, theirs = pair
    assert theirs.is_fast == KINDS[kind]
    assert len(theirs) == ours.size and theirs.convert_ids_to_tokens(range(ours.size)) == [ours.piece(i) for i in range(ours.size)]
    assert (theirs.unk_token_id, theirs.bos_token_id, theirs.eos_token_id) == (0, ours.eos_id, ours.eos_id)
    assert theirs.pad_token_id == ours.pad_id and (kind != "like llama's" or ours.pad_id is None)
    assert theirs.model_max_length == 512


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=TEXT)
def test_any_text(pair, text):
    check(*pair[1:], text)


def test_whole_files(pair):
    for text in SOURCES:
        check(*pair[1:], text)


def test_special_tokens(pair):
    """Told by id, left out when asked; in a text they are text."""
    _, ours, theirs = pair
    tokens = ours.encode("x = 1").tolist()
    assert theirs.decode([*tokens, ours.eos_id]) == "x = 1</s>"
    assert theirs.decode([1, *tokens, ours.eos_id], skip_special_tokens=True) == "x = 1"
    assert ours.eos_id not in theirs("a </s> b")["input_ids"]
    assert theirs("a </s> b", split_special_tokens=False)["input_ids"].count(ours.eos_id) == 1


def test_batch_is_padded_on_the_left(pair):
    _, ours, theirs = pair
    if ours.pad_id is None:
        theirs.pad_token = theirs.eos_token
    batch = theirs(["x", "def f(x): return x"], padding=True)
    short, long = (ours.encode(text).tolist() for text in ("x", "def f(x): return x"))
    gap = len(long) - len(short)
    assert batch["input_ids"] == [[theirs.pad_token_id] * gap + short, long]
    assert batch["attention_mask"] == [[0] * gap + [1] * len(short), [1] * len(long)]


@pytest.mark.parametrize("kind", ["our bpe", "our unigram"])
@pytest.mark.parametrize("arch", ["ngpt", "gpt"])
def test_in_an_export(tmp_path, arch, kind):
    ours = Tokenizer(train(tmp_path, kind))
    save_run(tmp_path / "run", make_model(arch, vocabulary=ours.size + 2), ours.path)
    export(tmp_path / "run", tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=not (KINDS[kind] and arch == "gpt"))
    check(ours, theirs, SOURCES[0])
    assert theirs.is_fast == KINDS[kind] and (tmp_path / "out" / "tokenizer.model").read_bytes() == Path(ours.path).read_bytes()
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 3, "suppress_tokens": [ours.size, ours.size + 1]}
    theirs.save_pretrained(tmp_path / "again")
    shutil.copy(tmp_path / "out" / "config.json", tmp_path / "again")
    check(ours, AutoTokenizer.from_pretrained(tmp_path / "again", trust_remote_code=True), SOURCES[0])


@pytest.mark.parametrize("arch", ["ngpt", "gpt"])
@pytest.mark.parametrize("kind", ["our bpe", "our unigram", "like llama's"])
def test_every_file_says_the_same(tmp_path, arch, kind):
    """Ids, vocabulary, length and spaces, as converters read them from the JSON files, and as `transformers` does."""
    ours = Tokenizer(train(tmp_path, kind))
    module = make_model(arch, vocabulary=ours.size + 3)
    save_run(tmp_path / "run", module, ours.path)
    export(tmp_path / "run", tmp_path / "out")
    config, generation, told = (
        json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in ("config", "generation_config", "tokenizer_config")
    )
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    for name, token in {"bos": ours.eos_id, "eos": ours.eos_id, "pad": ours.pad_id}.items():
        piece = None if token is None else ours.piece(token)
        assert (config[f"{name}_token_id"], generation[f"{name}_token_id"], told[f"{name}_token"]) == (token, token, piece), name
        assert getattr(theirs, f"{name}_token_id") == token, name
    assert told["add_prefix_space"] is told["legacy"] is (kind == "like llama's")
    assert (told["add_bos_token"], told["add_eos_token"]) == (False, False)
    assert config["vocab_size"] == len(theirs) + 3 and generation["suppress_tokens"] == [*range(len(theirs), config["vocab_size"])]
    assert told["model_max_length"] == config["max_position_embeddings"] == theirs.model_max_length
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert model.generate(max_new_tokens=1, do_sample=False)[0, 0] == ours.eos_id


@pytest.mark.parametrize("arch", ["ngpt", "gpt"])
@pytest.mark.parametrize("kind", ["our bpe", "our unigram"])
def test_tokens_are_added_trained_and_generated(tmp_path, arch, kind):
    """As fine-tuning recipes do: more tokens, a model resized to them, trained until it says one; saved and loaded."""
    ours = Tokenizer(train(tmp_path, kind))
    save_run(tmp_path / "run", make_model(arch, vocabulary=ours.size + 3), ours.path)
    export(tmp_path / "run", tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert theirs.add_tokens(["<|a|>", "<|b|>"], special_tokens=True) == 2
    assert theirs.convert_tokens_to_ids("<|b|>") == ours.size + 1
    assert theirs("x", add_special_tokens=True)["input_ids"] == ours.encode("x").tolist()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    model.resize_token_embeddings(len(theirs))
    assert model.config.vocab_size == len(theirs) == ours.size + 2
    tokens = torch.tensor([[5, 6, ours.size, ours.size + 1]])
    fine_tune(model, tokens, steps=200, lr=0.03)
    model.save_pretrained(tmp_path / "tuned")
    theirs.save_pretrained(tmp_path / "tuned")
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned", trust_remote_code=True)
    again = AutoTokenizer.from_pretrained(tmp_path / "tuned", trust_remote_code=True)
    assert len(again) == ours.size + 2
    said = tuned.generate(tokens[:, :2], max_new_tokens=2, do_sample=False)
    if arch == "ngpt":  # a Llama's generation_config.json is its own affair
        assert said.equal(tokens) and again.decode(said[0, 2:]) == "<|a|><|b|>"
    assert tuned(tokens).logits.shape[-1] == ours.size + 2


@pytest.mark.parametrize("wrong", ["a merge less", "another prefix"])
def test_conversion_that_is_not_exact_is_not_used(tmp_path, monkeypatch, wrong):
    ours = Tokenizer(train(tmp_path, "our bpe"))

    def convert(proto):
        made = hub_convert(proto)
        if wrong == "another prefix":
            made.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.Prepend("▁"), made.normalizer])
            return made
        description = json.loads(made.to_str())
        del description["model"]["merges"][700]
        return tokenizers.Tokenizer.from_str(json.dumps(description))

    hub_convert = hub.convert
    monkeypatch.setattr(hub, "convert", convert)
    (tmp_path / "export").mkdir()
    write_tokenizer(ours, tmp_path / "export", 512)
    theirs = load(tmp_path / "export", trust_remote_code=True)
    assert not theirs.is_fast
    check(ours, theirs, SOURCES[0])
