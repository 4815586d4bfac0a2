"""`verify` names each kind of damage; `inspect` shows what is there."""

import json
import re

import pytest
from small_data import make_tokenizer, write_dataset
from test_indexed import write_raw

from megatron_ngpt.data.tokenizer import Tokenizer

DOCUMENTS = [[5, 6, 7], [8], [9, 10]]


def change_bytes(path, position, content):
    with open(path, "r+b") as file:
        file.seek(position)
        file.write(content)


def change_meta(prefix, **values):
    path = f"{prefix}.meta.json"
    with open(path) as file:
        meta = json.load(file)
    with open(path, "w") as file:
        json.dump(meta | values, file)


DAMAGE = {
    "a truncated .bin": (lambda p: change_file(p, ".bin", lambda b: b[:-2]), "d.bin: 10 bytes, but"),
    "a truncated .idx": (lambda p: change_file(p, ".idx", lambda b: b[:-8]), "d.idx: "),
    "a wrong count": (lambda p: change_meta(p, tokens=7), "d.idx: 6 tokens, but"),
    "wrong documents": (lambda p: change_meta(p, documents=9), "d.idx: 3 documents, but"),
    "a flipped byte in .bin": (lambda p: change_bytes(f"{p}.bin", 4, b"\x06"), "d.bin: its bytes changed"),
    "a flipped byte in .idx": (lambda p: change_bytes(f"{p}.idx", 34 + 12 * 3 + 8, b"\x00"), "d.idx: its bytes changed"),
    "a token out of range": (lambda p: change_bytes(f"{p}.bin", 8, b"\xff\xff"),
                             "d.bin: token 65535 at offset 0 of document 2 is outside the vocabulary of 400 (1 such tokens"),
    "a wrong length": (lambda p: change_bytes(f"{p}.idx", 34, b"\x02"), "sequence 1 is said to begin at byte 6"),
    "a wrong offset": (lambda p: change_bytes(f"{p}.idx", 34 + 12 + 8, b"\x04"), "sequence 1 is said to begin at byte 4"),
    "a negative length": (lambda p: change_bytes(f"{p}.idx", 37, b"\xff"), "sequence 0 has the length -"),
    "documents out of order": (lambda p: change_bytes(f"{p}.idx", 34 + 12 * 3 + 8, b"\x03"), "document 1 ends before"),
    "another tokenizer": (lambda p: change_meta(p, tokenizer_sha256="0" * 64), "made by tokenizer 000000000000"),
}


def change_file(prefix, suffix, change):
    with open(f"{prefix}{suffix}", "rb") as file:
        content = file.read()
    with open(f"{prefix}{suffix}", "wb") as file:
        file.write(change(content))


@pytest.fixture()
def dataset(tmp_path, tokenizer_path):
    tokenizer = Tokenizer(tokenizer_path)
    return write_dataset(tmp_path / "d", DOCUMENTS, tokenizer_sha256=tokenizer.sha256, vocab_size=tokenizer.size)


@pytest.mark.parametrize("damage", DAMAGE)
def test_each_damage_is_named(dataset, tokenizer_path, run, damage):
    inflict, message = DAMAGE[damage]
    assert run("verify", dataset, "--tokenizer", tokenizer_path).code == 0
    inflict(dataset)
    outcome = run("verify", dataset, "--tokenizer", tokenizer_path)
    told = [line for line in outcome.err.splitlines() if "━" not in line]
    assert outcome.code == 2 and any(message in line for line in told), outcome.err
    assert "Traceback" not in outcome.err and "are right" not in outcome.out


def test_a_foreign_pair_is_verified_as_far_as_possible(tmp_path, tokenizer_path, run):
    prefix = write_raw(tmp_path / "f", [1, 2, 3, 900], [3, 1], [0, 1, 2], "<i4", 4)
    assert "no checksum to compare" in run("verify", prefix).out
    assert "token 900 at offset 0 of document 1" in run("verify", prefix, "--tokenizer", tokenizer_path).err


def test_every_damaged_dataset_is_told(dataset, tmp_path, run):
    write_dataset(tmp_path / "e", DOCUMENTS)
    change_file(tmp_path / "e", ".bin", lambda b: b + b"xx")
    outcome = run("verify", tmp_path / "none", dataset, tmp_path / "e")
    assert outcome.code == 2 and "none.idx: no such file" in outcome.err and "too long" in outcome.err
    assert f"{dataset}: 3 documents" in outcome.out


def test_inspect_shows_counts_texts_and_bytes(tmp_path, tokenizer_path, source_texts, run):
    texts = [*source_texts, "é" * 60, "漢字かな漢字€😀"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    common = "--tokenizer", tokenizer_path
    run("preprocess", "--input", tmp_path / "a.jsonl", "--output", tmp_path / "d", "--workers", 1, *common)
    plain = run("inspect", tmp_path / "d")
    assert plain.code == 0 and f"{len(texts)} documents" in plain.out and "byte-fallback" not in plain.out
    outcome = run("inspect", tmp_path / "d", "--samples", len(texts), "--png", tmp_path / "h.png", *common)
    assert outcome.code == 0 and (tmp_path / "h.png").read_bytes().startswith(b"\x89PNG")
    listed = outcome.out.split("the 10 most frequent of ")[1].split("\n\n")[0]
    shares = [float(share) for share in re.findall(r"<0x..> +(\d+\.\d+)%", listed.replace("\n", " "))]
    assert len(shares) == 10 and shares == sorted(shares, reverse=True) and f"{tmp_path}/h.png: histogram of lengths\n" in outcome.out
    assert "█" in outcome.out and "byte-fallback tokens: " in outcome.out and "<0xA9>" in outcome.out
    for text in texts:
        assert text[:100] in outcome.out
    lengths = [len(Tokenizer(tokenizer_path).encode(text)) + 1 for text in texts]
    assert f"shortest {min(lengths):,}, longest {max(lengths):,}" in outcome.out.replace("\n", " ")


def test_inspect_counts_lengths_by_powers_of_two(tmp_path, run):
    prefix = write_dataset(tmp_path / "d", [[1] * n for n in (1, 2, 3, 4, 7, 8)])
    rows = [line for line in run("inspect", prefix).out.splitlines() if " to " in line]
    assert [row.split("│")[2].strip() for row in rows] == ["1", "2", "2", "1"]


def test_inspect_refuses_another_tokenizer(dataset, tmp_path, source_texts, run):
    other = make_tokenizer(tmp_path / "o.model", source_texts[0].split("\n") * 3, 330)
    outcome = run("inspect", dataset, "--tokenizer", other)
    assert outcome.code == 2 and "made by another tokenizer" in outcome.err


def test_a_dataset_without_documents(tmp_path, tokenizer_path, run):
    prefix = write_dataset(tmp_path / "d", [])
    for command in ("inspect", "verify"):
        outcome = run(command, prefix, "--tokenizer", tokenizer_path)
        assert outcome.code == 0 and "0 documents" in outcome.out
