"""A tokenizer and a dataset made from this Python's own sources, and a recipe that trains on them."""

import keyword
import tokenize
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from megatron_ngpt.checkpoint.seal import seal
from megatron_ngpt.data.indexed import token_dtype
from megatron_ngpt.data.tokenizer import Tokenizer
from megatron_ngpt.data.writer import IndexedWriter
from megatron_ngpt.training.phase import phases_of
from megatron_ngpt.training.preflight import preflight
from megatron_ngpt.training.record import state_of
from tests.records import NOTHING_WRONG

ROOT = Path(__file__).parents[2]
RECIPE = """
model: {{layers: 2, hidden: 32, heads: 4, context: 16}}
data:
  tokenizer: {corpus}/tok.model
  train: [{{prefix: {corpus}/text, split: 0.5}}]
  valid: [{{prefix: {corpus}/text, split: 0.5}}]
training: {{steps: 5, global_batch: 8, micro_batch: 2, output: {run}}}
deepspeed: {root}/ds_configs/zero1.json
"""


def train_tokenizer(prefix: Path, texts: list[str], size: int) -> Tokenizer:
    """A SentencePiece model of `size` entries."""
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(line for text in texts for line in text.splitlines()), model_prefix=str(prefix), vocab_size=size,
        minloglevel=2, hard_vocab_limit=False,
    )
    return Tokenizer(f"{prefix}.model")


def write_dataset(prefix: Path, documents: list[np.ndarray], meta: dict, vocabulary: int) -> None:
    """An MMIDIDX pair with its description."""
    with IndexedWriter(str(prefix), token_dtype(vocabulary)) as writer:
        for document in documents:
            writer.add(document, np.array([len(document)]))
        writer.finish(str(prefix), meta)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """`tok.model` with its dataset `text`, `other.model` that did not make it, and `large`, whose ids no tokenizer here has."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = [Path(module.__file__).read_text(encoding="utf-8") for module in (keyword, tokenize)]
    tokenizer = train_tokenizer(folder / "tok", texts, 200)
    train_tokenizer(folder / "other", texts[:1], 80)
    documents = [np.append(tokenizer.encode(text), tokenizer.eos_id) for text in texts]
    meta = {"tokenizer_sha256": tokenizer.sha256, "vocab_size": tokenizer.size}
    write_dataset(folder / "text", documents, meta, tokenizer.size)
    write_dataset(folder / "large", [np.full(100, 30_000)], {}, 32_000)
    return folder


@pytest.fixture(scope="session")
def good_recipe(corpus, tmp_path_factory) -> Path:
    """A recipe without a mistake."""
    folder = tmp_path_factory.mktemp("recipe")
    path = folder / "good.yaml"
    path.write_text(RECIPE.format(corpus=corpus, run=folder / "run", root=ROOT))
    return path


@pytest.fixture
def run(good_recipe, tmp_path):
    """An existing run directory with a checkpoint of step 5 of 5, and the options that name it."""
    options = [f"--training.output={tmp_path}"]
    ready = preflight(str(good_recipe), options, 1)
    checkpoint = tmp_path / "checkpoints" / "step-00000005"
    checkpoint.mkdir(parents=True)
    state = state_of(ready.recipe, 5, 200, ready.batches.fingerprint, "code", phases_of(ready.recipe), NOTHING_WRONG)
    seal(checkpoint, {"step": 5, "serial": 1, **state}, [])
    (tmp_path / "checkpoints" / "latest").write_text(checkpoint.name)
    return options
