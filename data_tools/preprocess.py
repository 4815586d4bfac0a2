"""`preprocess`: text files to one dataset; all processors busy, memory that does not grow, work that survives a kill."""

import errno
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from uuid import uuid4

from data_tools.chunks import Chunk, read_chunks
from data_tools.encode import Encoded, encode_chunks, group_chunks
from data_tools.malformed import report
from data_tools.plan import Journal, Work
from data_tools.sources import Source, recognise_all
from megatron_ngpt.data.indexed import token_dtype
from megatron_ngpt.data.tokenizer import Tokenizer
from megatron_ngpt.data.writer import IndexedWriter
from megatron_ngpt.errors import DataError, NgptError
from megatron_ngpt.monitor.progress import byte_progress

SHARD_BYTES = 64 << 20          # of input on disk: how much is done again after a kill, at most


@dataclass(frozen=True)
class Options:
    """What `preprocess` was asked for."""

    files: list[str]
    tokenizer: str
    output: str
    workers: int
    text_key: str = "text"
    split_on: str | None = None
    shuffle_seed: int | None = None
    skip_malformed: bool = False
    format: str | None = None


def preprocess(options: Options) -> dict:
    """Make the dataset `options.output`, or go on making it, and return its meta data; if it is complete already, {}.

    Raises ConfigError and DataError for mistakes and malformed input, NgptError for failures after which a re-run goes on.
    """
    tokenizer = Tokenizer(options.tokenizer)
    sources = recognise_all(options.files, options.format)
    again = not any(source.pipe for source in sources)
    try:
        with Work(options.output, _arguments(options, sources, tokenizer), keep=again) as work:
            if work.already_complete():
                return {}
            return _Run(options, tokenizer, sources, work, work.open()).finish()
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        remedy = (f"the finished part is kept in {options.output}.partial, and the same command goes on with it" if again
                  else "a pipe cannot be read again, so start anew, or from files to go on where it stopped")
        raise NgptError(f"{error.filename or options.output}: {reason}; {remedy}") from None


def _arguments(options: Options, sources: list[Source], tokenizer: Tokenizer) -> dict:
    """What the output's bytes depend on. Input files are told apart by size and time of change."""
    return {
        "input": [[os.path.abspath(source.path), source.size, _version(source)] for source in sources],
        "format": options.format,
        "tokenizer": tokenizer.sha256,
        "text_key": options.text_key,
        "split_on": options.split_on,
        "shuffle_seed": options.shuffle_seed,
    }


def _version(source: Source) -> int | str:
    """What changes with a file's content. No two pipes are the same: what came out of one is gone."""
    return uuid4().hex if source.pipe else os.stat(source.path).st_mtime_ns


class _Run:
    def __init__(self, options: Options, tokenizer: Tokenizer, sources: list[Source], work: Work, journal: Journal):
        self.options, self.tokenizer, self.sources, self.work, self.journal = options, tokenizer, sources, work, journal
        self.target = options.output if options.shuffle_seed is None else f"{work.base}-in-order"
        self._passed = [0]
        for source in sources:
            self._passed.append(self._passed[-1] + source.size)

    def finish(self) -> dict:
        """Write what is missing of the tokens, shuffle them if asked to, and give the dataset its name."""
        meta = {"tokenizer_sha256": self.tokenizer.sha256, "vocab_size": self.tokenizer.size}
        if not os.path.exists(f"{self.target}.idx"):
            self.work.recover_renamed(self.target, self.work.base)
            with IndexedWriter(
                self.work.base, token_dtype(self.tokenizer.size), self.journal.documents, self.journal.bin_bytes
            ) as writer:
                self._write(writer)
                if not writer.documents:
                    self.work.remove()
                    raise DataError(f"--input: no document of {len(self.sources)} files has any text: {self.journal.empty} are "
                                    f"empty, {self.journal.malformed} malformed; give files with text")
                counts = {"text_bytes": self.journal.text_bytes, "empty_documents": self.journal.empty,
                          "malformed_lines": self.journal.malformed, "arguments_sha256": self.work.digest}
                meta = writer.finish(self.target, meta | counts)
        if self.options.shuffle_seed is not None:
            from data_tools.merge import merge
            scratch = f"{self.work.base}-shuffled"
            meta = merge([self.target], self.options.output, self.options.shuffle_seed, scratch, keep_meta=True)
        self.work.remove()
        return meta

    def _write(self, writer: IndexedWriter) -> None:
        options, journal = self.options, self.journal
        chunks = read_chunks(self.sources, options.text_key, options.split_on, (journal.file, journal.position))
        encoder = self.tokenizer, options.text_key, options.split_on
        # The generator is closed before the writer, so that no worker outlives an error.
        with closing(encode_chunks(group_chunks(chunks), options.workers, *encoder)) as encoded:
            self._append(writer, encoded)

    def _append(self, writer: IndexedWriter, encoded: Iterator[tuple[list[Chunk], Encoded]]) -> None:
        first = next(encoded, None)         # starts the workers, before the bar starts its thread
        with byte_progress() as bar:
            done = self._passed[self.journal.file] + self.journal.consumed
            task, recorded = bar.add_task("preprocess", total=self._passed[-1], completed=done), done
            while first is not None:
                chunks, tokens = first
                writer.add(tokens.tokens, tokens.lengths)
                self._count(chunks, tokens, writer)
                done = self._passed[self.journal.file] + self.journal.consumed
                bar.update(task, completed=done)
                if done - recorded >= SHARD_BYTES:
                    writer.sync()
                    self.work.record(self.journal)
                    recorded = done
                first = next(encoded, None)
            bar.update(task, completed=self._passed[-1])

    def _count(self, chunks: list[Chunk], tokens: Encoded, writer: IndexedWriter) -> None:
        journal = self.journal
        for chunk, lines, malformed in zip(chunks, tokens.lines, tokens.malformed, strict=True):
            if chunk.file != journal.file:
                journal.lines = 0
            if malformed:
                self._report(chunk, malformed, journal.lines)
            journal.malformed += len(malformed)
            journal.file, journal.position, journal.consumed = chunk.file, chunk.end, chunk.consumed
            journal.lines += lines
        journal.text_bytes += tokens.text_bytes
        journal.empty += tokens.empty
        journal.documents, journal.bin_bytes = writer.documents, writer.bytes

    def _report(self, chunk: Chunk, malformed: list[tuple[int, str]], lines: int) -> None:
        remedy = "mend the file"
        if not self.options.skip_malformed:
            if self.work.recorded():
                remedy += f" and remove {self.work.folder}"     # which knows the file as it was
            else:
                self.work.remove()
        report(chunk, malformed, lines, self.journal.malformed, self.options.skip_malformed, remedy)
