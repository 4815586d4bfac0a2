"""`ngpt evaluate --lengths`: windows within documents, against every token's loss worked out from the module alone."""

import csv
import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from megatron_ngpt import cli
from megatron_ngpt.config.recipe import Model, RopeScaling
from megatron_ngpt.data.batches import validation_batches
from megatron_ngpt.data.indexed import IndexedDataset
from megatron_ngpt.data.tape import Tape, select_documents
from megatron_ngpt.errors import ConfigError, DataError
from megatron_ngpt.inference import lengths as lengths_module
from megatron_ngpt.inference import lengths_command
from megatron_ngpt.inference.evaluate import evaluate
from megatron_ngpt.inference.lengths import evaluate_length, open_text, scaling_for, windows_of
from megatron_ngpt.inference.lengths_output import FILES, by_position
from megatron_ngpt.inference.load import load_model
from megatron_ngpt.parallel.grid import make_grid
from tests.data.small_data import recipe, write_dataset
from tests.on_ranks import on_ranks

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


SIZES = 1, 2, 9, 17, 18, 54, 40, 41, 33, 12  # tokens of the documents


@pytest.fixture(scope="module")
def texts(world, tmp_path_factory):
    """Documents from a single token to several windows, and their dataset."""
    documents = [document[:size] for document, size in zip(world.documents, SIZES, strict=False)]
    assert [len(document) for document in documents] == list(SIZES)
    return SimpleNamespace(documents=documents, data=write_dataset(tmp_path_factory.mktemp("lengths") / "texts", documents))


def directly(module, documents, length, stride):
    """Sums and counts by position, one window at a time, one token at a time, by the definition: a token is predicted in the first window
    that reaches it."""
    sums, counts = np.zeros(length), np.zeros(length, int)
    for document in documents:
        predicted, start = 0, 0
        while predicted < len(document) - 1:
            window = document[start : start + length + 1]
            with torch.no_grad():
                logs = torch.log_softmax(module(torch.tensor([window[:-1]]))[0].double(), -1)
            for position, token in enumerate(window[1:]):
                if start + position >= predicted:
                    sums[position] -= logs[position, token].item()
                    counts[position] += 1
            predicted = start + len(window) - 1
            start += stride
    return sums, counts


def found(loaded, data, length, stride=None, documents=None):
    return evaluate_length(loaded, open_text(loaded, data, documents, [length]), length, stride, "m", None)


@pytest.mark.parametrize(("length", "stride"), [(16, None), (16, 5), (7, 7), (40, 1), (3, 2), (1, None)])
def test_every_token_once_with_the_loss_that_the_module_gives_it(world, texts, length, stride):
    """Documents from shorter to several times as long as a window; windows side by side and overlapping."""
    result = found(load_model(world.run), texts.data, length, stride)
    sums, counts = directly(world.module, texts.documents, length, stride or length)
    assert result.counts.tolist() == counts.tolist() and counts.sum() == sum(len(document) - 1 for document in texts.documents)
    assert result.sums == pytest.approx(sums, abs=1e-4)
    assert result.loss == pytest.approx(sums.sum() / counts.sum(), abs=1e-6) and result.tokens == counts.sum()
    assert (result.documents, result.filling) == (sum(len(d) > 1 for d in texts.documents), sum(len(d) > length for d in texts.documents))


def test_parts_of_any_size_give_the_same(world, texts, monkeypatch):
    """How many windows go through the model together, and how far short ones are filled up, changes nothing."""
    loaded = load_model(world.run)
    results = []
    for tokens, paddings in ((1 << 14, 16), (1, 16), (100, 1), (100, 100)):
        monkeypatch.setattr(lengths_module, "TOKENS", tokens)
        monkeypatch.setattr(lengths_module, "PADDINGS", paddings)
        results.append(found(loaded, texts.data, 24, 9))
    for result in results[1:]:
        assert result.sums == pytest.approx(results[0].sums, abs=1e-4) and result.counts.tolist() == results[0].counts.tolist()


def test_at_the_training_length_it_is_the_validation_loss_on_the_same_windows(world, texts, tmp_path):
    """Of one document whose windows end where it ends: what training's evaluation reads, and the loss that it makes of it."""
    document = [token for document in texts.documents for token in document][: 16 * 13 + 1]
    data = write_dataset(tmp_path / "one", [document])
    loaded = load_model(world.run)
    entries = [{"prefix": data}]
    source = validation_batches(recipe(entries, entries, context=16, global_batch=13, vocab=world.tokenizer.size))["one"]
    rows = torch.from_numpy(source.rows(1, 0, 13).tokens).long()
    with torch.no_grad():
        trained = loaded.module(rows[:, :-1], rows[:, 1:]).item()
    plain = evaluate(loaded, data)
    assert source.samples_per_epoch == 13 and plain["tokens"] == 16 * 13
    assert found(loaded, data, 16).loss == pytest.approx(plain["loss"], abs=1e-7) == pytest.approx(trained, abs=1e-6)


