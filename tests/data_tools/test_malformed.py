"""Input that is not as it should be: counted, shown with file and line, refused or skipped."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from test_preprocess import documents_of, expected

GOOD = b'{"text": "good"}\n'
MALFORMED = {
    b'{"text": "cut': "not JSON",
    b"[1]": "holds list, not an object",
    b'{"content": "x"}': "has no key 'text' (--text_key); its keys: 'content'",
    b'{"text": 5}': "'text' holds int, not a string",
    b'{"text": null}': "'text' holds NoneType, not a string",
    b'{"text": "a\xffb"}': "invalid UTF-8 at byte 12",
    b'{"text": "\\ud800"}': "half of a surrogate pair (\\ud800)",
    b'{"text": "x", "a": ' + b"[" * 3_000 + b"]" * 3_000 + b"}": "nested too deeply",
    b"[" * 100_000: "nested too deeply",
    b'{"text": ' + b"1" * 5_000 + b"}": "'text' holds float, not a string",
    b'{"' + b"k" * 5_000 + b'": 1}': "has no key 'text' (--text_key); its keys: 'kkkk",
}


@pytest.fixture()
def process(tmp_path, tokenizer_path, run):
    """Run preprocess over the files of the test's folder that `pattern` matches."""
    def call(pattern, *options):
        common = "--tokenizer", tokenizer_path, "--output", tmp_path / "out" / "d", "--workers", 1
        return run("preprocess", "--input", tmp_path / pattern, *common, *options)
    return call


@pytest.mark.parametrize("line", MALFORMED)
def test_each_kind_of_malformed_line(tmp_path, tokenizer_path, process, line):
    (tmp_path / "a.jsonl").write_bytes(GOOD + b"\n" + line + b"\n" + GOOD)
    outcome = process("a.jsonl")
    assert outcome.code == 2 and "Traceback" not in outcome.err
    assert f"{tmp_path}/a.jsonl: line 3: {MALFORMED[line]}" in outcome.err and "--skip_malformed" in outcome.err
    outcome = process("a.jsonl", "--skip_malformed")
    assert outcome.code == 0 and "1 malformed" in outcome.out and "skipped: " in outcome.err
    assert documents_of(tmp_path / "out" / "d") == expected(tokenizer_path, ["good", "good"])


def test_a_number_of_any_length_is_no_fault_of_a_line(tmp_path, tokenizer_path, process):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good", "id": ' + b"7" * 5_000 + b"}\n" + GOOD)
    assert process("a.jsonl").code == 0
    assert documents_of(tmp_path / "out" / "d") == expected(tokenizer_path, ["good", "good"])


def test_only_the_first_few_are_shown_and_lines_are_counted_on(tmp_path, process, monkeypatch):
    monkeypatch.setattr("data_tools.chunks.read_chunks.__defaults__", ((0, 0), 40))
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    (tmp_path / "b.jsonl").write_bytes(GOOD * 100 + b"bad\n" * 20 + GOOD)
    outcome = process("*.jsonl", "--skip_malformed")
    assert outcome.code == 0 and "20 malformed" in outcome.out
    shown = [line for line in outcome.err.splitlines() if line.startswith("skipped")]
    assert [line.split(": ")[1:3] for line in shown] == [[f"{tmp_path}/b.jsonl", f"line {n}"] for n in range(101, 106)]


def test_invalid_utf8_in_plain_text(tmp_path, tokenizer_path, process):
    (tmp_path / "a.txt").write_bytes(b"good|b\xff|good")
    assert f"{tmp_path}/a.txt: document 2: invalid UTF-8 at byte 2" in process("a.txt", "--split_on", "|").err
    assert process("a.txt", "--split_on", "|", "--skip_malformed").code == 0
    assert documents_of(tmp_path / "out" / "d") == expected(tokenizer_path, ["good", "good"])


def test_nulls_in_parquet(tmp_path, tokenizer_path, process):
    table = pyarrow.table({"text": ["good", None, "", "good"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert f"{tmp_path}/a.parquet: row 2: null" in process("a.parquet").err
    assert "1 empty, 1 malformed" in process("a.parquet", "--skip_malformed").out


def test_a_column_that_holds_no_text(tmp_path, process):
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), tmp_path / "a.parquet")
    assert "holds int64, not strings" in process("a.parquet").err


def test_a_missing_column(tmp_path, process):
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), tmp_path / "b.parquet")
    outcome = process("b.parquet")
    assert outcome.code == 2 and "--text_key text" in outcome.err and "it has body" in outcome.err


LINES = b"".join(json.dumps({"text": f"text {i}"}).encode() + b"\n" for i in range(2000))


