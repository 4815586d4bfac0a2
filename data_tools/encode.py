"""Chunks to tokens, in this process or in several, results in the order of the chunks and only a few of them in memory."""

import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field

import numpy as np

from data_tools.chunks import CHUNK_BYTES, Chunk
from data_tools.documents import read_documents
from megatron_ngpt.data.indexed import token_dtype
from megatron_ngpt.data.tokenizer import Tokenizer
from megatron_ngpt.errors import NgptError

WAITING_PER_WORKER = 3
COSTLY_CHARACTERS = 1 << 23
WHOLE_COST = 30          # bytes a character that SentencePiece takes


@dataclass
class Encoded:
    """The tokens of a task's chunks: documents end to end in the dataset's dtype, their lengths, and what was left out.

    `texts` are UTF-8 bytes; `lines` and `malformed` ([(line within the chunk, what is wrong)]) are per chunk.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    text_bytes: int = 0
    empty: int = 0
    lines: list[int] = field(default_factory=list)
    malformed: list[list[tuple[int, str]]] = field(default_factory=list)


class Encoder:
    """Turns chunks into tokens: each document's `encode(text)` and one end-of-document id."""

    def __init__(self, tokenizer: Tokenizer, text_key: str, split_on: str | None):
        self._tokenizer, self._text_key, self._split_on = tokenizer, text_key, split_on
        self._dtype = token_dtype(tokenizer.size)

    def __call__(self, chunks: list[Chunk]) -> Encoded:
        """Encode the documents of some chunks; documents without tokens are dropped and counted."""
        ended, result = [], Encoded(np.empty(0, self._dtype), np.empty(0, np.int32))
        for chunk in chunks:
            documents = read_documents(chunk, self._text_key, self._split_on)
            result.lines.append(documents.lines)
            result.malformed.append(documents.malformed)
            self._tell_costs(documents.texts)
            encoded = self._tokenizer.encode_ended(documents.texts)
            kept = [tokens for tokens in encoded if len(tokens) > 1]
            result.empty += len(encoded) - len(kept)
            result.text_bytes += sum(map(_utf8_size, documents.texts))
            ended += kept
        if ended:
            result.tokens = np.concatenate(ended, dtype=self._dtype, casting="unsafe")
            result.lengths = np.fromiter(map(len, ended), np.int32, len(ended))
        return result


    def _tell_costs(self, texts: list[str]) -> None:
        for text in texts:
            if len(text) >= COSTLY_CHARACTERS and self._tokenizer.whole(text):
                print(f"a document of {len(text):,} characters is encoded whole, as this tokenizer's exact tokens need; that takes "
                      f"about {len(text) * WHOLE_COST / 1e9:.1f} GB of memory", file=sys.stderr, flush=True)


def _utf8_size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def group_chunks(chunks: Iterable[Chunk], size: int = CHUNK_BYTES) -> Iterator[list[Chunk]]:
    """Small neighbouring chunks together, about `size` bytes a group: many small files cost no more than a large one."""
    group, weight = [], 0
    for chunk in chunks:
        group.append(chunk)
        weight += chunk.data.nbytes if chunk.source.kind == "parquet" else chunk.end - chunk.start
        if weight >= size:
            yield group
            group, weight = [], 0
    if group:
        yield group


_encoder: Encoder | None = None         # one a worker process, made when it starts


def _start_worker(*arguments) -> None:
    global _encoder
    _encoder = Encoder(*arguments)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Worker processes would wait for ever for a parent that was killed."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _encode(chunks: list[Chunk]) -> Encoded:
    return _encoder(chunks)


def encode_chunks(groups: Iterator[list[Chunk]], workers: int, *encoder_arguments) -> Iterator[tuple[list[Chunk], Encoded]]:
    """(chunks, their tokens) in order. With one worker everything happens in this process.

    At most three groups a worker are in memory. Raises NgptError if a worker process was ended from outside.
    """
    if workers == 1:
        encoder = Encoder(*encoder_arguments)
        yield from ((group, encoder(group)) for group in groups)
        return
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(workers, context, _start_worker, encoder_arguments) as pool:
        waiting = deque()
        try:
            for group in groups:
                waiting.append((group, pool.submit(_encode, group)))
                if len(waiting) >= WAITING_PER_WORKER * workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            for first, future in waiting:
                yield first, future.result()
        except BrokenProcessPool:
            raise NgptError("a worker process was ended from outside (out of memory?); run the same command again to go on, "
                            "with fewer --workers if memory is short") from None
        finally:
            pool.shutdown(cancel_futures=True)


