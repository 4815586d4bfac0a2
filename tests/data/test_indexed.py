"""Reading and writing MMIDIDX pairs: round trips, damage, foreign layouts, what survives fork, spawn and the dataset itself."""

import gc
import json
import multiprocessing
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import header, numbered_documents, write_dataset

from megatron_ngpt.data.indexed import HEADER, IndexedDataset, read_meta, token_dtype
from megatron_ngpt.data.writer import IndexedWriter
from megatron_ngpt.errors import DataError


def write_raw(prefix, tokens, lengths, indices, dtype, code) -> str:
    """A pair written byte by byte from the format's description, independently of our writer."""
    itemsize = np.dtype(dtype).itemsize
    offsets = [sum(lengths[:i]) * itemsize for i in range(len(lengths))]
    (prefix.parent / f"{prefix.name}.bin").write_bytes(np.array(tokens, dtype).tobytes())
    (prefix.parent / f"{prefix.name}.idx").write_bytes(
        header(code, sequences=len(lengths), indices=len(indices)) + struct.pack(f"<{len(lengths)}i", *lengths)
        + struct.pack(f"<{len(offsets)}q", *offsets) + struct.pack(f"<{len(indices)}q", *indices)
    )
    return str(prefix)


documents_strategy = st.lists(st.lists(st.integers(0, 65535), min_size=1, max_size=20), min_size=1, max_size=20)


@settings(deadline=None, max_examples=40)
@given(documents=documents_strategy, dtype=st.sampled_from(["u2", "i4"]))
def test_round_trip(tmp_path_factory, documents, dtype):
    prefix = write_dataset(tmp_path_factory.mktemp("pair") / "d", documents, dtype)
    dataset = IndexedDataset(prefix)
    assert (dataset.documents, dataset.tokens, dataset.dtype) == (len(documents), sum(map(len, documents)), np.dtype(dtype))
    assert [dataset.document(i).tolist() for i in range(dataset.documents)] == documents
    assert dataset.tape.tolist() == [token for document in documents for token in document]
    positions = np.arange(dataset.tokens)
    assert dataset.document_at(positions).tolist() == [i for i, d in enumerate(documents) for _ in d]


def test_bytes_on_disk_are_the_formats(tmp_path):
    ours = write_dataset(tmp_path / "ours", [[1, 2, 3], [4], [5, 6]])
    raw = write_raw(tmp_path / "raw", [1, 2, 3, 4, 5, 6], [3, 1, 2], [0, 1, 2, 3], "<u2", 8)
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"ours{suffix}").read_bytes() == (tmp_path / f"raw{suffix}").read_bytes()
    assert read_meta(raw) is None and read_meta(ours)["tokens"] == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours.bin", "ours.idx", "ours.meta.json", "raw.bin", "raw.idx"]


def test_documents_of_several_sequences_and_empty_ones(tmp_path):
    prefix = write_raw(tmp_path / "d", range(6), [2, 1, 0, 3], [0, 2, 3, 4, 4], "<i8", 5)
    dataset = IndexedDataset(prefix)
    assert [dataset.document(i).tolist() for i in range(dataset.documents)] == [[0, 1, 2], [], [3, 4, 5], []]
    assert dataset.document_at(np.arange(6)).tolist() == [0, 0, 0, 2, 2, 2]


def test_a_pair_without_documents(tmp_path):
    dataset = IndexedDataset(write_dataset(tmp_path / "d", []))
    assert (dataset.documents, dataset.tokens, len(dataset.tape)) == (0, 0, 0)
    with pytest.raises(IndexError, match="document 0 of 0"):
        dataset.document(0)


@pytest.mark.parametrize("code, dtype", [(1, "u1"), (2, "i1"), (3, "<i2"), (4, "<i4"), (5, "<i8"), (8, "<u2")])
def test_every_integer_dtype(tmp_path, code, dtype):
    dataset = IndexedDataset(write_raw(tmp_path / "d", [1, 2, 100], [3], [0, 1], dtype, code))
    assert dataset.tape.dtype == np.dtype(dtype) and dataset.tape.tolist() == [1, 2, 100]


def damage(path, change):
    content = bytearray(path.read_bytes())
    path.write_bytes(change(content) or content)


@pytest.mark.parametrize("suffix, change, message", [
    (".bin", lambda b: b[:-2], "truncated"),
    (".bin", lambda b: b[:-1], "truncated"),
    (".bin", lambda b: b + b"\0\0", "too long"),
    (".idx", lambda b: b[:20], "not an MMIDIDX index"),
    (".idx", lambda b: b"PK" + b[2:], "not an MMIDIDX index"),
    (".idx", lambda b: b[:-8], "damaged or unfinished"),
    (".idx", lambda b: b + b"\0", "damaged or unfinished"),
    (".idx", lambda b: header(version=2, sequences=2, indices=3) + b[34:], "version 2"),
    (".idx", lambda b: header(code=7, sequences=2, indices=3) + b[34:], "floating-point"),
    (".idx", lambda b: header(code=77, sequences=2, indices=3) + b[34:], "code 77 is unknown"),
    (".idx", lambda b: header(sequences=3, indices=3) + b[34:], "3 sequences"),
    (".idx", lambda b: b[:-8] + struct.pack("<q", 5), "not from 0 to the 2 sequences"),
])
def test_damage_is_named_when_opening(tmp_path, suffix, change, message):
    prefix = write_dataset(tmp_path / "d", [[1, 2], [3]])
    damage(tmp_path / f"d{suffix}", change)
    with pytest.raises(DataError, match=message) as caught:
        IndexedDataset(prefix)
    assert str(tmp_path / "d.") in str(caught.value) and "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path):
    prefix = write_dataset(tmp_path / "d", [[1, 2], [3]])
    (tmp_path / "d.bin").unlink()
    with pytest.raises(DataError, match=r"d\.bin: no such file"):
        IndexedDataset(prefix)


