"""A SentencePiece model as a tokenizer of `transformers`: SentencePiece itself encodes and decodes.

Exports carry this file where `tokenizer.json` could not give the same tokens, for example for unigram models, whose equally likely
segmentations SentencePiece tells apart by rounding in fp32.
"""

from transformers.tokenization_utils_sentencepiece import SentencePieceBackend


class SentencePieceTokenizer(SentencePieceBackend):
    """Encodes as `SentencePieceProcessor.encode`, without a beginning and an end token; control tokens in a text are text."""

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def _tokenize(self, text: str, **_) -> list[str]:
        return self.sp_model.id_to_piece(self.sp_model.encode(text))

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of vocabulary entries; special tokens, which SentencePiece leaves out, are put in by name."""
        text, run, special = "", [], set(self.all_special_tokens)
        for token in tokens:
            if token in special:
                text, run = text + self._decode_pieces(run) + token, []
            else:
                run.append(token)
        return text + self._decode_pieces(run)

    def _decode_pieces(self, pieces: list[str]) -> str:
        return self.sp_model.decode(self.sp_model.piece_to_id(pieces)) if pieces else ""
