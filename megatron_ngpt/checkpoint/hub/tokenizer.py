"""A SentencePiece model as the tokenizer of an export, which `AutoTokenizer` loads and which encodes as SentencePiece does.

Where the library `tokenizers` can give the same tokens (BPE on unchanged text: our own tokenizers, Llama's), that is a `tokenizer.json`,
compared here with SentencePiece on awkward texts. For any other model it is a small class that calls SentencePiece itself.
"""

import json
from pathlib import Path

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2

from megatron_ngpt.checkpoint.exported import TOKENIZER
from megatron_ngpt.checkpoint.hub.code import CLASS, copy_code
from megatron_ngpt.data.tokenizer import Tokenizer

FAST = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
SPACE = "▁"  # how SentencePiece writes a space
_BPE = sentencepiece_model_pb2.TrainerSpec.BPE
_PIECE = sentencepiece_model_pb2.ModelProto.SentencePiece
_SPECIAL = (_PIECE.UNKNOWN, _PIECE.CONTROL)
_AWKWARD = (
    "", " ", "  ", "   a  b   ", " a", "a ", "\n", "\n\n\n", " \n ", "\t", "\r\n", "a\tb\n\n  c", f"{' ' * 37}x{chr(10) * 11}",
    "def f(x):\n    return x  # 12 + 3.5e-7\n", "The quick brown fox, 1234567890 times.", "naïve café, Straße, İstanbul",
    "e\u0301 o\u0308\u0323 a\u0300\u0301", "ﬁ ﬃ ① ② ｆｕｌｌ ｗｉｄｔｈ Ⅷ", "日本語の文章。漢字かな交じり文", "한국어 각 각", "Привет, мир",
    "שלום عليكم ﷺ", "नमस्ते ไทย", "👍👍🏽 👨‍👩‍👧 🇩🇪", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "\x00 \x01\x1f\x7f\x85",
    "\u00a0\u2003\u2028\u200b\ufeff", "\ufffd\ue000\U0010ffff",
    SPACE, f" {SPACE}{SPACE} a{SPACE}b", "<unk><s></s><pad> <0x41><0x0A>", "aaaaaaa aaa ababababa ----------- ======= ....... ########",
)  # fmt: skip


def write_tokenizer(tokenizer: Tokenizer, directory: Path, context: int) -> None:
    """Put `tokenizer.model` and what `AutoTokenizer` needs beside it into an export; `context` is the model's, in tokens."""
    content = Path(tokenizer.path).read_bytes()
    (directory / TOKENIZER).write_bytes(content)
    proto = sentencepiece_model_pb2.ModelProto.FromString(content)
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    settings = _settings(tokenizer, proto, context)
    fast = convert(proto) if can_convert(proto) else None
    if fast is not None and is_exact(fast, processor, texts(proto)):
        fast.save(str(directory / FAST))
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    else:
        module, name = CLASS.split(".")
        copy_code([module], directory)
        settings |= {"tokenizer_class": name, "auto_map": {"AutoTokenizer": [CLASS, None]}}
    (directory / SETTINGS).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")


def special_ids(tokenizer: Tokenizer | None) -> dict[str, int | None]:
    """The ids that `config.json` and `generation_config.json` give, and `tokenizer_config.json` by name. What stands before a text's
    first token is the end of the document before it: no text of ours ever had a beginning token, and its embedding is untrained."""
    eos, pad = (tokenizer.eos_id, tokenizer.pad_id) if tokenizer else (None, None)
    return {"bos_token_id": eos, "eos_token_id": eos, "pad_token_id": pad}


def _settings(tokenizer: Tokenizer, proto: sentencepiece_model_pb2.ModelProto, context: int) -> dict:
    """`tokenizer_config.json`: the special tokens, none of which `encode` adds or finds in a text."""
    ids, prefix = {**special_ids(tokenizer), "unk_token_id": proto.trainer_spec.unk_id}, proto.normalizer_spec.add_dummy_prefix
    return {
        **{name.removesuffix("_id"): None if token is None else tokenizer.piece(token) for name, token in ids.items()},
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": prefix,  # converters to other formats take it for true where it is missing
        "legacy": prefix,  # false takes the prefix away from a model that has one
        "split_special_tokens": True,  # `</s>` in a text is text, as for SentencePiece
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",  # so that generation goes on from the last token of every row
        "model_max_length": context,
    }