def test_a_token_too_large_for_the_dtype_is_refused_not_wrapped(tmp_path):
    message = "70000 does not fit in uint16"
    with IndexedWriter(str(tmp_path / "d"), np.dtype("u2")) as writer, pytest.raises(DataError, match=message):
        writer.add(np.array([70000]), np.array([1]))
    assert token_dtype(65499) == np.uint16 and token_dtype(65500) == np.int32


def test_a_view_outlives_its_dataset(tmp_path):
    prefix = write_dataset(tmp_path / "d", numbered_documents([1000]))
    view = IndexedDataset(prefix).document(0)
    gc.collect()
    assert not view.flags.owndata and view.sum() == sum(range(1000))


def test_a_rewritten_pair_is_read_anew(tmp_path):
    prefix = write_dataset(tmp_path / "d", [[1, 2, 3]])
    old = IndexedDataset(prefix).tape
    write_dataset(tmp_path / "d", [[4], [5, 6, 7, 8]])
    assert IndexedDataset(prefix).tape.tolist() == [4, 5, 6, 7, 8] and old.tolist() == [1, 2, 3]


def test_names_appear_only_when_complete(tmp_path):
    writer = IndexedWriter(str(tmp_path / "d"), np.dtype("u2"))
    writer.add(np.array([1, 2]), np.array([2]))
    assert {path.suffix for path in tmp_path.iterdir()} == {".tmp"}
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_writer_goes_on_from_an_earlier_moment(tmp_path):
    with IndexedWriter(str(tmp_path / "d"), np.dtype("u2")) as writer:
        writer.add(np.array([1, 2]), np.array([2]))
        documents, size = writer.documents, writer.bytes
        writer.add(np.array([9, 9, 9]), np.array([3]))
    with IndexedWriter(str(tmp_path / "d"), np.dtype("u2"), documents, size) as writer:
        writer.add(np.array([3]), np.array([1]))
        resumed = writer.finish(str(tmp_path / "d"), {})
    assert resumed == json.loads((tmp_path / "d.meta.json").read_text())
    write_dataset(tmp_path / "whole", [[1, 2], [3]])
    assert resumed == read_meta(str(tmp_path / "whole"))
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"d{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()


def _sum(dataset, queue):
    queue.put(int(dataset.tape.sum()))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_open_dataset_crosses_fork_and_spawn(tmp_path, method):
    dataset = IndexedDataset(write_dataset(tmp_path / "d", numbered_documents([50, 50])))
    assert dataset.tape[0] == 0
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_sum, args=(dataset, queue))
    process.start()
    assert queue.get(timeout=60) == sum(range(100))
    process.join(30)


def sparse_dataset(prefix, documents, length) -> str:
    """A pair of zeros that takes no room on disk but has its full size: `documents` of `length` int32 tokens."""
    with open(f"{prefix}.bin", "wb") as file:
        file.truncate(4 * documents * length)
    with open(f"{prefix}.idx", "wb") as file:
        file.write(HEADER.pack(b"MMIDIDX\0\0", 1, 4, documents, documents + 1))
        file.write(np.full(documents, length, "<i4").tobytes())
        file.write((np.arange(documents, dtype="<i8") * length * 4).tobytes() + np.arange(documents + 1, dtype="<i8").tobytes())
    return str(prefix)


def test_more_than_two_to_the_31_tokens_and_bytes(tmp_path):
    documents, length = 1000, 2_200_000
    prefix = sparse_dataset(tmp_path / "d", documents, length)
    with open(f"{prefix}.bin", "r+b") as file:
        file.seek(-4, 2)
        file.write(np.array([77], "<i4").tobytes())
    dataset = IndexedDataset(prefix)
    assert dataset.tokens == documents * length > 2**31
    assert dataset.document(999)[-1] == 77
    assert dataset.document_at(np.array([2**31, dataset.tokens - 1])).tolist() == [2**31 // length, 999]


MANY_SHARDS = """
import glob, resource, sys
from megatron_ngpt.data.indexed import IndexedDataset
from megatron_ngpt.errors import DataError
resource.setrlimit(resource.RLIMIT_NOFILE, (40, int(sys.argv[2])))
try:
    datasets = [IndexedDataset(path.removesuffix(".idx")) for path in sorted(glob.glob(sys.argv[1] + "/*.idx"))]
    print(sum(int(dataset.tape[0]) for dataset in datasets))
except DataError as error:
    print(error)
"""


@pytest.mark.parametrize("hard, expected", [(4000, str(sum(range(60)))), (40, "raise the limit of 40 (ulimit -n), or merge")])
def test_more_shards_than_open_files_allowed(tmp_path, hard, expected):
    for number in range(60):
        write_dataset(tmp_path / f"{number:02}", [[number]])
    command = [sys.executable, "-c", MANY_SHARDS, str(tmp_path), str(hard)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0 and expected in done.stdout, done.stderr


@pytest.mark.parametrize("content", ["[" * 100_000, '{"tokens": ' + "[" * 1_000 + "]" * 1_000 + "}", "[1]", "\xff"])
def test_a_description_that_cannot_be_read_is_told(tmp_path, content):
    (tmp_path / "d.meta.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=r"d\.meta\.json: .*; remove it to read the pair as a foreign one"):
        read_meta(str(tmp_path / "d"))
