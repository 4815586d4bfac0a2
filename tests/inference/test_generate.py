"""`ngpt generate`: cached, batched continuations are those of the module without a cache, and of transformers."""

from copy import copy
from dataclasses import replace

import pytest
import torch

from megatron_ngpt import cli
from megatron_ngpt.inference.cache import KeyValueCache
from megatron_ngpt.inference.continuation import Continuation
from megatron_ngpt.inference.generate import Request, Speed, continue_batch, continue_prompts, stream
from megatron_ngpt.inference.load import load_model
from megatron_ngpt.inference.sampling import Sampling, choose
from tests.checkpoint.trained import likeliest, make_model, save_run

GREEDY = Sampling(temperature=0.0)
PROMPTS = ["import os", "def main(argv):\n    return", "", "x", "parser.add_argument('--verbose', action="]


def greedy(module, tokens, count):
    """The likeliest token each time, from the whole module on all tokens."""
    tokens = list(tokens)
    for _ in range(count):
        with torch.no_grad():
            tokens.append(int(likeliest(module(torch.tensor([tokens]))[0, -1])))
    return tokens


class Endless(Continuation):
    """A row of chosen tokens that goes on after the end of a document; `given` as ids."""

    def __init__(self, tokenizer, given):
        super().__init__(tokenizer, "")
        self.given = given

    def add(self, token):
        self.tokens.append(token)


class Ending(Endless):
    """One that ends after `length` tokens."""

    def __init__(self, tokenizer, given, length):
        super().__init__(tokenizer, given)
        self.length = length

    def add(self, token):
        super().add(token)
        self.ended = len(self.tokens) == self.length


def written(loaded, world, prompts, count, sampling=GREEDY, entries=None):
    """The ids that follow each list of ids."""
    rows = [Endless(world.tokenizer, given) for given in prompts]
    continue_batch(loaded, rows, count, sampling, entries or world.tokenizer.size)
    return [row.tokens for row in rows]


def texts(loaded, prompts, sampling, count=24, stops=(), batch=8):
    found = []
    continue_prompts(loaded, prompts, Request(count, sampling, list(stops), batch), lambda _, text: found.append(text))
    return found


def test_greedy_with_a_cache_far_beyond_the_context(world):
    given = [[5, 6, 7], [(7 * i) % world.tokenizer.size for i in range(50)]]
    for tokens in given:
        assert tokens + written(load_model(world.run), world, [tokens], 40)[0] == greedy(world.module, tokens, 40)


def test_the_cache_grows_with_what_is_written(world, monkeypatch):
    module, tokens = load_model(world.run).module, [5, 6, 7]
    cache = KeyValueCache(module, 2, 10**15)
    cache.extend(3)
    assert cache.capacity == 256 and cache.layers[0].keys.shape[2] == 256
    monkeypatch.setattr("megatron_ngpt.inference.cache.LEAST_CAPACITY", 1)
    monkeypatch.setattr("megatron_ngpt.inference.cache.GROWTH", 1.2)
    seen, grow = [], KeyValueCache._grow
    monkeypatch.setattr(KeyValueCache, "_grow", lambda cache: grow(cache) or seen.append(cache.capacity))
    given = [tokens, [(7 * i) % world.tokenizer.size for i in range(30)]]
    new = written(load_model(world.run), world, given, 40)
    assert [row + tokens for row, tokens in zip(given, new, strict=True)] == [greedy(world.module, row, 40) for row in given]
    assert len(seen) > 4 and seen == sorted(set(seen)) and seen[-1] == 70


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.0, 1.0, seed=3), Sampling(1.5, 0.8, seed=4)], ids=["greedy", "drawn", "top p"])
def test_each_row_of_a_batch_is_what_it_is_alone(world, sampling):
    loaded = load_model(world.run)
    given = [world.tokenizer.encode(prompt).tolist() or [2] for prompt in PROMPTS]
    assert len({len(tokens) for tokens in given}) > 3, "rows are meant to be ragged"
    assert written(loaded, world, given, 20, sampling) == [written(loaded, world, [tokens], 20, sampling)[0] for tokens in given]


def test_rows_that_end_leave_the_others_as_they_are(world, monkeypatch):
    """In any order; and what has ended is not computed any more."""
    loaded, sampling, lengths = load_model(world.run), Sampling(1.0, 1.0, seed=5), [9, 1, 14, 3, 9]
    given = [world.tokenizer.encode(prompt).tolist() or [2] for prompt in PROMPTS]
    alone = [written(loaded, world, [tokens], 20, sampling)[0] for tokens in given]
    widths, extend = [], KeyValueCache.extend
    monkeypatch.setattr(KeyValueCache, "extend", lambda cache, tokens: widths.append(len(cache.lengths)) or extend(cache, tokens))
    rows = [Ending(world.tokenizer, tokens, length) for tokens, length in zip(given, lengths, strict=True)]
    speed = continue_batch(loaded, rows, 20, sampling, world.tokenizer.size)
    assert [row.tokens for row in rows] == [tokens[:length] for tokens, length in zip(alone, lengths, strict=True)]
    assert widths == [sum(length > step for length in lengths) for step in range(14)]
    assert (speed.prompt_tokens, speed.tokens) == (sum(map(len, given)), sum(lengths) - len(lengths))


