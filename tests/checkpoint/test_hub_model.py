"""An exported nGPT in `transformers`, with the code it carries: the same function, generation, fine-tuning."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from megatron_ngpt.checkpoint.export import export
from megatron_ngpt.checkpoint.initial import load_initial
from megatron_ngpt.model.decoder import Decoder
from megatron_ngpt.parallel.shards import shards_of
from tests.checkpoint.trained import fine_tune, likeliest, make_model, save_run
from tests.reference import reference_logits
from tests.worst import worst

V = 33
TOKENS = torch.randint(V, (3, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """By its update, our model and the directory it was exported to."""
    directory = tmp_path_factory.mktemp("hub")
    made = {}
    for update in ("lerp", "slerp"):
        module = make_model(update=update)
        save_run(directory / f"run of {update}", module)
        export(directory / f"run of {update}", directory / update)
        made[update] = module, directory / update
    return made


def load(directory, **options):
    return AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True, **options)


@pytest.fixture
def model(exports):
    return load(exports["lerp"][1])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("update", ["lerp", "slerp"])
@torch.no_grad()
def test_logits_are_ours(exports, update, attention):
    module, directory = exports[update]
    model, report = load(directory, attn_implementation=attention, output_loading_info=True)
    assert not any(report.values()), report
    logits, wanted = model(TOKENS).logits, module(TOKENS)
    assert wanted.std() > 0.1
    torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=0)


@torch.no_grad()
def test_logits_are_the_papers(exports, model):
    tensors = {name: tensor.detach() for name, tensor in model.named_parameters()}
    wanted = reference_logits(tensors, model.config.to_dict(), TOKENS[0])
    torch.testing.assert_close(model(TOKENS[:1]).logits[0].double(), wanted, atol=1e-5, rtol=0)


@torch.no_grad()
def test_tokens_one_at_a_time_and_in_pieces(model):
    whole = model(TOKENS).logits
    first = model(TOKENS[:, :5], use_cache=True)
    second = model(TOKENS[:, 5:12], cache=first.cache)
    rest = [model(TOKENS[:, [i]], cache=second.cache).logits for i in range(12, 16)]
    torch.testing.assert_close(torch.cat([first.logits, second.logits, *rest], 1), whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(model(TOKENS, logits_to_keep=2).logits, whole[:, -2:], atol=1e-5, rtol=0)


@torch.no_grad()
def test_greedy_continuation_is_ours(exports, model):
    module, _ = exports["lerp"]
    tokens = TOKENS[:, :6]
    for _ in range(10):
        tokens = torch.cat([tokens, likeliest(module(tokens)[:, -1:])], 1)
    assert model.generate(TOKENS[:, :6], max_new_tokens=10, do_sample=False).equal(tokens)
    assert model.generate(TOKENS[:, :6], max_new_tokens=10, do_sample=False, use_cache=False).equal(tokens)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_batch_with_left_padding(exports, attention):
    model = load(exports["lerp"][1], attn_implementation=attention)
    prompts = [TOKENS[0, :7], TOKENS[1, :3], TOKENS[2, :1]]
    alone = [model.generate(prompt[None], max_new_tokens=8, do_sample=False)[0, len(prompt) :] for prompt in prompts]
    with torch.no_grad():
        for prompt, then in zip(prompts, alone, strict=True):
            assert likeliest(model(torch.cat([prompt, then])[None]).logits[0, len(prompt) - 1 : -1]).equal(then)
    padded = torch.stack([torch.cat([torch.zeros(7 - len(prompt), dtype=torch.long), prompt]) for prompt in prompts])
    mask = torch.stack([(torch.arange(7) >= 7 - len(prompt)).long() for prompt in prompts])
    assert model.generate(padded, attention_mask=mask, max_new_tokens=8, do_sample=False)[:, 7:].equal(torch.stack(alone))
    unmasked = model.generate(padded, attention_mask=torch.ones_like(mask), max_new_tokens=8, do_sample=False)[:, 7:]
    assert not unmasked.equal(torch.stack(alone))


def test_sampling_and_beams(model):
    def sample(seed):
        torch.manual_seed(seed)
        return model.generate(TOKENS[:, :4], max_new_tokens=8, do_sample=True, temperature=0.9, top_p=0.9)

    assert sample(1).equal(sample(1)) and not sample(1).equal(sample(2))

    def likelihood(tokens):
        with torch.no_grad():
            chosen = model(tokens).logits.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])
        return chosen[:, 3:].sum(dim=(1, 2))

    greedy = model.generate(TOKENS[:, :4], max_new_tokens=8, do_sample=False)
    beams = model.generate(TOKENS[:, :4], max_new_tokens=8, do_sample=False, num_beams=8)
    assert not beams.equal(greedy) and likelihood(beams).sum() > likelihood(greedy).sum()


def test_loss_is_ours_and_every_weight_learns(exports, model):
    module, _ = exports["lerp"]
    with torch.no_grad():
        wanted = module(TOKENS[:, :-1], TOKENS[:, 1:].contiguous())
    loss = model(TOKENS, labels=TOKENS).loss
    torch.testing.assert_close(loss, wanted, atol=1e-5, rtol=0)
    loss.backward()
    plain = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in plain.values())
    model.zero_grad()
    model.activation_checkpointing_enable()
    model.train()
    model(TOKENS, labels=TOKENS).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name], atol=1e-6, rtol=1e-4)


def test_fine_tuning_on_the_sphere(exports, model, tmp_path):
    """Trained there, saved there, and back here with the same function."""
    model.train()
    losses = fine_tune(model, TOKENS, steps=20, lr=0.01)
    assert losses[-1] < losses[0] - 0.5
    lengths = [matrix.float().norm(dim=axis) for matrix, axis in model._matrices()]
    assert len(lengths) == 2 + 2 * 7 and worst((length - 1).abs().max() for length in lengths) < 1e-6
    with torch.no_grad():
        model.model.layers[0].mlp.alpha[::3] *= -1  # as a larger step might have left them; their absolute values act
    model.save_pretrained(tmp_path / "tuned")
    tuned = Decoder(exports["lerp"][0].blueprint)
    load_initial(tmp_path / "tuned", shards_of(tuned), tuned.blueprint)
    with torch.no_grad():
        wanted = model.eval()(TOKENS).logits
        torch.testing.assert_close(tuned(TOKENS), wanted, atol=1e-4, rtol=0)
        torch.testing.assert_close(load(tmp_path / "tuned")(TOKENS).logits, wanted, atol=1e-6, rtol=0)


@torch.no_grad()
def test_bfloat16(exports, model, tmp_path):
    run = exports["lerp"][1].parent / "run of lerp"
    export(run, tmp_path / "rounded", dtype="bfloat16")
    exact, rounded = model(TOKENS).logits, load(tmp_path / "rounded")
    assert rounded.dtype == torch.bfloat16 and {p.dtype for p in rounded.parameters()} == {torch.bfloat16}
    assert 0 < (rounded(TOKENS).logits - exact).abs().max() < 0.05 * exact.std()
    assert load(exports["lerp"][1], dtype=torch.bfloat16)(TOKENS).logits.equal(rounded(TOKENS).logits)
    assert rounded.generate(TOKENS[:, :4], max_new_tokens=4, do_sample=False).shape == (3, 8)


@torch.no_grad()
def test_what_else_it_tells(exports, model):
    outputs = load(exports["lerp"][1], attn_implementation="eager")(TOKENS, output_hidden_states=True, output_attentions=True)
    assert len(outputs.hidden_states) == 3 and len(outputs.attentions) == 2
    for hidden in outputs.hidden_states:
        torch.testing.assert_close(hidden.norm(dim=-1), torch.ones(3, 16))
    for attention in outputs.attentions:
        torch.testing.assert_close(attention.sum(-1), torch.ones(3, 4, 16))
    base = AutoModel.from_pretrained(exports["lerp"][1], trust_remote_code=True)
    torch.testing.assert_close(base(TOKENS).last_hidden_state, outputs.hidden_states[-1])
    assert isinstance(model(TOKENS, return_dict=False), tuple)


@torch.no_grad()
def test_parameters_that_are_there_only_while_their_module_runs(model):
    """As `device_map` has it with layers on the disk or in host memory."""
    wanted = model(TOKENS).logits

    def put(module, *_, parameters):
        module._parameters.update(parameters)

    for module in model.modules():
        held = dict(module.named_parameters(recurse=False))
        away = {name: torch.nn.Parameter(parameter.to("meta")) for name, parameter in held.items()}
        module.register_forward_pre_hook(partial(put, parameters=held))
        module.register_forward_hook(partial(put, parameters=away))
        put(module, parameters=away)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert model(TOKENS).logits.equal(wanted)


def test_fresh_model_starts_as_in_the_paper(exports):
    config = AutoConfig.from_pretrained(exports["lerp"][1], trust_remote_code=True)
    torch.manual_seed(0)
    fresh = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    starts = {"alpha": torch.tensor(0.05), "qk_scale": 1, "up_scale": 1, "gate_scale": 1, "logit_scale": 1}
    scales = [(name.rsplit(".", 1)[-1], parameter) for name, parameter in fresh.named_parameters() if not name.endswith("weight")]
    assert len(scales) == 2 * 5 + 1 and all((parameter == starts[name]).all() for name, parameter in scales)
    assert fresh.lm_head.weight.std().item() == pytest.approx(24**-0.5, rel=0.1)


def test_it_needs_nothing_of_ours(exports):
    script = f"""
import sys
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained({str(exports["slerp"][1])!r}, trust_remote_code=True)
assert not [name for name in sys.modules if name.split(".")[0] in ("megatron_ngpt", "deepspeed")]
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=exports["slerp"][1])
