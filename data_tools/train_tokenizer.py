"""`train-tokenizer`: a SentencePiece model from a sample spread evenly over all input."""

import os
from dataclasses import dataclass
from pathlib import Path

from data_tools.chunks import Chunk, read_chunks
from data_tools.documents import read_documents
from data_tools.malformed import report
from data_tools.sources import Source, recognise_all
from data_tools.vocabulary import BYTES, SMALLEST, train_model
from megatron_ngpt.data.tokenizer import Tokenizer
from megatron_ngpt.errors import ConfigError, DataError
from megatron_ngpt.monitor.progress import byte_progress

SAMPLE_CHUNK = 1 << 16
HELD_OUT_EVERY = 50
UNPACKED_RATIO = 4              # guess of how much text a compressed byte holds, to spread the sample


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
    skip_malformed: bool = False


def train_tokenizer(options: Options) -> tuple[str, float, int]:
    """Write `OUTPUT.model`; return its path, the bytes a token of held-out text that it did not see, and the malformed lines left out.

    Newlines and runs of spaces are kept and any text is spelt exactly (byte fallback), but for U+2581, which SentencePiece writes
    spaces with and gives back as a space. Ids: 0 unknown, 1 beginning (unused by the data tools), 2 end of document, 3 padding.
    """
    _check(options)
    sample = Sample(recognise_all(options.files, options.format), options)
    training, held_out = sample.texts()
    if not training:
        raise DataError(f"--input: {', '.join(options.files[:3])}: no text found, {sample.malformed} malformed lines left out; "
                        "JSONL and Parquet need the right --text_key")
    path = _write(options.output, train_model(training, options.vocab_size, options.model))
    return path, bytes_per_token(Tokenizer(path), held_out or training), sample.malformed


def _check(options: Options) -> None:
    if options.vocab_size < SMALLEST + 1:
        raise ConfigError(f"--vocab_size {options.vocab_size}: too small; the least is {SMALLEST + 1}, with {BYTES} for bytes")
    if options.model not in ("bpe", "unigram"):
        raise ConfigError(f"--model {options.model}: choose from bpe, unigram")
    folder = Path(options.output).parent
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"--output {options.output}: {folder} cannot be written to; choose a path where you may write")


class Sample:
    """Texts of every so many-th chunk of 64 KB of all input, so that each file has its share; about `sample_bytes`, at most twice that.

    How many chunks there are and what they decode to is a guess at first. When the sample gets too large, every second chunk of it is
    dropped, and half as many are taken from there on.
    """

    def __init__(self, sources: list[Source], options: Options):
        self._sources, self._options, self.malformed = sources, options, 0
        total = sum(source.size * (UNPACKED_RATIO if source.packing or source.kind == "parquet" else 1) for source in sources)
        self._every = max(1, total // options.sample_bytes)
        self._taken: list[list[str]] = []
        self._file, self._lines = 0, 0      # lines of that file that were passed, as far as they were seen

    def texts(self) -> tuple[list[str], list[str]]:
        """(texts to train on, texts held out)."""
        options, size = self._options, 0
        with byte_progress() as bar:
            task = bar.add_task("sample", total=sum(source.size for source in self._sources))
            chunks = read_chunks(self._sources, options.text_key, options.split_on, size=SAMPLE_CHUNK)
            for number, chunk in enumerate(chunks):
                bar.update(task, completed=sum(source.size for source in self._sources[: chunk.file]) + chunk.consumed)
                if number % self._every == 0:
                    self._taken.append(self._texts_of(chunk))
                    size += sum(map(len, self._taken[-1]))
                while size > 2 * options.sample_bytes and len(self._taken) > 1:
                    self._taken, self._every = self._taken[::2], 2 * self._every
                    size = sum(len(text) for texts in self._taken for text in texts)
                self._pass(chunk)
        training, held_out = [], []
        for number, texts in enumerate(self._taken):
            (held_out if number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 else training).extend(filter(None, texts))
        return training, held_out

    def _texts_of(self, chunk: Chunk) -> list[str]:
        options = self._options
        documents = read_documents(chunk, options.text_key, options.split_on)
        if documents.malformed:
            report(chunk, documents.malformed, self._lines_before(chunk), self.malformed, options.skip_malformed, "mend the file")
        self.malformed += len(documents.malformed)
        return documents.texts

    def _pass(self, chunk: Chunk) -> None:
        if chunk.source.kind != "parquet" and chunk.data is not None:
            separator = b"\n" if chunk.source.kind == "jsonl" else (self._options.split_on or "\n").encode()
            self._lines = (self._lines if chunk.file == self._file else 0) + chunk.data.count(separator)
            self._file = chunk.file

    def _lines_before(self, chunk: Chunk) -> int:
        if chunk.source.kind == "parquet" or chunk.start == 0:
            return chunk.start
        if chunk.data is not None:
            return self._lines
        with open(chunk.source.path, "rb") as file:     # of which only parts were read
            starts = range(0, chunk.start, SAMPLE_CHUNK)
            return sum(file.read(min(SAMPLE_CHUNK, chunk.start - start)).count(b"\n") for start in starts)


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