def test_batches_of_any_size_write_the_same(world):
    loaded, sampling, stops = load_model(world.run), Sampling(1.0, 1.0, seed=5), ["e", "(s"]
    alone = [texts(loaded, [prompt], sampling, 40, stops)[0] for prompt in PROMPTS]
    assert texts(loaded, PROMPTS, sampling, 40, stops, batch=2) == texts(loaded, PROMPTS, sampling, 40, stops) == alone


def test_the_end_of_the_document_ends_it(world):
    loaded, sampling = load_model(world.run), Sampling(1.0, 1.0, seed=3)
    free = written(loaded, world, [[5]], 20, sampling)[0]
    tokenizer = copy(world.tokenizer)
    tokenizer.eos_id = free[7]
    row = Continuation(tokenizer, "x")
    row.given = [5]
    continue_batch(loaded, [row], 20, sampling, tokenizer.size)
    assert row.ended and row.tokens == free[: free.index(free[7])]


def test_ids_without_a_piece_are_never_chosen(world):
    assert max(written(load_model(world.run), world, [[5]], 30, Sampling(2.0, 1.0), entries=10)[0]) < 10


@pytest.mark.parametrize("arch", ["gpt", "ngpt"])
def test_greedy_equals_transformers_on_the_export(tmp_path, arch, world):
    """A ragged batch, further than the context, against `generate` with its own cache."""
    import transformers

    from megatron_ngpt.checkpoint.export import export

    save_run(tmp_path / "run", make_model(arch, vocabulary=world.tokenizer.size, seed=11), world.tokenizer.path)
    export(tmp_path / "run", tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True, dtype=torch.float32)
    given = [world.tokenizer.encode(prompt).tolist() or [2] for prompt in PROMPTS]
    longest = max(map(len, given))
    padded = torch.tensor([[0] * (longest - len(row)) + row for row in given])
    seen = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in given])
    out = theirs.generate(
        padded, attention_mask=seen, max_new_tokens=40, min_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert longest + 40 > 3 * theirs.config.max_position_embeddings
    assert written(load_model(tmp_path / "run"), world, given, 40) == out[:, longest:].tolist()


def test_choose():
    logits = torch.log(torch.tensor([[0.1, 0.5, 0.15, 0.25]]))
    generator = torch.Generator().manual_seed(0)

    def shares(temperature, top_p):
        drawn = [int(choose(logits, Sampling(temperature, top_p), [generator])) for _ in range(1000)]
        return [drawn.count(token) / 1000 for token in range(4)]

    assert shares(1.0, 1.0) == pytest.approx([0.1, 0.5, 0.15, 0.25], abs=0.06)
    assert shares(1.0, 0.7) == pytest.approx([0, 2 / 3, 0, 1 / 3], abs=0.06)
    assert shares(1.0, 0.0) == [0, 1, 0, 0]
    squared = torch.tensor([0.1, 0.5, 0.15, 0.25]).square()
    assert shares(0.5, 1.0) == pytest.approx((squared / squared.sum()).tolist(), abs=0.06)
    assert choose(logits, GREEDY, [generator]).tolist() == choose(logits + 10, Sampling(1e-308), [generator]).tolist() == [1]


def test_rounding_does_not_reorder_what_is_drawn():
    """Many tokens of almost the same probability: noise of the size of rounding must not change what a number picks."""
    logits = torch.randn(1, 20_000, generator=torch.Generator().manual_seed(1)) * 1e-3
    noisy = logits + 1e-6 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))

    def drawn(logits):
        generator = torch.Generator().manual_seed(0)
        return [int(choose(logits, Sampling(1.0, 1.0), [generator])) for _ in range(100)]

    assert drawn(logits) == drawn(noisy)


def test_continuation_without_the_prompt(world):
    loaded = load_model(world.exported)
    given = world.tokenizer.encode("def main(").tolist()
    whole = world.tokenizer.decode(greedy(world.module, given, 12))
    assert ["def main(" + text for text in texts(loaded, ["def main("], GREEDY, 12)] == [whole]
    assert texts(loaded, [""], GREEDY, 5)[0]


def test_missing_tokenizer_is_told(world):
    gone = replace(load_model(world.run), tokenizer_path=world.directory / "gone.model")
    with pytest.raises(cli.NgptError, match=r"gone\.model: No such file"):
        stream(gone, "x", Request(1, GREEDY, []), print)


def test_speed_of_ranks_beside_each_other():
    assert str(Speed(10, 2.0, 30, 3.0).beside(Speed(20, 1.0, 50, 4.0))) == (
        "prompt: 30 tokens, 15.0 tokens/s; generated: 80 tokens, 20.0 tokens/s"
    )
    assert str(Speed(10, 2.0)) == "prompt: 10 tokens, 5.0 tokens/s"
