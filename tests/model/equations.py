"""The two architectures' equations as written, in float64: scales stand on activations, where the model folds them into weights.

`w` holds a part's parameters by their names in the model, as they are stored: o_proj and down_proj transposed, scales before their
factor. Of the shape of `tests.model.small`, where query heads come in pairs.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F

SHARED = 2  # query heads that share a key/value head


def norm(x):
    return x / x.square().sum(-1, keepdim=True).sqrt()


def rms_norm(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def rope(x_BTHK):
    length, half = x_BTHK.shape[1], x_BTHK.shape[-1] // 2
    angles = torch.arange(length).double()[:, None] * 10000.0 ** (-torch.arange(half).double() / half)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]
    turned = torch.complex(x_BTHK[..., :half].contiguous(), x_BTHK[..., half:].contiguous()) * turn
    return torch.cat([turned.real, turned.imag], -1)


def softmax_attention(q, k, v, scale):
    """softmax(scale · q kᵀ + causal mask) v."""
    scores = scale * torch.einsum("bqhk,bshk->bhqs", q, k)
    scores = scores.masked_fill(torch.ones(q.shape[1], q.shape[1]).triu(1).bool(), -torch.inf)
    return torch.einsum("bhqs,bshk->bqhk", scores.softmax(-1), v)


def heads(x, w, size):
    """q, k and v of heads of `size`, keys and values repeated for the query heads that share them."""
    q, k, v = ((x @ w[f"{name}_proj.weight"].T).unflatten(-1, (-1, size)) for name in "qkv")
    return q, k.repeat_interleave(SHARED, 2), v.repeat_interleave(SHARED, 2)


def ngpt_attention(h, w):
    """W_o softmax(√k q kᵀ) v with q and k = s_qk · Norm(rope(·)), for each query head its group's row of s_qk."""
    size = w["qk_scale"].shape[1]
    scale = (w["qk_scale"] * math.sqrt(h.shape[-1])).repeat_interleave(SHARED, 0)  # stored at 1/√d, effective 1
    q, k, v = heads(h, w, size)
    q, k = scale * norm(rope(q)), scale * norm(rope(k))
    return softmax_attention(q, k, v, math.sqrt(size)).flatten(-2) @ w["o_proj.weight"]


def ngpt_feed_forward(h, w):
    """W_d (u ∘ silu(g)) with u = s_u ∘ (W_u h) and g = s_g √d ∘ (W_g h)."""
    u = w["up_scale"] * (h @ w["up_proj.weight"].T)
    g = w["gate_scale"] * math.sqrt(h.shape[-1]) * (h @ w["gate_proj.weight"].T)
    return (u * F.silu(g)) @ w["down_proj.weight"]


def lerp(h, target, alpha):
    return norm(h + alpha * (target - h))


def slerp(h, target, alpha):
    angle = torch.acos((h * target).sum(-1, keepdim=True))
    return norm((torch.sin((1 - alpha) * angle) * h + torch.sin(alpha * angle) * target) / torch.sin(angle))


def ngpt_block(h, w, move):
    """h ← move(h, Norm(attention(h)), α_A), then the same with the feed-forward."""
    for part, function in (("self_attn.", ngpt_attention), ("mlp.", ngpt_feed_forward)):
        alpha = (w[f"{part}alpha"] * 0.05 * math.sqrt(h.shape[-1])).abs()  # stored at 1/√d, effective 0.05
        h = move(h, norm(function(h, below(w, part))), alpha)
    return h


def ngpt_head(h, w):
    return w["logit_scale"] * math.sqrt(h.shape[-1]) * (h @ w["weight"].T)


def gpt_attention(x, w, size):
    q, k, v = heads(x, w, size)
    return softmax_attention(rope(q), rope(k), v, 1 / math.sqrt(size)).flatten(-2) @ w["o_proj.weight"]


def gpt_feed_forward(x, w):
    return ((x @ w["up_proj.weight"].T) * F.silu(x @ w["gate_proj.weight"].T)) @ w["down_proj.weight"]


def gpt_block(h, w, size):
    h = h + gpt_attention(rms_norm(h, w["input_layernorm.weight"]), below(w, "self_attn."), size)
    return h + gpt_feed_forward(rms_norm(h, w["post_attention_layernorm.weight"]), below(w, "mlp."))


def gpt_head(h, w):
    return rms_norm(h, w["norm.weight"]) @ w["weight"].T


def below(w, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in w.items() if name.startswith(prefix)}


def block_of(model):
    """The equation of one block of a recipe's model: (h, w) -> h."""
    if model.arch == "gpt":
        return partial(gpt_block, size=model.head_size)
    return partial(ngpt_block, move={"lerp": lerp, "slerp": slerp}[model.update])
