"""What a file is: by its first bytes, by its name where they leave a choice, or refused in one line."""

import bz2
import gzip
import json
import lzma
import os
import pickle
import subprocess
import sys
import threading
from contextlib import suppress

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
import zstandard
from packed import LINES, TEXTS, archive, array, arrow
from test_preprocess import documents_of, expected, json_lines

from data_tools import pipes, sources
from data_tools.chunks import content
from data_tools.sources import recognise
from megatron_ngpt.errors import ConfigError

PLAIN = "some text\nof two lines, with é\n".encode()
PRETTY = json.dumps({"text": "x", "more": {"id": [1, 2]}}, indent=2).encode()

PACKERS = {"gzip": gzip.compress, "zstd": zstandard.compress, "bzip2": bz2.compress, "xz": lzma.compress}
PARQUET = arrow(pyarrow.parquet.write_table)


@pytest.mark.parametrize(("name", "data", "kind", "packing"), [
    ("a.jsonl", LINES, "jsonl", None), ("a.JSON", LINES, "jsonl", None), ("a.ndjson", LINES, "jsonl", None),
    ("x.jsonlines", LINES, "jsonl", None), ("a.jsonl", b"", "jsonl", None), ("a.jsonl", b"\xef\xbb\xbf" + LINES, "jsonl", None),
    ("a.jsonl", b"\n\n" + LINES, "jsonl", None), ("a.jsonl", b"[1]\n" + LINES, "jsonl", None), ("a.jsonl", b"bad\n", "jsonl", None),
    ("a.jsonl", b"\0\0\n" + LINES, "jsonl", None), ("a.jsonl", b'{"text": "cut",\n' + LINES, "jsonl", None),
    ("a.jsonl", b'{"text": "' + b"long " * 50_000 + b'"}\n', "jsonl", None),
    ("part-00000", LINES, "jsonl", None), ("part-00000", b"\xef\xbb\xbf" + LINES, "jsonl", None), ("a.jsonl.1", LINES, "jsonl", None),
    ("part-00000", b'{"text": "' + b"long " * 50_000 + b'"}\n', "jsonl", None), ("part-00000", PARQUET, "parquet", None),
    ("README", PLAIN, "text", None), ("a.txt", PLAIN, "text", None), ("a.py", b"[\n1]\n", "text", None), ("a.txt", b"", "text", None),
    ("a.html", b"<!DOCTYPE html>", "text", None), ("set", b"{not json}", "text", None), ("a.c", b"{\n", "text", None),
    ("latin.txt", b"caf\xe9", "text", None), ("ORC.txt", b"ORCHIDS", "text", None), ("a.parquet", PARQUET, "parquet", None),
    *((f"{stem}.{end}", PACKERS[packing](data), kind, packing) for packing, ends in
      {"gzip": ["gz", "jsonl"], "zstd": ["zst", "zstd"], "bzip2": ["bz2", "BZ2"], "xz": ["xz"]}.items() for end in ends
      for stem, data, kind in (("a.jsonl", LINES, "jsonl"), ("part-00000", LINES, "jsonl"))),
    ("a.txt.gz", gzip.compress(PLAIN), "text", "gzip"),
    ("noise.txt.bz2", bz2.compress(os.urandom(450_000).hex().encode()), "text", "bzip2"),
    ("a.jsonl.lzma", lzma.compress(LINES, lzma.FORMAT_ALONE), "jsonl", "xz"), ("unpacked.jsonl.gz", LINES, "jsonl", None),
])
def test_what_a_file_is(tmp_path, name, data, kind, packing):
    (tmp_path / name).write_bytes(data)
    found = recognise(str(tmp_path / name))
    assert (found.kind, found.packing, found.size) == (kind, packing, len(data))


