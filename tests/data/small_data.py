"""Small datasets for the tests of the data rooms."""

import struct
from pathlib import Path

import numpy as np
import sentencepiece

from megatron_ngpt.config.recipe import Recipe
from megatron_ngpt.data.writer import IndexedWriter


def write_dataset(prefix, documents, dtype="u2", **meta) -> str:
    """Write documents (lists of ids) as a dataset with our writer; returns the prefix."""
    with IndexedWriter(str(prefix), np.dtype(dtype)) as writer:
        for tokens in documents:
            writer.add(np.array(tokens, np.int64), np.array([len(tokens)]))
        writer.finish(str(prefix), meta)
    return str(prefix)


def numbered_documents(lengths, first=0) -> list[list[int]]:
    """Documents whose tokens count up over the whole dataset, so that every window is known by its first token."""
    documents = []
    for length in lengths:
        documents.append(list(range(first, first + length)))
        first += length
    return documents


def header(code=8, version=1, sequences=1, indices=2, magic=b"MMIDIDX\0\0") -> bytes:
    """The first 34 bytes of an index."""
    return struct.pack("<9sQBQQ", magic, version, code, sequences, indices)


def make_tokenizer(path: Path, lines: list[str], vocab_size: int = 400, **options) -> str:
    """Train a tiny SentencePiece model at `path`."""
    settings = dict(model_type="bpe", byte_fallback=True, unk_id=0, bos_id=1, eos_id=2, pad_id=3, minloglevel=2)
    settings |= dict(character_coverage=0.98, normalization_rule_name="identity", remove_extra_whitespaces=False) | options
    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=file, vocab_size=vocab_size, **settings
        )
    return str(path)


def recipe(train, valid=(), *, context=8, global_batch=4, seed=0, tokenizer="none.model", vocab=1000, **data) -> Recipe:
    """A recipe whose data sections are the given lists of entries (dicts)."""
    return Recipe.model_validate({
        "model": {"context": context, "vocab": vocab},
        "data": {"tokenizer": str(tokenizer), "train": list(train), "valid": list(valid), **data},
        "training": {"steps": 10, "global_batch": global_batch, "seed": seed, "output": "runs/none"},
    })
