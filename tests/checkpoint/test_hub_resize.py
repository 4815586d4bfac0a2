"""An exported nGPT with another vocabulary: every tensor that has an entry a token follows, on the sphere, and everything still works."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from megatron_ngpt.checkpoint.export import export
from tests.checkpoint.trained import fine_tune, make_model, save_run

V = 33
TOKENS = torch.randint(V - 6, (3, 12), generator=torch.Generator().manual_seed(0))
SIZES = [(V, None, V), (V + 4, None, V + 4), (V - 3, None, V - 3), (V + 1, 8, 40), (V - 4, 8, 32), (None, 8, 40), (V, 8, 40)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    made = tmp_path_factory.mktemp("resize")
    save_run(made / "run", make_model())
    export(made / "run", made / "out")
    return made / "out"


def load(directory, **options):
    return AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mean_resizing", [True, False])
@pytest.mark.parametrize(("size", "multiple", "wanted"), SIZES)
@torch.no_grad()
def test_resized(directory, tmp_path, size, multiple, wanted, mean_resizing, dtype):
    model = load(directory, dtype=dtype)
    before, old = model(TOKENS).logits, model.logit_scale.clone()
    embeddings = model.resize_token_embeddings(size, pad_to_multiple_of=multiple, mean_resizing=mean_resizing)
    assert embeddings is model.get_input_embeddings() is model.model.embed_tokens and embeddings.num_embeddings == wanted
    assert model.config.vocab_size == model.vocab_size == wanted and model.lm_head.out_features == wanted
    assert model.get_output_embeddings() is model.lm_head
    shapes = embeddings.weight.shape, model.lm_head.weight.shape, model.logit_scale.shape
    assert shapes == ((wanted, 24), (wanted, 24), (wanted,))
    shared = min(V, wanted)
    assert model.logit_scale[:shared].equal(old[:shared]) and {p.dtype for p in model.parameters()} == {dtype}
    assert all(parameter.requires_grad for parameter in model.parameters())
    for matrix in (embeddings.weight, model.lm_head.weight):
        rows = matrix[V:].float().norm(dim=1)
        torch.testing.assert_close(rows, torch.ones_like(rows), atol=1e-6 if dtype == torch.float32 else 5e-3, rtol=0)
    logits = model(TOKENS).logits
    torch.testing.assert_close(logits[..., :shared], before[..., :shared], atol=1e-5, rtol=0)
    if mean_resizing and wanted > V:  # what is added is as likely as the tokens there were, on average
        mean = before.mean(-1, keepdim=True).expand_as(logits[..., V:])
        torch.testing.assert_close(logits[..., V:], mean, atol=1e-3 if dtype == torch.float32 else 0.1, rtol=0)
    tokens = wanted if size is None and multiple is None else size or V
    said = model.generate(TOKENS[:, :4], max_new_tokens=8, do_sample=True, temperature=50.0)
    assert said.max() < tokens and said.shape == (3, 12)
    model.save_pretrained(tmp_path / "saved")
    again, report = load(tmp_path / "saved", output_loading_info=True)
    assert not any(report.values()), report
    assert again.config.vocab_size == wanted and again(TOKENS).logits.equal(logits)
    assert again.generation_config.suppress_tokens == (list(range(tokens, wanted)) or None)


def test_resized_model_learns(directory):
    model = load(directory)
    model.resize_token_embeddings(V + 2)
    tokens = torch.cat([TOKENS[:, :4], torch.full((3, 2), V + 1)], 1)
    assert fine_tune(model, tokens, steps=80, lr=0.03)[-1] < 1
    assert model.generate(tokens[:, :4], max_new_tokens=2, do_sample=False).equal(tokens)


def test_frozen_stays_frozen_and_suppressed_stays_suppressed(directory):
    model = load(directory)
    model.requires_grad_(False)
    model.generation_config.suppress_tokens = [4, V - 2, V - 1]
    model.resize_token_embeddings(V + 3)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.generation_config.suppress_tokens == [4]
    model.resize_token_embeddings(V + 3, pad_to_multiple_of=20)
    model.resize_token_embeddings(pad_to_multiple_of=50)
    assert model.generation_config.suppress_tokens == [4, *range(V + 3, 50)]
    model.resize_token_embeddings(3)
    assert model.generation_config.suppress_tokens is None


@torch.no_grad()
def test_base_model_alone(directory):
    base = AutoModel.from_pretrained(directory, trust_remote_code=True)
    base.resize_token_embeddings(V + 5)
    assert base.embed_tokens.weight.shape == (V + 5, 24)
    torch.testing.assert_close(base.embed_tokens.weight.norm(dim=1), torch.ones(V + 5))
    assert base(TOKENS + 8).last_hidden_state.isfinite().all()


def test_embeddings_can_be_exchanged(directory):
    model = load(directory)
    model.tie_weights()
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    table, head = torch.nn.Embedding(V, 24), torch.nn.Linear(24, V, bias=False)
    model.set_input_embeddings(table)
    model.set_output_embeddings(head)
    assert model.model.embed_tokens is table and model.lm_head is head
    with torch.no_grad():
        given = model(inputs_embeds=table(TOKENS)).logits
        assert given.equal(model(TOKENS).logits)


@torch.no_grad()
def test_empty_starts(directory):
    wanted = load(directory)(TOKENS).logits
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory, trust_remote_code=True), trust_remote_code=True)
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}
    empty.to_empty(device="cpu")
    empty.load_state_dict(load(directory).state_dict())
    assert empty(TOKENS).logits.equal(wanted)
    empty.resize_token_embeddings(V + 1)
    assert empty(TOKENS).logits.shape[-1] == V + 1


@torch.no_grad()
def test_another_vocabulary_than_the_files(directory):
    """What does not fit is made anew, and said, the scales like the matrices."""
    model, report = load(directory, vocab_size=V + 2, ignore_mismatched_sizes=True, output_loading_info=True)
    names = {key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"]}
    assert names == {"model.embed_tokens.weight", "lm_head.weight", "logit_scale"}
    assert model.logit_scale.equal(torch.ones(V + 2)) and model(TOKENS).logits.shape[-1] == V + 2


def test_configs_of_a_resized_model_say_so(directory, tmp_path):
    model = load(directory)
    model.resize_token_embeddings(V + 1, pad_to_multiple_of=8)
    model.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["vocab_size"] == 40