REFUSED = {
    "t.tar": (archive("tar"), "a tar archive"), "t.tar.gz": (gzip.compress(archive("tar")), "a tar archive"),
    "t.zip": (archive("zip"), "a zip archive"), "t.docx": (archive("zip"), "a zip archive"), "t.jsonl": (archive("zip"), "a zip archive"),
    "t.txt": (b"7z\xbc\xaf\x27\x1c\0\4", "a 7z archive"), "t.rar": (b"Rar!\x1a\x07\0", "a rar archive"),
    "a.jsonl.lz4": (b"\x04\x22\x4d\x18" + LINES, "packed by lz4"),
    "t.pdf": (b"%PDF-1.7\n", "PDF"), "t.arrow": (b"ARROW1\0\0", "an Arrow file"),
    "t.feather": (arrow(pyarrow.feather.write_feather), "an Arrow file"),
    "t.npy": (array(), "a numpy array"), "t.avro": (b"Obj\x01", "Avro"),
    "t.pkl": (pickle.dumps(TEXTS), "a pickle"), "t.sqlite": (b"SQLite format 3\0", "an SQLite database"),
    "t.warc.gz": (gzip.compress(b"WARC/1.0\r\n"), "a WARC web archive"), "t.png": (b"\x89PNG\r\n", "a picture"),
    "utf16.txt": ("text".encode("utf-16"), "text in UTF-16"), "utf16.jsonl": (LINES.decode().encode("utf-16"), "text in UTF-16"),
    "be.txt": (b"\xfe\xff\0t", "text in UTF-16"), "utf32.txt": ("text".encode("utf-32"), "text in UTF-32"),
    "nomark.txt": ("text".encode("utf-16-le"), "binary data"), "nomark.jsonl": (LINES.decode().encode("utf-16-le"), "binary data"),
    "t.bin": (bytes(range(1, 9)) * 50 + b"\0", "binary data"), "d.idx": (b"MMIDIDX\0\0", "the index of a tokenised dataset"),
    "t.csv": (b"id,text\n1,x\n", "CSV"), "t.csv.gz": (gzip.compress(b"id,text\n1,x\n"), "CSV"), "t.tsv": (b"a\tb\n", "tab-separated"),
    "twice.jsonl.gz": (gzip.compress(gzip.compress(LINES)), "packed twice"), "a.txt.jsonl.txt": (LINES, "JSON lines by its content"),
    "a.log": (LINES, "JSON lines by its content, but named .log"),
}
ONE_A_LINE = {
    "array.json": b'[{"text": "x"}, {"text": "y"}]', "lines.jsonl": b'[\n{"text": "x"},\n{"text": "y"}\n]\n', "pretty.json": PRETTY,
    "part-0": b'[{"text": "x"}]', "part-1": PRETTY, "large.json": b'[{"text": "' + b"x" * 100_000 + b'"}]',
    "pretty.jsonl.gz": gzip.compress(PRETTY), "wide.json": b'{"text": "x",\n "id": 1}', "many.json": (PRETTY + b"\n") * 2000,
    "wide.jsonl": b'{"a": 1,\n "text": "' + b"x" * 100_000 + b'"}',
}


@pytest.mark.parametrize("name", [*REFUSED, *ONE_A_LINE])
def test_what_holds_no_documents_is_refused_in_a_line_even_when_skipping(tmp_path, tokenizer_path, run, name):
    data, said = REFUSED[name] if name in REFUSED else (ONE_A_LINE[name], "write one object a line")
    (tmp_path / name).write_bytes(data)
    (tmp_path / "good.jsonl").write_bytes(LINES)
    outcome = run("preprocess", "--input", tmp_path / "good.jsonl", tmp_path / name, "--tokenizer", tokenizer_path, "--output",
                  tmp_path / "d", "--workers", 1, "--skip_malformed")
    assert outcome.code == 2 and outcome.err.startswith(f"--input {tmp_path}/{name}: ") and outcome.err.count("\n") == 1
    assert said in outcome.err and "--format jsonl, text or parquet" in outcome.err
    assert recognise(str(tmp_path / name), "text").kind == "text"


