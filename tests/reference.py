"""nGPT once more, from the equations alone: an exported model's logits in float64, without anything of the package.

h = E_in[token]; per layer h = Norm(h + α (Norm(block(h)) − h)) for attention and feed-forward; logits = s_z ∘ (E_out h).
"""

import math

import torch

from tests.rope import frequencies, sharpness


def norm(x):
    """x / ‖x‖₂ over the last axis."""
    return x / torch.sqrt((x * x).sum(-1, keepdim=True))


def rope_of(config):
    """(each pair's angle from one position to the next, what multiplies the scores) as config.json says."""
    rope = {"rope_type": "default", "factor": 1.0, **config.get("rope_parameters", config)}
    known = rope["rope_type"], config["head_dim"], rope["rope_theta"], rope["factor"], rope.get("original_max_position_embeddings")
    return torch.from_numpy(frequencies(*known)), sharpness(rope["rope_type"], rope["factor"])


def rope(x, turns):
    """Each pair (i, i + k/2) of a head [T, heads, k] turned by the angle position · turns[i]."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[0], dtype=torch.float64)[:, None] * turns
    turn = torch.polar(torch.ones_like(angles), angles)[:, None, :]
    turned = torch.complex(x[..., :half].contiguous(), x[..., half:].contiguous()) * turn
    return torch.cat([turned.real, turned.imag], -1)


def move(h, target, alpha, update):
    """From h towards target by the rates alpha, along the chord (lerp) or the great circle (slerp)."""
    if update == "lerp":
        return norm(h + alpha * (target - h))
    angle = torch.acos((h * target).sum(-1, keepdim=True))
    return norm((torch.sin((1 - alpha) * angle) * h + torch.sin(alpha * angle) * target) / torch.sin(angle))


def attention(h, tensors, prefix, config):
    """W_o softmax(√k q kᵀ + causal) v with q, k = s_qk · Norm(rope(·)); each query head uses its group's keys and scale."""
    length, size = h.shape[0], config["head_dim"]
    q, k, v = (rows(h, tensors[f"{prefix}{name}_proj.weight"], size) for name in "qkv")
    scale, (turns, sharper) = tensors[f"{prefix}qk_scale"], rope_of(config)
    shared = config["num_attention_heads"] // config["num_key_value_heads"]
    out = torch.zeros_like(q)
    for head in range(config["num_attention_heads"]):
        group = head // shared
        query = scale[group] * norm(rope(q[:, [head]], turns))[:, 0]
        key = scale[group] * norm(rope(k[:, [group]], turns))[:, 0]
        scores = sharper * math.sqrt(size) * query @ key.T
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
        out[:, head] = torch.softmax(scores, -1) @ v[:, group]
    return out.reshape(length, -1) @ tensors[f"{prefix}o_proj.weight"].T


def rows(h, weight, size):
    """W h as heads [T, heads, size]."""
    return (h @ weight.T).reshape(h.shape[0], -1, size)


def feed_forward(h, tensors, prefix):
    """W_d (u ∘ silu(g)) with u = s_u ∘ W_u h and g = s_g √d ∘ W_g h."""
    u = tensors[f"{prefix}up_scale"] * (h @ tensors[f"{prefix}up_proj.weight"].T)
    g = tensors[f"{prefix}gate_scale"] * math.sqrt(h.shape[-1]) * (h @ tensors[f"{prefix}gate_proj.weight"].T)
    return (u * g / (1 + torch.exp(-g))) @ tensors[f"{prefix}down_proj.weight"].T


def reference_logits(tensors: dict[str, torch.Tensor], config: dict, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [T, V] of one sequence of tokens [T], float64, from exported tensors and their config.json."""
    tensors = {name: tensor.double() for name, tensor in tensors.items()}
    h = tensors["model.embed_tokens.weight"][tokens]
    for layer in range(config["num_hidden_layers"]):
        at, ff = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."
        h = move(h, norm(attention(h, tensors, at, config)), tensors[f"{at}alpha"], config["update"])
        h = move(h, norm(feed_forward(h, tensors, ff)), tensors[f"{ff}alpha"], config["update"])
    return tensors["logit_scale"] * (h @ tensors["lm_head.weight"].T)
