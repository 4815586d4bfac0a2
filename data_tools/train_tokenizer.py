"""`train-tokenizer`: a SentencePiece model from a sample spread evenly over all input."""

import io
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sentencepiece

from data_tools.chunks import read_chunks
from data_tools.documents import read_documents
from data_tools.sources import Source, recognise_all
from megatron_ngpt.data.tokenizer import Tokenizer
from megatron_ngpt.errors import ConfigError, DataError
from megatron_ngpt.monitor.progress import byte_progress

SAMPLE_CHUNK = 1 << 16
HELD_OUT_EVERY = 50
LONGEST_SENTENCE = 4000         # bytes; SentencePiece passes over longer ones
UNPACKED_RATIO = 4              # guess of how much text a compressed byte holds, to spread the sample
UNK, BOS, EOS, PAD = range(4)
BYTES = 256
SMALLEST = PAD + 1 + BYTES + 1      # the ids above, the bytes, the newline
MOST_COVERAGE = 0.9995


@dataclass(frozen=True)
class Options:
    """What `train-tokenizer` was asked for."""

    files: list[str]
    output: str
    vocab_size: int
    model: str = "bpe"
    text_key: str = "text"
    split_on: str | None = None
    sample_bytes: int = 50_000_000
    format: str | None = None


def train_tokenizer(options: Options) -> tuple[str, float]:
    """Write `OUTPUT.model`; return its path and the bytes a token of held-out text that it did not see.

    Newlines and runs of spaces are kept and any text is spelt exactly (byte fallback). Ids: 0 unknown, 1 beginning (unused by
    the data tools), 2 end of document, 3 padding.
    """
    _check(options)
    sources = recognise_all(options.files, options.format)
    training, held_out = _sample(sources, options)
    if not training:
        raise DataError(f"--input: {', '.join(options.files[:3])}: no text found; JSONL and Parquet need the right --text_key")
    content, kept = io.BytesIO(), _kept_characters(training, options.vocab_size)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(training, kept), model_writer=content, minloglevel=2,
            model_type=options.model, vocab_size=options.vocab_size, byte_fallback=True, character_coverage=1.0,
            normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False,
            allow_whitespace_only_pieces=True, user_defined_symbols=["\n"], split_digits=True,
            max_sentence_length=LONGEST_SENTENCE + 4, unk_id=UNK, bos_id=BOS, eos_id=EOS, pad_id=PAD,
        )
    except (RuntimeError, OSError) as error:
        raise ConfigError(f"--vocab_size {options.vocab_size}: {_reason(error)}") from None
    path = _write(options.output, content.getvalue())
    return path, bytes_per_token(Tokenizer(path), held_out or training)


def _check(options: Options) -> None:
    if options.vocab_size < SMALLEST + 2:
        raise ConfigError(f"--vocab_size {options.vocab_size}: too small; the least is {SMALLEST + 2}, with {BYTES} for bytes")
    if options.model not in ("bpe", "unigram"):
        raise ConfigError(f"--model {options.model}: choose from bpe, unigram")


def _sample(sources: list[Source], options: Options) -> tuple[list[str], list[str]]:
    """(texts to train on, texts held out): every so many-th chunk of 64 KB of all input, so that each file has its share."""
    total = sum(source.size * (UNPACKED_RATIO if source.packing or source.kind == "parquet" else 1) for source in sources)
    every = max(1, total // options.sample_bytes)
    training, held_out = [], []
    with byte_progress() as bar:
        task = bar.add_task("sample", total=sum(source.size for source in sources))
        passed, current = 0, 0
        for number, chunk in enumerate(read_chunks(sources, options.text_key, options.split_on, size=SAMPLE_CHUNK)):
            if chunk.file != current:
                passed += sum(source.size for source in sources[current : chunk.file])
                current = chunk.file
            bar.update(task, completed=passed + chunk.consumed)
            if number % every == 0:
                texts = read_documents(chunk, options.text_key, options.split_on).texts
                (held_out if number // every % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 else training).extend(texts)
    return [text for text in training if text], [text for text in held_out if text]


def _sentences(texts: list[str], kept: str) -> Iterator[str]:
    """Lines without their newline, cut at characters that bytes will spell, in pieces that SentencePiece does not pass over."""
    longest = LONGEST_SENTENCE // 4             # a character has at most 4 bytes
    other = re.compile(f"[^{re.escape(kept)}]+")
    for text in texts:
        for line in other.split(text):
            for start in range(0, len(line), longest):
                yield line[start : start + longest]


def _kept_characters(texts: list[str], vocab_size: int) -> str:
    """The commonest characters, which get an entry each: 99.95% of the text, but at most half of the entries there are."""
    counts = Counter()
    for text in texts:
        counts.update(text)
    for apart in "\n\0":             # an entry of its own, and one that SentencePiece keeps for itself
        counts.pop(apart, None)
    kept, covered = [], 0
    for character, count in counts.most_common(max(1, (vocab_size - SMALLEST) // 2)):
        if covered >= MOST_COVERAGE * counts.total():
            break
        kept.append(character)
        covered += count
    return "".join(kept)


def _reason(error: Exception) -> str:
    message = " ".join(str(error).split())
    if found := re.search(r"value <= (\d+)", message):
        return f"the text fills {found[1]} entries only; give that or less, or more text"
    return f"SentencePiece refused: {message or type(error).__name__}"


def _write(output: str, content: bytes) -> str:
    path = Path(f"{output}.model")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
    return str(path)


def bytes_per_token(tokenizer: Tokenizer, texts: list[str]) -> float:
    """UTF-8 bytes of the texts a token."""
    tokens = sum(len(tokenizer.encode(text)) for text in texts)
    return sum(len(text.encode()) for text in texts) / max(1, tokens)
