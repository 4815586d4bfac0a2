"""Megatron's own code reads what we write, and we read what it writes."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import write_dataset

from megatron_ngpt.data.indexed import IndexedDataset
from megatron_ngpt.data.tape import Tape, select_documents

if os.environ.get("CI") == "true":
    from megatron.core.datasets import indexed_dataset as megatron
else:
    megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset", reason="megatron-core is not installed")

import torch

documents_strategy = st.lists(st.lists(st.integers(0, 65535), min_size=1, max_size=20), min_size=1, max_size=20)


@settings(deadline=None, max_examples=25)
@given(documents=documents_strategy, dtype=st.sampled_from(["u2", "i4"]))
def test_megatron_reads_ours(tmp_path_factory, documents, dtype):
    theirs = megatron.IndexedDataset(write_dataset(tmp_path_factory.mktemp("ours") / "d", documents, dtype))
    assert len(theirs) == len(documents) and theirs.document_indices.tolist() == list(range(len(documents) + 1))
    assert [theirs[i].tolist() for i in range(len(theirs))] == documents
    assert theirs.index.dtype == np.dtype(dtype)


@settings(deadline=None, max_examples=25)
@given(documents=documents_strategy, dtype=st.sampled_from([np.uint16, np.int32, np.int64]), whole=st.booleans())
def test_we_read_megatrons(tmp_path_factory, documents, dtype, whole):
    prefix = str(tmp_path_factory.mktemp("theirs") / "d")
    builder = megatron.IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for tokens in documents:
        if whole:
            builder.add_document(torch.tensor(tokens), [len(tokens)])
        else:                                        # a document of two sequences, as for sentences
            builder.add_item(torch.tensor(tokens[:1]))
            builder.add_item(torch.tensor(tokens[1:], dtype=torch.int64))
            builder.end_document()
    builder.finalize(f"{prefix}.idx")
    ours = IndexedDataset(prefix)
    assert [ours.document(i).tolist() for i in range(ours.documents)] == documents
    tape = Tape(select_documents([ours], 0, ours.documents))
    numbers = tape.number_documents(np.zeros(1, np.int64), ours.tokens)[0].tolist()
    assert numbers == [i for i, tokens in enumerate(documents) for _ in tokens]


def test_bytes_equal_megatrons(tmp_path):
    documents = [[5, 6, 7], [8], [9, 10]]
    builder = megatron.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    for tokens in documents:
        builder.add_document(torch.tensor(tokens), [len(tokens)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    write_dataset(tmp_path / "ours", documents)
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"ours{suffix}").read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()
