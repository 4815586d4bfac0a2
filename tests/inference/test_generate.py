"""`ngpt generate`: greedy and drawn continuations."""

import sys
from dataclasses import replace

import pytest
import torch

from megatron_ngpt import cli
from megatron_ngpt.inference.generate import choose, continue_text, continue_tokens
from megatron_ngpt.inference.load import load_model


def greedy(module, tokens, count, context):
    """The likeliest token each time, from the whole module on the last `context` tokens."""
    tokens = list(tokens)
    for _ in range(count):
        with torch.no_grad():
            tokens.append(int(module(torch.tensor([tokens[-context:]]))[0, -1].argmax()))
    return tokens


def test_greedy_far_beyond_the_context(world):
    loaded = load_model(world.run)
    given, size = [5, 6, 7], world.tokenizer.size
    written = continue_tokens(loaded, given, 40, 0.0, 1.0, seed=0, eos=-1, entries=size)
    assert given + written == greedy(world.module, given, 40, context=16)


def test_long_prompt_is_seen_through_the_last_tokens(world):
    loaded = load_model(world.run)
    given = [(7 * i) % world.tokenizer.size for i in range(50)]
    assert continue_tokens(loaded, given, 3, 0.0, 1.0, 0, -1, world.tokenizer.size) == greedy(world.module, given, 3, 16)[50:]


def test_end_of_document_ends_it(world):
    loaded = load_model(world.run)
    free = continue_tokens(loaded, [5], 20, 1.0, 1.0, seed=3, eos=-1, entries=world.tokenizer.size)
    eos = free[7]
    assert continue_tokens(loaded, [5], 20, 1.0, 1.0, seed=3, eos=eos, entries=world.tokenizer.size) == free[: free.index(eos)]


def test_ids_without_a_piece_are_never_chosen(world):
    assert max(continue_tokens(load_model(world.run), [5], 30, 2.0, 1.0, seed=0, eos=-1, entries=10)) < 10


def test_choose():
    logits = torch.log(torch.tensor([0.1, 0.5, 0.15, 0.25]))
    generator = torch.Generator().manual_seed(0)

    def shares(temperature, top_p):
        drawn = [choose(logits, temperature, top_p, generator) for _ in range(1000)]
        return [drawn.count(token) / 1000 for token in range(4)]

    assert shares(1.0, 1.0) == pytest.approx([0.1, 0.5, 0.15, 0.25], abs=0.06)
    assert shares(1.0, 0.7) == pytest.approx([0, 2 / 3, 0, 1 / 3], abs=0.06)
    assert shares(1.0, 0.0) == [0, 1, 0, 0]
    squared = torch.tensor([0.1, 0.5, 0.15, 0.25]).square()
    assert shares(0.5, 1.0) == pytest.approx((squared / squared.sum()).tolist(), abs=0.06)
    assert choose(logits, 0.0, 1.0, generator) == 1


def test_continuation_without_the_prompt(world):
    loaded = load_model(world.exported)
    text = continue_text(loaded, "def main(", 12, 0.0, 1.0, 0)
    given = world.tokenizer.encode("def main(").tolist()
    whole = world.tokenizer.decode(greedy(world.module, given, 12, 16))
    assert whole == "def main(" + text
    assert continue_text(loaded, "", 5, 0.0, 1.0, 0)


def test_missing_tokenizer_is_told(world):
    gone = replace(load_model(world.run), tokenizer_path=world.directory / "gone.model")
    with pytest.raises(cli.NgptError, match=r"gone\.model: No such file"):
        continue_text(gone, "x", 1, 0.0, 1.0, 0)


def test_command(world, monkeypatch, capsys):
    def ngpt(*options):
        argv = ["ngpt", "generate", str(world.run), "--prompt", "import os", "--max_tokens", "9", *options]
        monkeypatch.setattr(sys, "argv", argv)
        assert cli.main() == 0
        return capsys.readouterr().out

    assert ngpt("--seed", "1") == ngpt("--seed", "1") != ngpt("--seed", "2")
    loaded = load_model(world.run)
    assert ngpt("--temperature", "0") == continue_text(loaded, "import os", 9, 0.0, 0.95, 0) + "\n"
    monkeypatch.setattr(sys, "argv", ["ngpt", "generate", str(world.run), "--prompt", "x", "--temperature", "-1"])
    assert cli.main() == 2
    assert capsys.readouterr().err.startswith("ngpt generate: Invalid value for '--temperature'")