@pytest.mark.parametrize(("name", "data", "said"), [
    ("a.parquet", LINES, "does not begin with PAR1"), ("a.parquet.gz", gzip.compress(PARQUET), "packed, and Parquet compresses inside"),
    ("a.txt.gz", PLAIN, "not packed as its name says"), ("a.jsonl.xz", b"", "not packed as its name says"),
    ("a.jsonl.xz", lzma.compress(LINES * 99)[:20] + b"x" * 50, "damaged or cut off xz file"),
])
def test_a_name_that_is_wrong(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=said):
        recognise(str(tmp_path / name))


def test_format_overrules_name_and_content(tmp_path, tokenizer_path, run):
    (tmp_path / "t.csv").write_bytes(b"id,text\n")
    (tmp_path / "a.txt").write_bytes(LINES)
    common = "--tokenizer", tokenizer_path, "--workers", 1, "--output"
    assert run("preprocess", "--input", tmp_path / "t.csv", *common, tmp_path / "t", "--format", "text").code == 0
    assert documents_of(tmp_path / "t") == expected(tokenizer_path, ["id,text\n"])
    assert run("preprocess", "--input", tmp_path / "a.txt", *common, tmp_path / "j", "--format", "jsonl").code == 0
    assert documents_of(tmp_path / "j") == expected(tokenizer_path, TEXTS)
    assert "--format" in run("preprocess", "--input", tmp_path / "a.txt", *common, tmp_path / "c", "--format", "csv").err
    assert "all" not in run("preprocess", "--input", tmp_path / "a.txt", *common, tmp_path / "t", "--format", "text").err


