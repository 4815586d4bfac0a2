"""The text that follows a prompt, while its tokens come in."""

import codecs
from collections.abc import Callable
from functools import lru_cache

from megatron_ngpt.data.tokenizer import Tokenizer


class Continuation:
    """One prompt and what is written after it.

    It ends at the end-of-document token or where a stop text appears; neither is part of the text. `show`, if given, is called with
    each new piece of text as soon as it is certain: whole characters, and nothing that may be the start of a stop text. The last `room`
    tokens of the prompt are kept; 0: all.

    Attributes:
        given: the prompt's tokens; for an empty prompt the end-of-document token, after which documents start.
        tokens: those written so far.
        ended: nothing may follow.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: str,
        stops: list[str] | None = None,
        show: Callable[[str], None] | None = None,
        room: int = 0,
    ):
        self.given = tokenizer.encode(prompt).tolist()[-room:] or [tokenizer.eos_id]
        self.tokens: list[int] = []
        self.ended = False
        self._tokenizer, self._stops, self._show = tokenizer, [stop for stop in stops or [] if stop], show
        self._before = tokenizer.decode(self.given)
        self._text, self._shown = "", 0

    def add(self, token: int) -> None:
        """The next token."""
        if token == self._tokenizer.eos_id:
            self.ended = True
            return
        self.tokens.append(token)
        if self._stops or self._show:
            self._read(self._incomplete())
            self._tell(max((_overlap(self._text, stop) for stop in self._stops), default=0))

    def finish(self) -> str:
        """The whole text, now that no token will follow; what was held back is shown."""
        self._read(0)
        self._tell(0)
        return self._text

    def _read(self, withheld: int) -> None:
        """The text of all tokens but the last `withheld`, up to a stop text."""
        written = self.tokens[: len(self.tokens) - withheld]
        whole = self._tokenizer.decode([*self.given, *written])
        text = whole[len(self._before) :] if whole.startswith(self._before) else self._tokenizer.decode(written)
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            text, self.ended = text[: min(places)], True
        self._text = text

    def _tell(self, held_back: int) -> None:
        if self._show and (piece := self._text[self._shown : len(self._text) - held_back]):
            self._shown += len(piece)
            self._show(piece)

    def _incomplete(self) -> int:
        """How many tokens at the end are bytes of a character that is not complete."""
        value_of, start = _byte_values(self._tokenizer), len(self.tokens)
        while start and self.tokens[start - 1] in value_of:
            start -= 1
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(bytes(value_of[token] for token in self.tokens[start:]))
        return len(decoder.getstate()[0])


@lru_cache(maxsize=1)
def _byte_values(tokenizer: Tokenizer) -> dict[int, int]:
    """The byte that a byte-fallback entry stands for, by its id."""
    return {int(token): value for value, token in enumerate(tokenizer.byte_tokens())}


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the start of `stop`."""
    return max((n for n in range(1, min(len(text), len(stop) - 1) + 1) if text.endswith(stop[:n])), default=0)
