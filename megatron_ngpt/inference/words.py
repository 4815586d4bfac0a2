"""How many words the raw text of documents has, for perplexity a word, which does not depend on the tokenizer."""

import numpy as np

from megatron_ngpt.data.indexed import WORDS, read_meta
from megatron_ngpt.data.tape import Tape, find_prefixes
from megatron_ngpt.errors import DataError
from megatron_ngpt.inference.load import LoadedModel


def count_words(prefix: str, tape: Tape, bounds: np.ndarray, loaded: LoadedModel) -> int | None:
    """Words, parted by white space, of the tape's first documents, which begin at `bounds`.

    As the datasets remember them; else of the text that the model's tokenizer makes of the tokens, which is the raw text but where the
    tokenizer changes it. None without either.
    """
    documents, remembered = len(bounds) - 1, []
    for found in find_prefixes(prefix):
        remembered.append((read_meta(found) or {}).get(WORDS))
    if all(words is not None for words in remembered):
        words = [number for numbers in remembered for number in numbers]
        if len(words) != tape.documents:
            counts = f"{len(words)} entries for {tape.documents} documents"
            raise DataError(f"--data: {prefix}: {WORDS} in the .meta.json has {counts}; remove it from there")
        return sum(words[:documents])
    if loaded.tokenizer_path is None or not loaded.tokenizer_path.is_file():
        return None
    tokenizer, counted = loaded.tokenizer(), 0
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        if end > begin:
            read = tape.windows(np.array([begin]), end - begin, min(tokenizer.size, loaded.vocabulary))
            counted += len(tokenizer.decode(read[0]).split())
    return counted
