"""Parquet: every way of storing text, pieces by what they decode to, and pages that were altered."""

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.chunks import read_chunks
from data_tools.documents import read_documents
from data_tools.sources import recognise
from megatron_ngpt.errors import DataError

TEXTS = ["one", None, "漢字\n", "", "one"] * 3
NO_NULLS = ["" if text is None else text for text in TEXTS]
RAW = [None if text is None else text.encode() for text in TEXTS]
EXTENSIONS = [pyarrow.json_(), pyarrow.json_(pyarrow.large_string()), pyarrow.json_(pyarrow.string_view())]


def write(path, column, **options) -> str:
    pyarrow.parquet.write_table(pyarrow.table({"id": range(len(column)), "text": column}), path, **options)
    return str(path)


def read(path, size=1 << 20, start=0) -> tuple[list, list[int]]:
    """(texts, None for what is malformed; decoded bytes of each chunk)."""
    texts, sizes = [], []
    for chunk in read_chunks([recognise(path)], "text", None, (0, start), size):
        found = read_documents(chunk, "text", None)
        wrong, given = {row for row, _ in found.malformed}, iter(found.texts)
        assert found.lines == chunk.end - chunk.start and chunk.start == start + len(texts)
        texts += [None if row in wrong else next(given) for row in range(found.lines)]
        sizes.append(sum(len(text.encode()) for text in found.texts))
    return texts, sizes


def columns():
    strings = [pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()]
    yield from (pyarrow.array(TEXTS, kind) for kind in strings)
    yield from (pyarrow.array(RAW, kind) for kind in (pyarrow.binary(), pyarrow.large_binary(), pyarrow.binary_view()))
    yield from (pyarrow.array(TEXTS).dictionary_encode().cast(pyarrow.dictionary(pyarrow.int32(), kind)) for kind in strings[:2])
    yield from (pyarrow.ExtensionArray.from_storage(kind, pyarrow.array(TEXTS, kind.storage_type)) for kind in EXTENSIONS)


@pytest.mark.parametrize("column", [*columns()], ids=lambda column: str(column.type)[:40])
@pytest.mark.parametrize("options", [
    {}, {"use_dictionary": False}, {"store_schema": False}, {"data_page_version": "2.0", "row_group_size": 4},
], ids=["plain", "no dictionary", "no schema of Arrow", "row groups"])
def test_every_way_of_storing_text(tmp_path, column, options):
    path = write(tmp_path / "a.parquet", column, **options)
    for size in (1, 7, 1 << 20):
        assert read(path, size)[0] == TEXTS
    assert [read(path, 7, start)[0] for start in range(15)] == [TEXTS[start:] for start in range(15)]


@pytest.mark.parametrize("column", [
    pyarrow.array([1, 2]), pyarrow.array([["x"], []]), pyarrow.array([{"a": "x"}]), pyarrow.array([b"abcd"], pyarrow.binary(4)),
    pyarrow.ExtensionArray.from_storage(pyarrow.uuid(), pyarrow.array([b"0" * 16], pyarrow.binary(16))),
    pyarrow.array([1, 2, 1]).dictionary_encode(), pyarrow.array([True]), pyarrow.array([1.5]),
], ids=lambda column: str(column.type)[:40])
def test_what_is_no_text(tmp_path, column):
    with pytest.raises(DataError, match=r"--text_key text: the column of .* holds .*, not strings"):
        read(write(tmp_path / "a.parquet", column))


def test_bytes_that_are_not_utf8_and_nulls_are_malformed_rows(tmp_path):
    assert read(write(tmp_path / "a.parquet", pyarrow.array([b"a", b"\xff", None, b"b"])))[0] == ["a", None, None, "b"]
    assert read(write(tmp_path / "b.parquet", pyarrow.nulls(3)))[0] == [None] * 3


def test_names_of_columns(tmp_path):
    table = pyarrow.table([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "two.parquet")
    with pytest.raises(DataError, match="has 2 columns of this name"):
        read(str(tmp_path / "two.parquet"))
    pyarrow.parquet.write_table(pyarrow.table({"a.b": ["flat"], "a": [{"b": "nested"}]}), tmp_path / "dot.parquet")
    [chunk] = read_chunks([recognise(str(tmp_path / "dot.parquet"))], "a.b", None)
    assert read_documents(chunk, "a.b", None).texts == ["flat"]


@settings(deadline=None, max_examples=25)
@given(texts=st.lists(st.one_of(st.none(), st.text(st.characters(codec="utf-8"), max_size=30)), min_size=1, max_size=60),
       size=st.integers(1, 80), group=st.integers(1, 70), encoded=st.booleans())
def test_pieces_are_of_the_size_asked_for(tmp_path_factory, texts, size, group, encoded):
    path = tmp_path_factory.mktemp("parquet") / "a.parquet"
    found, sizes = read(write(path, pyarrow.array(texts, pyarrow.string()), row_group_size=group, use_dictionary=encoded), size)
    largest = max(len((text or "").encode()) for text in texts)
    assert found == texts and max(sizes) <= max(size, largest)


@pytest.mark.parametrize("options", [{}, {"use_dictionary": False}], ids=["dictionary", "plain"])
def test_equal_texts_are_bounded_by_what_they_decode_to(tmp_path, options):
    """A small file that stands for much text."""
    path = write(tmp_path / "a.parquet", ["word " * 200] * 20_000, compression="zstd", **options)
    assert (tmp_path / "a.parquet").stat().st_size < 200_000
    most = 0
    for chunk in read_chunks([recognise(path)], "text", None):
        most = max(most, sum(map(len, read_documents(chunk, "text", None).texts)))
    assert 900_000 < most <= 1 << 20


@pytest.mark.parametrize("options", [{}, {"use_dictionary": False}, {"data_page_version": "2.0"}], ids=["coded", "plain", "second version"])
def test_an_altered_letter_is_found_where_pages_have_checksums(tmp_path, options):
    path = write(tmp_path / "a.parquet", ["a", "b text of some length", "c"], compression="none", write_page_checksum=True, **options)
    assert read(path)[0] == ["a", "b text of some length", "c"]
    raw = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(raw.replace(b"of some", b"of sOme", 1))
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read as Parquet \(.*(CRC|checksum)"):
        read(path)