@pytest.mark.parametrize(("bounds", "length", "stride", "windows"), [
    ([0, 1], 4, 4, []),
    ([0, 5], 4, 4, [[0, 4, 0]]),
    ([0, 6], 4, 4, [[0, 4, 0], [4, 1, 0]]),
    ([0, 6, 6, 9], 4, 1, [[0, 4, 0], [1, 4, 3], [6, 2, 0]]),
    ([0, 10], 4, 3, [[0, 4, 0], [3, 4, 1], [6, 3, 1]]),
])
def test_windows(bounds, length, stride, windows):
    assert windows_of(np.array(bounds), length, stride).tolist() == windows


def test_shards_are_one_row_of_documents(world, texts, tmp_path):
    half = len(texts.documents) // 2
    for name, documents in (("a", texts.documents[:half]), ("b", texts.documents[half:])):
        write_dataset(tmp_path / f"part-{name}", documents)
    loaded = load_model(world.run)
    whole, parts = found(loaded, texts.data, 12, 4), found(loaded, str(tmp_path / "part-*"), 12, 4)
    assert parts.sums == pytest.approx(whole.sums, abs=1e-5) and parts.word_perplexity == pytest.approx(whole.word_perplexity)
    first = found(loaded, str(tmp_path / "part-*"), 12, 4, half + 1)
    sums, counts = directly(world.module, texts.documents[: half + 1], 12, 4)
    assert first.sums == pytest.approx(sums, abs=1e-4) and first.counts.tolist() == counts.tolist()


@pytest.mark.parametrize(("first", "last"), [(0, 7), (1, 6), (2, 3), (5, 5)])
def test_bounds_of_documents_in_parts_of_shards(tmp_path, first, last):
    """Whichever documents of them are taken, none among them."""
    lengths = [3, 1, 4, 1, 5, 9, 2]
    parts = [[[7] * length for length in part] for part in (lengths[:3], lengths[3:])]
    prefixes = [write_dataset(tmp_path / str(number), documents) for number, documents in enumerate(parts)]
    tape = Tape(select_documents(list(map(IndexedDataset, prefixes)), first, last))
    assert tape.document_bounds().tolist() == [0, *np.cumsum(lengths[first:last]).tolist()]


def test_perplexity_a_word(world, texts, tmp_path):
    """Total nats over the words of the raw text, which the tokenizer gives back, or the dataset remembers."""
    loaded = load_model(world.run)
    words = sum(len(world.tokenizer.decode(document).split()) for document in texts.documents)
    result = found(loaded, texts.data, 16)
    assert words > 20 and result.word_perplexity == pytest.approx(math.exp(result.loss * result.tokens / words))
    told = [3 * number + 1 for number in range(len(texts.documents))]
    remembering = write_dataset(tmp_path / "told", texts.documents, document_words=told)
    result = found(loaded, remembering, 16)
    assert result.word_perplexity == pytest.approx(math.exp(result.loss * result.tokens / sum(told)))
    result = found(loaded, remembering, 16, documents=4)
    assert result.word_perplexity == pytest.approx(math.exp(result.loss * result.tokens / sum(told[:4])))
    with pytest.raises(DataError, match="has 1 entries for 2 documents; remove it"):
        found(loaded, write_dataset(tmp_path / "odd", texts.documents[:2], document_words=[1]), 4)


def test_scalings_by_length():
    """By the length over the model's context, which an own scaling has stretched already; up to it nothing is scaled."""
    plain = RopeScaling(kind="none", factor=1.0)
    model = Model(context=64)
    assert scaling_for(model, None, None, 999) is None and scaling_for(model, "none", None, 999) == plain
    assert scaling_for(model, "ntk", None, 64) == plain and scaling_for(model, "ntk", None, 96) == RopeScaling(kind="ntk", factor=1.5)
    assert scaling_for(model, "linear", 4.0, 32) == RopeScaling(kind="linear", factor=4.0)
    stretched = Model(context=64, rope_scaling={"kind": "yarn", "factor": 4.0, "original_context": 16})
    assert scaling_for(stretched, "yarn", None, 64) == RopeScaling(kind="yarn", factor=4.0)


def evaluated(model, data, sizes):
    """What a rank finds at a length that the ranks do not divide."""
    loaded = load_model(model, grid=make_grid(**sizes))
    result = found(loaded, data, 21, 8)
    return result.sums, result.shown(), loaded.module.blueprint.context_kind


@pytest.mark.parametrize(("ranks", "sizes", "kind"), [
    (4, {"tensor": 2, "pipeline": 2}, "ulysses"), (4, {"context": 2}, "ulysses"), (3, {"context": 3}, "ring"),
])
def test_every_layout_finds_the_same(world, texts, ranks, sizes, kind):
    """Tensor and pipeline ranks; windows over context ranks by heads, beside data ranks, and in a ring."""
    alone = found(load_model(world.run), texts.data, 21, 8)
    for sums, shown, found_kind in on_ranks(ranks, evaluated, world.run, texts.data, sizes):
        assert sums == pytest.approx(alone.sums, abs=1e-4) and found_kind == kind
        assert {**shown, "loss": 0, "perplexity": 0, "word_perplexity": 0} == \
            {**alone.shown(), "loss": 0, "perplexity": 0, "word_perplexity": 0}


