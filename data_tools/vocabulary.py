"""From texts to a SentencePiece model of exactly the size asked for, or the size that they do fill."""

import io
import multiprocessing
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection

import sentencepiece

from megatron_ngpt.errors import ConfigError, DataError, NgptError

LONGEST_SENTENCE = 4000         # bytes; SentencePiece passes over longer ones
UNK, BOS, EOS, PAD = range(4)
BYTES = 256
SMALLEST = PAD + 1 + BYTES + 1      # the ids above, the bytes, the newline
MOST_COVERAGE = 0.9995
SECONDS_BETWEEN_SIGNS = 15.0


def train_model(texts: list[str], vocab_size: int, model: str) -> bytes:
    """A model of `vocab_size` entries, `model` bpe or unigram. Newlines and runs of spaces are kept, what is rare is spelt in bytes.

    Raises DataError for texts of newlines alone, and ConfigError for more entries than they fill, with a number that was tried.
    """
    counts = Counter()
    for text in texts:
        counts.update(text)
    for apart in "\n\0":             # an entry of its own, and one that SentencePiece keeps for itself
        counts.pop(apart, None)
    if not counts:
        raise DataError("--input: the text is nothing but newlines; give files with text")
    found = _fit(texts, counts, vocab_size, model)
    if isinstance(found, bytes):
        return found
    size = vocab_size
    while isinstance(found, int):       # of fewer entries a unigram model may fill fewer still
        size = min(found, size - 1)
        found = _fit(texts, counts, size, model)
    raise ConfigError(f"--vocab_size {vocab_size}: the text fills {size} entries of a {model} model; give {size}, or more text")


def _fit(texts: list[str], counts: Counter, vocab_size: int, model: str) -> bytes | int:
    """A model, or how many entries the texts fill at most. More of their characters are kept if fewer do not fill it."""
    most = min(len(counts), vocab_size - SMALLEST)
    number = min(most, _usual_number(counts, vocab_size))
    characters = [character for character, _ in counts.most_common(most)]
    while True:
        found = _in_child(texts, "".join(characters[:number]), vocab_size, model)
        if isinstance(found, bytes) or number == most:
            return found
        number = min(most, 2 * number)


def _usual_number(counts: Counter, vocab_size: int) -> int:
    """The commonest characters get an entry each: 99.95% of the text, but at most half of the entries there are."""
    limit, covered, number = max(1, (vocab_size - SMALLEST) // 2), 0, 0
    for _, count in counts.most_common(limit):
        if covered >= MOST_COVERAGE * counts.total():
            break
        covered, number = covered + count, number + 1
    return number


def _in_child(texts: list[str], kept: str, vocab_size: int, model: str) -> bytes | int:
    """`_train` in a process of its own: SentencePiece lets neither another thread nor Ctrl-C in while it works. The process starts afresh:
    as a fork of one in which SentencePiece has had threads it would crash."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_send_trained, args=(there, texts, kept, vocab_size, model), daemon=True)
    child.start()
    there.close()
    began = time.monotonic()
    try:
        while not here.poll(SECONDS_BETWEEN_SIGNS):
            print(f"training a {model} model of {vocab_size} entries: {time.monotonic() - began:.0f} s so far", file=sys.stderr, flush=True)
        found = here.recv()
    except EOFError:
        raise NgptError("SentencePiece was ended from outside (out of memory?); give a smaller --sample_bytes") from None
    finally:
        child.terminate()
        child.join()
    if isinstance(found, str):
        raise ConfigError(f"--vocab_size {vocab_size}: SentencePiece refused: {found}")
    return found


def _send_trained(there: Connection, texts: list[str], kept: str, vocab_size: int, model: str) -> None:
    there.send(_train(texts, kept, vocab_size, model))


def _train(texts: list[str], kept: str, vocab_size: int, model: str) -> bytes | int | str:
    """A model; or how many entries the texts fill; or what SentencePiece says."""
    content = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts, kept), model_writer=content, minloglevel=2,
            model_type=model, vocab_size=vocab_size, byte_fallback=True, character_coverage=1.0,
            normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False,
            allow_whitespace_only_pieces=True, user_defined_symbols=["\n"], split_digits=True,
            max_sentence_length=LONGEST_SENTENCE + 4, unk_id=UNK, bos_id=BOS, eos_id=EOS, pad_id=PAD,
        )
    except (RuntimeError, OSError) as error:
        message = " ".join(str(error).split())
        limit = re.search(r"value <= (\d+)", message)
        return int(limit[1]) if limit else message or type(error).__name__
    return content.getvalue()


def _sentences(texts: list[str], kept: str) -> Iterator[str]:
    """Lines without their newline, cut at characters that bytes will spell, in pieces that SentencePiece does not pass over."""
    longest = LONGEST_SENTENCE // 4             # a character has at most 4 bytes
    other = re.compile(f"[^{re.escape(kept)}]+")
    for text in texts:
        for line in other.split(text):
            for start in range(0, len(line), longest):
                yield line[start : start + longest]