@pytest.mark.parametrize("name, content", [
    ("a.jsonl.gz", gzip.compress(LINES)[:-20]), ("a.jsonl.gz", b"no gzip"),
    ("a.jsonl.zst", zstandard.compress(LINES)[:-20]), ("a.jsonl.zst", b"no zstd"), ("a.parquet", b"PAR1 no parquet"),
])
def test_damaged_files(tmp_path, process, name, content):
    (tmp_path / name).write_bytes(content)
    outcome = process(name)
    assert outcome.code == 2 and f"{tmp_path}/{name}: " in outcome.err and "Traceback" not in outcome.err
    assert outcome.err.count("\n") <= 2 and not (tmp_path / "out" / "d.idx").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_separator_that_overlaps_itself_splits_as_python_does(tmp_path, tokenizer_path, run, monkeypatch, workers):
    monkeypatch.setattr("data_tools.chunks.read_chunks.__defaults__", ((0, 0), 5))
    monkeypatch.setattr("data_tools.chunks.READ_BYTES", 3)
    text = "one\n\n\ntwo\n\nthree\n\n\n\n\nfour" * 5
    (tmp_path / "a.txt").write_text(text)
    run("preprocess", "--input", tmp_path / "a.txt", "--tokenizer", tokenizer_path, "--output", tmp_path / "d",
        "--split_on", r"\n\n", "--workers", workers)
    assert documents_of(tmp_path / "d") == expected(tokenizer_path, text.split("\n\n"))


@pytest.mark.parametrize("arguments, message", [
    (["--input", "none.jsonl"], "--input none.jsonl: no such file"),
    (["--input", "/"], "--input /: is a directory"),
    (["--input", "GOOD", "GOOD"], "named twice"),
    (["--input", "GOOD", "--split_on", ""], "--split_on ''"),
    (["--input", "GOOD", "--workers", "-1"], "Invalid value for '--workers'"),
    (["--input", "GOOD", "--workers", "99999999999"], "Invalid value for '--workers'"),
    (["--input", "GOOD", "--shuffle_seed", "18446744073709551616"], "Invalid value for '--shuffle_seed'"),
    (["--input", "GOOD", "--shuffle_seed", "1" * 5_000], "Invalid value for '--shuffle_seed'"),
    (["--input", "GOOD", "--split_on", "a\udcff"], "--split_on 'a\\udcff': not UTF-8 at character 2"),
    (["--input", "GOOD", "--tokenizer", "none.model"], "tokenizer none.model"),
    (["--input", "GOOD", "--output", "/proc/none/d"], "--output /proc/none/d"),
    (["--input", "GOOD", "--wrokers", "2"], "--wrokers"),
])
def test_mistakes_in_options(tmp_path, tokenizer_path, run, arguments, message):
    (tmp_path / "good.jsonl").write_bytes(GOOD)
    given = [str(tmp_path / "good.jsonl") if argument == "GOOD" else argument for argument in arguments]
    rest = {"--tokenizer": tokenizer_path, "--output": str(tmp_path / "d")}
    outcome = run("preprocess", *given, *[part for pair in rest.items() if pair[0] not in given for part in pair])
    assert outcome.code == 2 and message in outcome.err and "Traceback" not in outcome.err


def test_nothing_but_empty_documents(tmp_path, process):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": ""}\n' * 3)
    outcome = process("a.jsonl")
    assert outcome.code == 2 and "no document of 1 files has any text: 3 are empty, 0 malformed" in outcome.err
    assert list((tmp_path / "out").iterdir()) == []


def test_a_mended_file_is_taken(tmp_path, tokenizer_path, process):
    (tmp_path / "a.jsonl").write_bytes(GOOD + b"bad\n")
    assert "mend the file, or leave such lines out" in process("a.jsonl").err
    (tmp_path / "a.jsonl").write_bytes(GOOD + GOOD)
    assert process("a.jsonl").code == 0
    assert documents_of(tmp_path / "out" / "d") == expected(tokenizer_path, ["good", "good"])


def test_a_file_mended_after_finished_shards_needs_a_new_start(tmp_path, process, monkeypatch):
    monkeypatch.setattr("data_tools.chunks.read_chunks.__defaults__", ((0, 0), 40))
    monkeypatch.setattr("data_tools.encode.group_chunks.__defaults__", (40,))
    monkeypatch.setattr("data_tools.preprocess.SHARD_BYTES", 100)
    (tmp_path / "a.jsonl").write_bytes(GOOD * 50 + b"bad\n")
    assert f"mend the file and remove {tmp_path}/out/d.partial" in process("a.jsonl").err
    (tmp_path / "a.jsonl").write_bytes(GOOD * 51)
    assert "unfinished work with another input" in process("a.jsonl").err
