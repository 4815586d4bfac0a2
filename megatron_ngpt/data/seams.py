"""Where a text may be cut so that the tokens of its parts, end to end, are exactly the tokens of the whole.

Byte pair encoding joins neighbours that together are, or are part of, an entry. Two characters that stand side by side in no entry are
never in one token, and what is merged on one side of such a seam does not depend on the other side. Unigram models have no seams: they
compare sums in fp32 from the text's beginning on, whose rounding breaks ties.
"""

from collections.abc import Iterator

from sentencepiece import sentencepiece_model_pb2

SPACE = "▁"         # as which SentencePiece writes a space
_BPE = sentencepiece_model_pb2.TrainerSpec.BPE


class Seams:
    """The seams of a SentencePiece model, given as its file's bytes. `exact`: whether it has any."""

    def __init__(self, raw: bytes):
        model = sentencepiece_model_pb2.ModelProto.FromString(raw)
        normal, trained = model.normalizer_spec, model.trainer_spec
        changes = normal.precompiled_charsmap or normal.remove_extra_whitespaces or not normal.escape_whitespaces
        self.exact = trained.model_type == _BPE and not changes and not trained.treat_whitespace_as_suffix
        pieces = [entry.piece for entry in model.pieces]
        self._joined = {piece[place : place + 2] for piece in pieces for place in range(len(piece) - 1)}
        # Unknown characters side by side become one token, if they do not become bytes.
        self._known = None if trained.byte_fallback else {piece for piece in pieces if len(piece) == 1}
        self._prefix = normal.add_dummy_prefix      # a space before every text: a seam is at a space, which this one replaces

    def parts(self, text: str, size: int) -> Iterator[str]:
        """The text in parts of `size` characters, or as many more as there are up to the next seam."""
        start = 0
        while len(text) - start > size:
            seam = next((place for place in range(start + size, len(text) - 1) if self._cuts(text, place)), None)
            if seam is None:
                break
            yield text[start:seam]
            start = seam + self._prefix
        yield text[start:]

    def _cuts(self, text: str, place: int) -> bool:
        if self._prefix and text[place] != " ":
            return False
        before, after = text[place - 1 : place + 1].replace(" ", SPACE)
        return before + after not in self._joined and (self._known is None or before in self._known)
