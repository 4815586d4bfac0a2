"""The dear values of one rank against the equations in float64; test_layouts.py compares the layouts with one rank."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from megatron_ngpt.model.decoder import run_layers
from megatron_ngpt.model.window import Window, window_of
from megatron_ngpt.monitor import entropy, weights
from megatron_ngpt.monitor.entropy import attention_entropy, queries_looked_at
from megatron_ngpt.monitor.observer import Observer
from megatron_ngpt.monitor.table import METRICS
from megatron_ngpt.parallel.documents import documents_of
from megatron_ngpt.parallel.grid import RankGrid
from megatron_ngpt.parallel.shards import shards_of
from megatron_ngpt.sphere.renormalise import Renormaliser
from tests.model import equations
from tests.model.equations import below, norm
from tests.model.small import SHAPE, blueprint, tokens, trained

T, LOOKED_AT, ROWS = SHAPE["context"], 2, 5
CPU = torch.device("cpu")


class Watched:
    """A small model whose step was watched: what was found, and copies of all that it can be computed from, in float64."""

    def __init__(self, arch: str):
        self.plan = blueprint(arch)
        module = trained(self.plan)
        shards = shards_of(module)
        base = torch.optim.AdamW(module.parameters(), lr=0.01, fused=True)
        observer = Observer(module, shards, self.plan, False, LOOKED_AT, CPU)
        batch = tokens(3, T + 1, seed=5)
        self.tokens = batch[:LOOKED_AT, :-1]
        module(batch[:, :-1], batch[:, 1:]).backward()
        observer.begin()
        self.gradients = {p.placement.record.name: p.grad.double() for p in module.parameters()}
        self.before = self.copy(module)
        observer.before(base)
        base.step()
        Renormaliser(shards, RankGrid()).renormalise()
        observer.after(base)
        self.after = self.copy(module)
        self.values = observer.finish(lambda: [module(rows[:, :-1], rows[:, 1:]) for rows in batch.split(1)]).values()

    @staticmethod
    def copy(module) -> dict[str, torch.Tensor]:
        return {p.placement.record.name: p.detach().double().clone() for p in module.parameters()}


@pytest.fixture(scope="module", params=["ngpt", "gpt"])
def watched(request):
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(weights, "ROWS", ROWS)  # so that of every matrix some rows are left out
    yield Watched(request.param)
    monkeypatch.undo()


def assert_close(found, wanted) -> None:
    assert torch.as_tensor(found, dtype=torch.float64).tolist() == pytest.approx(
        torch.as_tensor(wanted, dtype=torch.float64).tolist(), rel=1e-5, abs=2e-7
    )


def attention_of(h, w, arch: str, size: int) -> torch.Tensor:
    """The probabilities of an attention in float64 [B, H, T, T]."""
    q, k, _ = equations.heads(h, w, size)
    q, k, scale = equations.rope(q), equations.rope(k), 1 / math.sqrt(size)
    if arch == "ngpt":
        factor = (w["qk_scale"] * math.sqrt(h.shape[-1])).repeat_interleave(equations.SHARED, 0)
        q, k, scale = factor * norm(q), factor * norm(k), math.sqrt(size)
    scores = scale * torch.einsum("bqhk,bshk->bhqs", q, k)
    return scores.masked_fill(torch.ones(h.shape[1], h.shape[1]).triu(1).bool(), -torch.inf).softmax(-1)


def entropy_of(p: torch.Tensor) -> torch.Tensor:
    return -torch.special.xlogy(p, p).sum(-1)


def angle(a, b) -> torch.Tensor:
    return torch.acos((norm(a) * norm(b)).sum(-1).clamp(-1, 1)).mean()


def test_hidden_states_against_the_equations(watched):
    model, w = watched.plan.model, watched.after
    h = w["model.embed_tokens.weight"][watched.tokens]
    found = {name: [] for name in ("cosine_attention", "cosine_mlp", "angle_attention", "angle_mlp", "entropy_attention")}
    for number in range(model.layers):
        of = below(w, f"model.layers.{number}.")
        for part, name in (("self_attn.", "attention"), ("mlp.", "mlp")):
            if model.arch == "gpt":
                read = equations.rms_norm(h, of[{"attention": "input", "mlp": "post_attention"}[name] + "_layernorm.weight"])
                attend = partial(equations.gpt_attention, size=model.head_size)
                functions = {"attention": attend, "mlp": equations.gpt_feed_forward}
                out = functions[name](read, below(of, part))
                after = h + out
            else:
                read, functions = h, {"attention": equations.ngpt_attention, "mlp": equations.ngpt_feed_forward}
                out = functions[name](h, below(of, part))
                after = equations.lerp(h, norm(out), (of[f"{part}alpha"] * 0.05 * math.sqrt(model.hidden)).abs())
            if name == "attention":
                found["entropy_attention"].append(entropy_of(attention_of(read, below(of, part), model.arch, model.head_size)).mean())
            found[f"cosine_{name}"].append((norm(h) * norm(out)).sum(-1).mean())
            found[f"angle_{name}"].append(angle(h, after))
            h = after
    for name, wanted in found.items():
        assert_close(watched.values[name], wanted)
    head = {name.removeprefix("lm_head."): tensor for name, tensor in w.items()} | {"norm.weight": w.get("model.norm.weight")}
    logits = (equations.ngpt_head if model.arch == "ngpt" else equations.gpt_head)(h, head)
    assert_close(watched.values["entropy_predictions"], entropy_of(logits.softmax(-1)).mean())


def test_gradient_norms_by_kind(watched):
    squares: dict[str, float] = {}
    for name, gradient in watched.gradients.items():
        record = watched.plan.parameters[name]
        kind = f"{record.kind}s" if record.kind != "matrix" else name.removesuffix(".weight").split(".")[-1].removesuffix("_proj")
        squares[kind] = squares.get(kind, 0.0) + gradient.square().sum().item()
    found = watched.values["grad_norm_by_kind"]
    assert set(found) == set(squares) and {"q", "down", "embed_tokens"} <= set(found)
    for kind, square in squares.items():
        assert_close(found[kind], math.sqrt(square))


def test_angles_of_rows_and_the_scales(watched):
    records, values = watched.plan.parameters, watched.values
    if watched.plan.model.arch == "gpt":
        assert not {"step_angle", "alpha_mlp", "s_qk", "s_z"} & set(values)
        return
    layers = range(watched.plan.model.layers)

    def moved(name: str) -> torch.Tensor:
        every = -(-records[name].shape[0] // ROWS)
        return angle(watched.before[name][::every], watched.after[name][::every])

    def acts(name: str) -> np.ndarray:
        return (watched.after[name] * records[name].factor).numpy()

    assert_close(values["step_angle"]["lm_head"], moved("lm_head.weight"))
    for part, kind in (("self_attn", "q"), ("self_attn", "o"), ("mlp", "gate"), ("mlp", "down")):
        assert_close(values["step_angle"][kind], [moved(f"model.layers.{n}.{part}.{kind}_proj.weight") for n in layers])
    for part, name in (("self_attn", "attention"), ("mlp", "mlp")):
        alpha = [np.abs(acts(f"model.layers.{n}.{part}.alpha")) for n in layers]
        for end, of in (("", np.mean), ("_low", lambda x: np.quantile(x, 0.1)), ("_high", lambda x: np.quantile(x, 0.9))):
            assert_close(values[f"alpha_{name}{end}"], [of(x) for x in alpha])
    for name, told in (("self_attn.qk_scale", "s_qk"), ("mlp.up_scale", "s_u"), ("mlp.gate_scale", "s_g")):
        assert_close(values[told], [acts(f"model.layers.{n}.{name}").mean() for n in layers])
    assert_close(values["s_z"], acts("logit_scale").mean())
    assert_close(values["s_z_high"], np.quantile(acts("logit_scale"), 0.9))


def test_every_value_is_in_the_table(watched):
    assert set(watched.values) <= set(METRICS)
    by_layer = {name for name, value in watched.values.items() if isinstance(value, list)}
    assert by_layer == {name for name in watched.values if METRICS[name].by == "layer"}


@pytest.mark.parametrize("at_once", [1 << 22, 100])
def test_attention_within_documents_a_few_queries_at_a_time(monkeypatch, at_once):
    monkeypatch.setattr(entropy, "_SCORES", at_once)
    attention = trained(blueprint(context=40)).layers[1].self_attn
    documents = torch.cat([torch.full((2, 7), 0), torch.full((2, 20), 1), torch.full((2, 13), 2)], 1)
    documents[1, :15] = 0
    q, k = (torch.randn(2, 40, heads, 6, generator=torch.Generator().manual_seed(heads)) for heads in (4, 2))
    window = Window(q, q, documents_of(documents, CPU))
    looked_at = queries_looked_at(40)
    assert len(looked_at) == 16 and looked_at[-1] == 39 and (np.diff(looked_at) > 0).all()
    total = 0.0
    for row in range(2):
        for head in range(4):
            for place in looked_at.tolist():
                seen = (documents[row] == documents[row, place]) & (torch.arange(40) <= place)
                scores = attention.softmax_scale * k[row, seen, head // 2].double() @ q[row, place, head].double()
                total += entropy_of(scores.softmax(0)).item()
    assert_close(attention_entropy(attention, q, k, window), total)


def test_watching_compiles_nothing_and_leaves_nothing_behind(monkeypatch):
    """Blocks run as they are then: a compiled one that is watched would be compiled once more, and once more after that."""
    graphs = []

    def count(graph, _inputs, **_options):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=count))
    plan = blueprint(options={"compile": True})
    module = trained(plan)
    observer = Observer(module, shards_of(module), plan, False, 1, CPU)
    before = [(block._run, dict(vars(block.self_attn)), len(block._forward_hooks)) for block in module.layers[1:-1]]
    body = module.layers[:-1]
    run = torch.no_grad()(lambda: run_layers(body, tokens(1, T), window_of(plan, T, None, module)))
    run()
    made = len(graphs)
    observer.begin()
    values = observer.finish(run).values()
    run()
    assert made and len(graphs) == made
    assert all(0 < value < math.log(T) for value in values["entropy_attention"])
    assert [(block._run, dict(vars(block.self_attn)), len(block._forward_hooks)) for block in module.layers[1:-1]] == before