@pytest.mark.parametrize("packing", PACKERS)
def test_packed_content_is_whole_or_an_error(tmp_path, packing):
    """Several frames, padding between them, a flipped bit, a cut, and what follows the last frame."""
    pack, path, data = PACKERS[packing], tmp_path / "a.jsonl", json_lines(str(number) for number in range(3000))

    def read(raw):
        path.write_bytes(raw)
        return b"".join(block for block, _ in content(recognise(str(path))))

    whole = pack(data)
    assert read(whole) == data and read(whole + pack(b"") + whole + b"\0" * 8 + pack(PLAIN) + b"\0" * 4) == data * 2 + PLAIN
    for raw in (whole[:-1], whole[: len(whole) // 2], whole + b"garbage", whole + whole[:-3]):
        with pytest.raises(ConfigError, match=f"damaged or cut off {packing} file"):
            read(raw)
    if packing != "zstd":           # whose checksum is an option
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 16
        with pytest.raises(ConfigError, match=f"damaged or cut off {packing} file"):
            read(bytes(flipped))


def test_the_mark_of_utf8_is_no_text(tmp_path, tokenizer_path, run):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone|two")
    run("preprocess", "--input", tmp_path / "a.txt", "--tokenizer", tokenizer_path, "--output", tmp_path / "d", "--split_on", "|")
    assert documents_of(tmp_path / "d") == expected(tokenizer_path, ["one", "two"])


def test_one_file_by_two_names_is_refused(tmp_path, monkeypatch, tokenizer_path, run):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "link.jsonl").symlink_to("a.jsonl")
    os.link("a.jsonl", "hard.jsonl")
    common = "--tokenizer", tokenizer_path, "--output", "d", "--workers", 1
    for other in ("a.jsonl", "./a.jsonl", tmp_path / "a.jsonl", "link.jsonl", "hard.jsonl", f"../{tmp_path.name}/a.json*"):
        outcome = run("preprocess", "--input", "a.jsonl", other, *common)
        assert outcome.code == 2 and "would be there twice" in outcome.err and outcome.err.count("\n") == 1
        assert run("train-tokenizer", "--input", "a.jsonl", other, "--output", "t", "--vocab_size", 300).code == 2
    assert "--input ./a.jsonl: the same file as a.jsonl" in run("preprocess", "--input", "a.jsonl", "./a.jsonl", *common).err


def fill(path, data):
    """Write to a named pipe, beside the reader."""
    def write():
        with suppress(BrokenPipeError):         # the reader refused it
            path.write_bytes(data)
    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize(("name", "data", "texts"), [
    ("a", LINES, TEXTS), ("a", gzip.compress(LINES), TEXTS), ("a.txt", PLAIN, [PLAIN.decode()]), ("a.jsonl", LINES * 9000, TEXTS * 9000),
])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_pipe_is_read_once(tmp_path, tokenizer_path, run, name, data, texts, workers):
    os.mkfifo(tmp_path / name)
    writer = fill(tmp_path / name, data)
    arguments = "--tokenizer", tokenizer_path, "--output", tmp_path / "d", "--workers", workers
    outcome = run("preprocess", "--input", tmp_path / name, *arguments)
    writer.join(10)
    assert outcome.code == 0 and not writer.is_alive(), outcome.err
    dataset = documents_of(tmp_path / "d")
    assert len(dataset) == len(texts) and dataset[:3] == expected(tokenizer_path, texts[:3])
    fill(tmp_path / name, data)
    assert "made from other input" in run("preprocess", "--input", tmp_path / name, *arguments).err


def test_a_pipe_leaves_no_work_that_nobody_can_go_on_with(tmp_path, tokenizer_path, run, monkeypatch):
    os.mkfifo(tmp_path / "a")
    for data, said in ((LINES + b"bad\n", "line 4: not JSON"), (LINES, "start anew")):
        fill(tmp_path / "a", data)
        if said == "start anew":
            monkeypatch.setattr("megatron_ngpt.data.writer.IndexedWriter.finish", lambda *_: os.stat(tmp_path / "gone"))
        outcome = run("preprocess", "--input", tmp_path / "a", "--tokenizer", tokenizer_path, "--output", tmp_path / "d", "--workers", 1)
        assert outcome.code and said in outcome.err and not (tmp_path / "d.partial").exists(), outcome.err


def test_a_pipe_without_a_writer_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipes, "PATIENCE_SECONDS", 0.1)
    os.mkfifo(tmp_path / "a")
    threading.Timer(0.5, (tmp_path / "a").write_bytes, (LINES,)).start()
    source = recognise(str(tmp_path / "a"))
    assert "a pipe that nobody has written to yet; waiting" in capsys.readouterr().err
    assert b"".join(block for block, _ in content(source)) == LINES and source.kind == "jsonl"
    assert pickle.loads(pickle.dumps(source)).pipe is None


def test_what_is_neither_a_file_nor_a_pipe(tmp_path):
    fill_parquet = os.mkfifo(tmp_path / "a.parquet") or fill(tmp_path / "a.parquet", PARQUET)
    with pytest.raises(ConfigError, match="a pipe, and Parquet is read from its end"):
        recognise(str(tmp_path / "a.parquet"))
    fill_parquet.join(10)
    with pytest.raises(ConfigError, match="/dev/zero: neither a file nor a pipe"):
        recognise("/dev/zero")


def test_standard_input(tmp_path, tokenizer_path):
    command = [sys.executable, "-m", "data_tools", "preprocess", "--input", "-", "--tokenizer", tokenizer_path, "--output"]
    environment = {**os.environ, "PYTHONPATH": str(sources.__file__.rsplit("/", 2)[0])}
    assert subprocess.run([*command, tmp_path / "d"], input=LINES, env=environment, timeout=60).returncode == 0
    assert documents_of(tmp_path / "d") == expected(tokenizer_path, TEXTS)
    (tmp_path / "in").write_bytes(LINES)
    with open(tmp_path / "in", "rb") as file:
        assert subprocess.run([*command, tmp_path / "e"], stdin=file, env=environment, timeout=60).returncode == 0
    assert documents_of(tmp_path / "e") == expected(tokenizer_path, TEXTS)