def can_convert(proto: sentencepiece_model_pb2.ModelProto) -> bool:
    """Whether `tokenizers` knows the model's method: BPE on text that is not normalised, spaces at the front of words."""
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    changes_text = normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces or not normalizer.escape_whitespaces
    return trainer.model_type == _BPE and not changes_text and not trainer.treat_whitespace_as_suffix


def convert(proto: sentencepiece_model_pb2.ModelProto) -> tokenizers.Tokenizer:
    """The model for the library `tokenizers`.

    SentencePiece merges the pair whose piece has the highest score; here every pair has a rank, by its piece's score.
    """
    trainer, prefix = proto.trainer_spec, proto.normalizer_spec.add_dummy_prefix
    model = tokenizers.models.BPE(
        vocab={piece.piece: token for token, piece in enumerate(proto.pieces)},
        merges=_merges(proto),
        unk_token=trainer.unk_piece,
        fuse_unk=True,
        byte_fallback=trainer.byte_fallback,
    )
    made = tokenizers.Tokenizer(model)
    spaces = [tokenizers.normalizers.Replace(" ", SPACE)]
    decoders = [tokenizers.decoders.Replace(SPACE, " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    if prefix:  # Metaspace puts no prefix before a text that begins with one; SentencePiece does
        spaces.append(tokenizers.normalizers.Replace(tokenizers.Regex(rf"\A{SPACE}"), SPACE * 2))
        made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False)
        decoders.append(tokenizers.decoders.Strip(" ", 1, 0))
    made.normalizer = tokenizers.normalizers.Sequence(spaces)
    made.decoder = tokenizers.decoders.Sequence(decoders)
    made.encode_special_tokens = True
    made.add_special_tokens([tokenizers.AddedToken(p.piece, normalized=False, special=True) for p in proto.pieces if p.type in _SPECIAL])
    made.add_tokens([tokenizers.AddedToken(text, normalized=True) for text in _user_defined(proto)])  # taken whole wherever they stand
    return made


def _merges(proto: sentencepiece_model_pb2.ModelProto) -> list[tuple[str, str]]:
    """Pairs of pieces whose union is a piece, the highest score first; SentencePiece merges ordinary pieces alone."""
    ordinary = {piece.piece: (-piece.score, token) for token, piece in enumerate(proto.pieces) if piece.type == _PIECE.NORMAL}
    ranked = []
    for whole, rank in ordinary.items():
        for cut in range(1, len(whole)):
            if whole[:cut] in ordinary and whole[cut:] in ordinary:
                ranked.append((rank, cut, whole))
    return [(whole[:cut], whole[cut:]) for _, cut, whole in sorted(ranked)]


def _user_defined(proto: sentencepiece_model_pb2.ModelProto) -> list[str]:
    return [piece.piece.replace(SPACE, " ") for piece in proto.pieces if piece.type == _PIECE.USER_DEFINED]


def texts(proto: sentencepiece_model_pb2.ModelProto) -> list[str]:
    """What a conversion is tried on: awkward texts, symbols that are taken whole, and the vocabulary forwards and backwards."""
    symbols = _user_defined(proto)
    pieces = [piece.piece.replace(SPACE, " ") for piece in proto.pieces if piece.type == _PIECE.NORMAL]
    around = [f"{before}{symbol}{symbol}{after}" for symbol in symbols for before in ("", " ", "x ") for after in ("", " ", " 1")]
    return [*_AWKWARD, *symbols, *around, "".join(pieces), "".join(reversed(pieces)), " ".join(pieces)]


def is_exact(fast: tokenizers.Tokenizer, processor: sentencepiece.SentencePieceProcessor, given: list[str]) -> bool:
    """Whether both encode every text alike, and decode what has no unknown token alike."""
    for text in given:
        tokens = processor.encode(text)
        if fast.encode(text).ids != tokens:
            return False
        if processor.unk_id() not in tokens and fast.decode(tokens, skip_special_tokens=False) != processor.decode(tokens):
            return False
    return True