@pytest.fixture
def command(world, texts, monkeypatch, capsys):
    """Runs `ngpt evaluate MODEL --data ...`; returns (status, stdout, stderr)."""

    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["ngpt", "evaluate", str(world.run), *map(str, argv), "--data", texts.data])
        return cli.main(), *capsys.readouterr()

    return run


def test_command(world, texts, command, tmp_path, monkeypatch):
    """Two models, each read once, and two scalings; a JSON object a line, the same in files, figures, and losses by position that add
    up."""
    out, read = tmp_path / "out" / "deep", []
    monkeypatch.setattr(lengths_command, "load_model", lambda path, **options: read.append(path) or load_model(path, **options))
    asked = ["--lengths", "16,40", "--stride", 8, "--rope_scaling", "none", "--rope_scaling", "yarn", "--out", out]
    status, printed, _ = command(world.exported, *asked)
    lines = [json.loads(line) for line in printed.splitlines()]
    assert status == 0 and read == [world.run, world.exported]
    assert lines == json.loads((out / "lengths.json").read_text()) and len(lines) == 8
    names = [(line["model"], line["rope_scaling"], line["context"], line["rope_factor"]) for line in lines]
    each = [("none", 16, 1.0), ("none", 40, 1.0), ("yarn", 16, 1.0), ("yarn", 40, 2.5)]
    assert names == [(str(model), *one) for model in (world.run, world.exported) for one in each]
    plain = found(load_model(world.run), texts.data, 40, 8)
    scaled = found(load_model(world.run, scaling=RopeScaling(kind="yarn", factor=2.5)), texts.data, 40, 8)
    assert lines[1]["loss"] == pytest.approx(plain.loss, abs=1e-6) and lines[3]["loss"] == pytest.approx(scaled.loss, abs=1e-6)
    assert abs(plain.loss - scaled.loss) > 1e-5 and lines[0] | {"rope_scaling": "yarn"} == lines[2]
    assert all(lines[place]["loss"] == pytest.approx(lines[place + 4]["loss"], abs=1e-5) for place in range(4))
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in FILES if name.endswith("png"))
    with (out / "lengths.csv").open() as file:
        assert [float(row["loss"]) for row in csv.DictReader(file)] == [line["loss"] for line in lines]
    with (out / "positions.csv").open() as file:
        rows = list(csv.DictReader(file))
    rows = [row for row in rows if (row["model"], row["rope_scaling"], row["context"]) == (str(world.run), "none", "40")]
    assert sum(int(row["tokens"]) for row in rows) == plain.tokens
    assert sum(float(row["loss"]) * int(row["tokens"]) for row in rows) == pytest.approx(plain.loss * plain.tokens)
    assert [(int(row["first"]), int(row["last"])) for row in rows][::len(rows) - 1] == [(0, 0), (by_position(plain)[-1][0], 39)]


@pytest.mark.parametrize(("asked", "said"), [
    (["--lengths", "16,8"], "--lengths 16,8: give lengths in tokens, each above the one before it"),
    (["--lengths", "16", "--stride", "17"], "--stride 17: windows of --lengths 16 would leave tokens out between them; give at most 16"),
    (["--lengths", "16", "--context", "16"], "--context 16: not with --lengths"),
    (["--lengths", "16", "--batches", "1"], "--batches 1: not with --lengths"),
    (["--lengths", "16", "--rope_factor", "2"], "--rope_factor 2: scales with --rope_scaling linear, ntk or yarn; give one of them"),
    (["--lengths", "16,4000"], "--lengths 4000: no document of "),
    (["--lengths", "40", "--documents", "1"], "--lengths 40: no document of the first 1 documents of "),
    (["--lengths", "16", "--rope_scaling", "dynamic"], "ngpt evaluate: Invalid value for '--rope_scaling'"),
    (["--stride", "4"], "--stride 4: only with --lengths; give --lengths 1024,2048 or so, or leave --stride out"),
    (["--documents", "4"], "--documents 4: only with --lengths"),
    (["--out", "x"], "--out x: only with --lengths"),
    (["another"], "MODEL another: one is enough; several can be compared with --lengths"),
    (["--lengths", "16", "--out", "a-file"], "--out a-file: a-file cannot be written: File exists; choose another directory"),
])
def test_mistakes_are_one_line(command, tmp_path, monkeypatch, asked, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("")
    status, out, err = command(*asked)
    assert (status, out, len(err.splitlines())) == (2, "", 1) and err.startswith(said), err


def test_a_stride_that_leaves_gaps_is_refused_for_whoever_calls(world, texts):
    with pytest.raises(ConfigError, match="--stride 5: windows of --lengths 4 would leave"):
        found(load_model(world.run), texts.data, 4, 5)
