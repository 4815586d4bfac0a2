"""A SentencePiece model, loaded with errors a user can act on."""

import hashlib
from functools import cached_property
from pathlib import Path

import numpy as np
import sentencepiece

from megatron_ngpt.data.seams import Seams
from megatron_ngpt.errors import DataError
from megatron_ngpt.foreign import what_is_wrong

PART_CHARACTERS = 1 << 18


class Tokenizer:
    """A trained SentencePiece model, ours or anybody's: `size` entries, `eos_id` ends a document, `pad_id` may be None.

    `raw` is the file's content, `sha256` that of it. Raises DataError if the file is missing, unreadable or has no end-of-document id.
    """

    def __init__(self, path: str):
        self.path = str(path)
        try:
            raw = Path(path).read_bytes()
        except OSError as error:
            raise DataError(f"tokenizer {path}: {error.strerror}; give the path of a SentencePiece .model file") from None
        self.raw = raw
        self.sha256 = hashlib.sha256(raw).hexdigest()
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            loaded = bool(raw) and self._processor.LoadFromSerializedProto(raw)
        except RuntimeError:
            loaded = False
        if not loaded:
            raise DataError(f"tokenizer {path}: is not a SentencePiece model; give the .model file that train-tokenizer writes")
        self.size = self._processor.vocab_size()
        self.eos_id = self._processor.eos_id()
        self.pad_id = self._processor.pad_id() if self._processor.pad_id() >= 0 else None
        if self.eos_id < 0:
            raise DataError(f"tokenizer {path}: has no end-of-sentence id, which ends each document; train it with one")

    def __reduce__(self):
        return Tokenizer, (self.path,)

    @cached_property
    def _seams(self) -> Seams:
        return Seams(self._processor.serialized_model_proto())

    def whole(self, text: str) -> bool:
        """Whether a text is encoded in one piece: it is short, or the model has no place where it may be cut."""
        return len(text) <= PART_CHARACTERS or not self._seams.exact

    def encode(self, text: str) -> np.ndarray:
        """The text's token ids, int32 [tokens], with no beginning and no end id.

        A long text is encoded in parts where that gives the same tokens: SentencePiece takes 30 to 50 times a text's size of memory.
        Raises DataError for text that holds half of a surrogate pair.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"text {text[error.start :][:20]!a}: {what_is_wrong(error)}") from None
        if self.whole(text):
            return self._processor.Encode(text, return_type="numpy")
        return np.concatenate([self._processor.Encode(part, return_type="numpy") for part in self._seams.parts(text, PART_CHARACTERS)])

    def encode_ended(self, texts: list[str]) -> list[np.ndarray]:
        """For each text its `encode` followed by `eos_id`, int32."""
        if all(map(self.whole, texts)):
            return self._processor.Encode(texts, return_type="numpy", add_eos=True, num_threads=1)
        end = np.array([self.eos_id], np.int32)
        return [np.concatenate([self.encode(text), end]) for text in texts]

    def decode(self, tokens) -> str:
        """The text of token ids."""
        return self._processor.Decode([int(token) for token in tokens])

    def piece(self, token: int) -> str:
        """The vocabulary entry of a token id, as SentencePiece writes it."""
        return self._processor.IdToPiece(int(token))

    def byte_tokens(self) -> np.ndarray:
        """The ids of the byte-fallback entries <0x00> to <0xFF>, int64, empty for a model without them."""
        return np.array([token for token in range(self.size) if self._processor.IsByte(token)], np.int64)
