"""`merge` is concatenation or a shuffle of documents, `split` a partition of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import write_dataset
from test_preprocess import documents_of, json_lines

from data_tools import merge as merging
from data_tools.merge import merge
from data_tools.split import part_sizes, split, split_by_length
from megatron_ngpt.arguments import parse_lengths
from megatron_ngpt.data.indexed import IndexedDataset, read_meta
from megatron_ngpt.errors import ConfigError

documents_strategy = st.lists(st.lists(st.integers(0, 65535), min_size=1, max_size=9), min_size=1, max_size=15)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(merging.document_blocks, "__defaults__", (10,))
    monkeypatch.setattr(merging, "BUCKET_BYTES", 40)


def write_all(folder, parts) -> list[str]:
    return [write_dataset(folder / f"in{i}", documents, "i4" if i % 2 else "u2") for i, documents in enumerate(parts)]


@settings(deadline=None, max_examples=30)
@given(parts=st.lists(documents_strategy, min_size=1, max_size=4))
def test_merge_is_concatenation(tmp_path_factory, parts):
    folder = tmp_path_factory.mktemp("merge")
    meta = merge(write_all(folder, parts), str(folder / "out"))
    assert documents_of(folder / "out") == [document for part in parts for document in part]
    assert meta == read_meta(str(folder / "out")) and meta["dtype"] == ("int32" if len(parts) > 1 else "uint16")
    assert sorted(path.name for path in folder.glob("out*")) == ["out.bin", "out.idx", "out.meta.json"]


@settings(deadline=None, max_examples=30)
@given(parts=st.lists(documents_strategy, min_size=1, max_size=3), seed=st.integers(0, 9))
def test_a_shuffled_merge_keeps_every_document(tmp_path_factory, parts, seed):
    folder = tmp_path_factory.mktemp("shuffle")
    prefixes = write_all(folder, parts)
    for output in "ab":
        merge(prefixes, str(folder / output), seed)
    assert sorted(documents_of(folder / "a")) == sorted(document for part in parts for document in part)
    assert (folder / "a.bin").read_bytes() == (folder / "b.bin").read_bytes()


def test_the_shuffle_is_even_and_follows_its_seed(tmp_path):
    """Where each of 8 documents goes over 400 seeds: chi-squared, 63 degrees of freedom, 1 in 10,000 above 115."""
    prefix = write_dataset(tmp_path / "d", [[i] * 3 for i in range(8)])
    counts = np.zeros((8, 8))
    for seed in range(400):
        blocks = merging._shuffled([IndexedDataset(prefix)], seed, tmp_path / "buckets", np.dtype("u2"))
        order = np.concatenate([tokens for tokens, _ in blocks])[::3]
        counts[order.astype(int), np.arange(8)] += 1
    assert ((counts - 50) ** 2 / 50).sum() < 115
    assert not (tmp_path / "buckets").exists()


@settings(deadline=None, max_examples=30)
@given(documents=st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=3, max_size=30),
       seed=st.integers(0, 9), shares=st.sampled_from([(0.3, 0.2), (0.01, 0.0), (0.0, 0.4)]))
def test_split_is_a_partition_in_order(tmp_path_factory, documents, seed, shares):
    folder = tmp_path_factory.mktemp("split")
    documents = [[100 + number, *tokens] for number, tokens in enumerate(documents)]
    metas = split(write_dataset(folder / "d", documents), str(folder / "out"), *shares, seed)
    parts = {name: documents_of(folder / f"out-{name}") for name in metas}
    assert sorted(document for part in parts.values() for document in part) == sorted(documents)
    assert all(part == sorted(part) for part in parts.values())
    assert set(parts) == {"train"} | {name for name, share in zip(("valid", "test"), shares, strict=True) if share}
    for name, share in zip(("valid", "test"), shares, strict=True):
        assert len(parts.get(name, [])) == (max(1, round(share * len(documents))) if share else 0)


def test_split_follows_its_seed(tmp_path):
    prefix = write_dataset(tmp_path / "d", [[i] for i in range(100)])
    for seed in (0, 1):
        split(prefix, str(tmp_path / f"s{seed}"), 0.2, 0.0, seed)
    assert documents_of(tmp_path / "s0-valid") != documents_of(tmp_path / "s1-valid")


@settings(deadline=None, max_examples=30)
@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=30),
       lengths=st.lists(st.integers(1, 12), min_size=1, unique=True).map(sorted))
def test_split_by_length_is_a_partition_in_order(tmp_path_factory, sizes, lengths):
    folder = tmp_path_factory.mktemp("lengths")
    documents = [[100 + number] * size for number, size in enumerate(sizes)]
    metas = split_by_length(write_dataset(folder / "d", documents, tokenizer_sha256="a" * 64), str(folder / "out"), lengths)
    written = {path.stem.removeprefix("out-") for path in folder.glob("out-*.idx")}
    assert written == set(metas) and {path.suffix for path in folder.iterdir()} == {".bin", ".idx", ".json"}
    wanted = {}
    for document in documents:
        low = max([0, *(length for length in lengths if length <= len(document))])
        high = min([length for length in lengths if length > len(document)], default="up")
        wanted.setdefault(f"{low}-{high}", []).append(document)
    assert {part: documents_of(folder / f"out-{part}") for part in metas} == wanted
    assert all(meta["tokenizer_sha256"] == "a" * 64 for meta in metas.values())


@pytest.mark.parametrize("lengths", ["", "1024,", "4096,1024", "8,8", "0,8", "-1", "1e3", "8;9", ",".join(map(str, range(1, 66)))])
def test_lengths_that_are_none(lengths):
    with pytest.raises(ConfigError, match=r"--lengths .*: give lengths in tokens"):
        parse_lengths(lengths)


@pytest.mark.parametrize("valid, test, message", [
    (0.0, 0.0, "above 0"), (0.6, 0.4, "below 1"), (1.5, 0.0, "--valid 1.5"), (0.0, -0.1, "--test -0.1"),
    (0.9, 0.05, "too few"),
])
def test_impossible_shares(valid, test, message):
    with pytest.raises(ConfigError, match=message):
        part_sizes(2, valid, test)


def test_commands(tmp_path, tokenizer_path, run):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_bytes(json_lines([f"{name} {i}" for i in range(10)]))
        run("preprocess", "--input", tmp_path / f"{name}.jsonl", "--tokenizer", tokenizer_path, "--output", tmp_path / name)
    outcome = run("merge", "--input", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "ab", "--shuffle_seed", 1)
    assert outcome.code == 0 and "20 documents" in outcome.out
    assert run("split", "--input", tmp_path / "ab", "--output", tmp_path / "ab", "--valid", 0.1).code == 0
    assert run("verify", tmp_path / "ab*", "--tokenizer", tokenizer_path).out.count("are right") == 3
    meta = read_meta(str(tmp_path / "ab-train"))
    assert meta["tokenizer_sha256"] == read_meta(str(tmp_path / "a"))["tokenizer_sha256"]
    for arguments, message in (
        (("merge", "--input", tmp_path / "a", "--output", tmp_path / "b"), "b.idx exists"),
        (("merge", "--input", tmp_path / "none", "--output", tmp_path / "c"), "none.idx: no such file"),
        (("merge", "--input", f"{tmp_path}/none*", "--output", tmp_path / "c"), "matches no .idx"),
        (("split", "--input", tmp_path / "a", "--output", tmp_path / "ab"), "ab-train.idx exists"),
        (("split", "--input", tmp_path / "a", "--output", tmp_path / "ab", "--lengths", "4,2"), "--lengths 4,2: give"),
        (("split", "--input", tmp_path / "a", "--output", tmp_path / "ab", "--lengths", "4", "--seed", 0), "--seed 0: --lengths parts"),
    ):
        outcome = run(*arguments)
        assert outcome.code == 2 and message in outcome.err and "Traceback" not in outcome.err


def test_command_by_length(tmp_path, run):
    prefix = write_dataset(tmp_path / "d", [[1] * size for size in (3, 8, 5, 30)])
    arguments = ("split", "--input", prefix, "--output", tmp_path / "d", "--lengths", "8,16,24")
    assert [line.split(": ")[1] for line in run(*arguments).out.splitlines()] == [
        "2 documents, 8 tokens (17.4%)", "1 documents, 8 tokens (17.4%)", "0 documents, not written", "1 documents, 30 tokens (65.2%)",
    ]
    again = run(*arguments)
    assert again.code == 2 and "d-0-8.idx exists" in again.err
    assert run("verify", tmp_path / "d-*").out.count("are right") == 3


def test_datasets_of_different_tokenizers_do_not_merge(tmp_path):
    prefixes = [write_dataset(tmp_path / name, [[1]], tokenizer_sha256=name * 64) for name in "ab"]
    with pytest.raises(ConfigError, match="different tokenizers"):
        merge(prefixes, str(tmp_path / "out"))


def test_a_dataset_that_is_named_twice_is_refused(tmp_path, run):
    write_dataset(tmp_path / "a", [[1, 2]])
    for suffix in (".bin", ".idx"):
        (tmp_path / f"link{suffix}").symlink_to(tmp_path / f"a{suffix}")
    for other in (tmp_path / "a", f"{tmp_path}/./a", tmp_path / "link"):
        outcome = run("merge", "--input", tmp_path / "a", other, "--output", tmp_path / "out")
        assert outcome.code == 2 and "its documents would be there twice" in outcome.err and not (tmp_path / "out.idx").exists()
