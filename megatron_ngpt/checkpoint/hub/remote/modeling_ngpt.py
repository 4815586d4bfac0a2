"""nGPT (arXiv 2410.01131) for `transformers`: a decoder in which every hidden state and every weight vector has length 1.

    h = E_in[token]
    per layer:  h = Norm(h + α_A ∘ (Norm(attention(h)) − h))
                h = Norm(h + α_M ∘ (Norm(mlp(h)) − h))
    logits = s_z ∘ (E_out h)

There are no normalisation layers with weights, no biases, and the embeddings are not tied. Learned scales (α, s_qk, s_u, s_g, s_z) are
held as the values with which they act. The hidden state h stays fp32 whatever the weights' dtype: a block moves it by a few percent
of entries of about 1/√D, which bfloat16 would blur.

Shapes: B sequences, T tokens, D = hidden_size, H query heads in G groups that share keys and values, head size K, F = intermediate_size.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_ngpt import NGPTConfig

Rotation = tuple[torch.Tensor, torch.Tensor]  # cos and sin of each position's angles, fp32 [B, 1, T, K]


def unit(x: torch.Tensor) -> torch.Tensor:
    """Norm(x) = x / ‖x‖₂ over the last axis, fp32."""
    return F.normalize(x.float(), dim=-1)


def lerp(h: torch.Tensor, target: torch.Tensor, rates: torch.Tensor) -> torch.Tensor:
    """From h towards target, both on the sphere, by `rates` [D] along the chord, and back to the sphere (paper, eq. 10)."""
    return unit(h + rates * (target - h))


def slerp(h: torch.Tensor, target: torch.Tensor, rates: torch.Tensor) -> torch.Tensor:
    """The same along the great circle (paper, eq. 6, a rate for each dimension). The angle keeps a little off 0 and π, where the
    coefficients equal their limits to rounding and their formula divides by 0."""
    cosine = (h * target).sum(-1, keepdim=True).clamp(-1 + 1e-6, 1 - 1e-6)
    angle = torch.acos(cosine)
    return unit((torch.sin((1 - rates) * angle) * h + torch.sin(rates * angle) * target) / torch.sin(angle))


MOVES = {"lerp": lerp, "slerp": slerp}


def rotation(position_ids: torch.Tensor, config: NGPTConfig) -> Rotation:
    """cos and sin of the angles position · frequency; the second half of a head repeats the first."""
    wide = torch.float32 if position_ids.device.type == "mps" else torch.float64  # fp32 loses the angles of distant positions
    angles = (position_ids.to(wide)[:, None, :, None] * frequencies(config).to(position_ids.device, wide)).repeat(1, 1, 1, 2)
    return angles.cos().float(), angles.sin().float()


def frequencies(config: NGPTConfig) -> torch.Tensor:
    """Each pair's angle from one position to the next, float64 [K/2]: θ^(−2i/K), for a longer context all divided by the factor (linear),
    or as far as they turn seldom within the original context (yarn, arXiv 2309.00071)."""
    rope, size = config.rope_parameters, config.head_dim
    angles = rope["rope_theta"] ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    if rope["rope_type"] == "default":
        return angles
    if rope["rope_type"] == "linear":
        return angles / rope["factor"]
    length, turns = rope["original_max_position_embeddings"], 2 * math.log(rope["rope_theta"]) / size
    fast, slow = (math.log(length / (2 * math.pi * times)) / turns for times in (32, 1))  # the pairs that turn so often
    low, high = max(math.floor(fast), 0), min(math.ceil(slow), size - 1)
    divided = ((torch.arange(size // 2, dtype=torch.float64) - low) / (high - low or 0.001)).clamp(0, 1)
    return angles * (1 - divided) + angles / rope["factor"] * divided


def softmax_scale(config: NGPTConfig) -> float:
    """√K, under yarn times (0.1 ln factor + 1)². Others multiply cos and sin by its root, which Norm would undo here."""
    rope = config.rope_parameters
    return math.sqrt(config.head_dim) * ((0.1 * math.log(rope["factor"]) + 1) ** 2 if rope["rope_type"] == "yarn" else 1)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Each pair (i, i + K/2) of the heads x [B, heads, T, K] turned by its position's angle; fp32."""
    first, second = x.float().chunk(2, -1)
    return x.float() * cos + torch.cat((-second, first), -1) * sin


def eager_attention(module, query, key, value, attention_mask, scaling, **_) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(scaling · q kᵀ + mask) v, [B, T, H, K], and the probabilities [B, H, T, past + T]."""
    key, value = (x.repeat_interleave(module.num_key_value_groups, 1) for x in (key, value))
    scores = scaling * query @ key.transpose(2, 3)
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return (probabilities @ value).transpose(1, 2), probabilities


class NGPTAttention(nn.Module):
    """W_o softmax(√K q kᵀ + causal mask) v with q = s_qk · Norm(rope(W_q h)) and k likewise; a query head uses its group's s_qk.

    s_qk² on q alone stands for s_qk on both.
    """

    def __init__(self, config: NGPTConfig, layer: int):
        super().__init__()
        self.config, self.layer_idx, self.is_causal = config, layer, True
        self.scaling = softmax_scale(config)
        self.head_dim, heads, groups = config.head_dim, config.num_attention_heads, config.num_key_value_heads
        self.num_key_value_groups = heads // groups  # query heads a group, as the attention functions call it
        self.q_proj = nn.Linear(config.hidden_size, heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, groups * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, groups * self.head_dim, bias=False)
        self.o_proj = nn.Linear(heads * self.head_dim, config.hidden_size, bias=False)
        self.qk_scale = nn.Parameter(torch.ones(groups, self.head_dim))
        self.alpha = nn.Parameter(torch.full((config.hidden_size,), 0.05))

    def forward(self, h, turn: Rotation, attention_mask, cache: Cache | None, **kwargs) -> tuple[torch.Tensor | None, ...]:
        """The attention's output [B, T, D], the probabilities if the kernel tells them, and the rates [D] of the step towards it: a
        module's parameters may lie elsewhere (`device_map`) except while its own `forward` runs."""
        x = h.to(self.q_proj.weight.dtype)
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj))
        scale = self.qk_scale.float().square().repeat_interleave(self.num_key_value_groups, 0)[:, None]
        q, k = (scale * unit(rotate(q, *turn))).to(x.dtype), unit(rotate(k, *turn)).to(x.dtype)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        out, probabilities = attend(self, q, k, v, attention_mask, scaling=self.scaling, **kwargs)
        return self.o_proj(out.flatten(2)), probabilities, self.alpha.float().abs()


class NGPTFeedForward(nn.Module):
    """W_d (u ∘ silu(g)) with u = s_u ∘ W_u h and g = s_g √D ∘ W_g h."""

    def __init__(self, config: NGPTConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.up_scale = nn.Parameter(torch.ones(config.intermediate_size))
        self.gate_scale = nn.Parameter(torch.ones(config.intermediate_size))
        self.alpha = nn.Parameter(torch.full((config.hidden_size,), 0.05))
        self.gate_factor = math.sqrt(config.hidden_size)

    def forward(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The feed-forward's output [B, T, D], and the rates [D] of the step towards it."""
        x = h.to(self.up_proj.weight.dtype)
        u = self.up_scale.float() * self.up_proj(x)
        g = self.gate_scale.float() * self.gate_factor * self.gate_proj(x)
        return self.down_proj((u * F.silu(g)).to(x.dtype)), self.alpha.float().abs()


class NGPTDecoderLayer(GradientCheckpointingLayer):
    """Two steps on the sphere, towards the attention's and towards the feed-forward's output."""

    def __init__(self, config: NGPTConfig, layer: int):
        super().__init__()
        self.self_attn = NGPTAttention(config, layer)
        self.mlp = NGPTFeedForward(config)
        self.move = MOVES[config.update]

    def forward(self, h: torch.Tensor, turn: Rotation, attention_mask, cache: Cache | None = None, **kwargs) -> torch.Tensor:
        """h [B, T, D], fp32 and on the sphere before and after."""
        target, _, rates = self.self_attn(h, turn, attention_mask, cache, **kwargs)
        h = self.move(h, unit(target), rates)
        target, rates = self.mlp(h)
        return self.move(h, unit(target), rates)


class NGPTPreTrainedModel(PreTrainedModel):
    """What `transformers` wants to know of the model."""

    config_class = NGPTConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("NGPTDecoderLayer",)
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": NGPTDecoderLayer, "attentions": NGPTAttention}  # noqa: RUF012

    def _init_weights(self, module: nn.Module) -> None:
        """The paper's start, for what a checkpoint does not hold. Matrices then still want `normalize_matrices`."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            init.normal_(module.weight, std=self.config.hidden_size**-0.5)
        for name, scale in module.named_parameters(recurse=False):
            if name == "alpha" or name.endswith("_scale"):
                init.constant_(scale, 0.05 if name == "alpha" else 1.0)

    @torch.no_grad()
    def _get_resized_embeddings(self, old_embeddings: nn.Embedding, *args, **kwargs) -> nn.Embedding:
        """As `transformers` makes them, with the added rows on the sphere."""
        before = len(old_embeddings.weight)
        resized = super()._get_resized_embeddings(old_embeddings, *args, **kwargs)
        resized.weight[before:] = unit(resized.weight[before:]).to(resized.weight.dtype)
        return resized


class NGPTModel(NGPTPreTrainedModel):
    """Tokens to the hidden states of the last layer."""

    def __init__(self, config: NGPTConfig):
        super().__init__(config)
        if (kind := config.rope_parameters["rope_type"]) not in ("default", "linear", "yarn"):
            raise ValueError(f"rope_type {kind}: an nGPT has default, linear or yarn")
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(NGPTDecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """h [B, T, D] fp32 from `input_ids` [B, T] (or `inputs_embeds`, on the sphere); `attention_mask` [B, past + T] is 0 at padding."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if position_ids is None:
            past = cache.get_seq_length() if cache is not None else 0
            position_ids = torch.arange(past, past + inputs_embeds.shape[1], device=inputs_embeds.device)[None]
        mask = create_causal_mask(
            config=self.config, inputs_embeds=inputs_embeds, attention_mask=attention_mask, cache=cache, position_ids=position_ids
        )
        h, turn = inputs_embeds.float(), rotation(position_ids, self.config)
        for layer in self.layers:
            h = layer(h, turn, mask, cache=cache, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=h, cache=cache)


class NGPTForCausalLM(NGPTPreTrainedModel, GenerationMixin):
    """The model with its head, for generation and fine-tuning."""

    def __init__(self, config: NGPTConfig):
        super().__init__(config)
        self.model = NGPTModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.logit_scale = nn.Parameter(torch.ones(config.vocab_size))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T, V] fp32, of the last `logits_to_keep` positions if that is not 0; with `labels` [B, T] the mean loss of
        predicting each label from the tokens before it, labels of −100 left out."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        x = outputs.last_hidden_state[:, kept].to(self.lm_head.weight.dtype)
        logits = self.lm_head(x)
        logits = self.logit_scale.to(logits.device).float() * logits
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, cache=outputs.cache, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def resize_token_embeddings(self, new_num_tokens=None, pad_to_multiple_of=None, mean_resizing=True) -> nn.Embedding:
        """For `new_num_tokens` entries, as `PreTrainedModel` says, and up to a multiple of `pad_to_multiple_of` that are never generated.

        Added rows lie on the sphere. With `mean_resizing` an added token's logit is the mean of the others', to rounding.
        """
        before, suppressed = self.config.vocab_size, set(self.generation_config.suppress_tokens or ())
        used = before
        while used - 1 in suppressed:
            used -= 1  # the entries after it have no token
        embeddings = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        tokens = used if new_num_tokens is None else new_num_tokens
        kept = [token for token in sorted(suppressed) if token < min(used, tokens)]
        self.generation_config.suppress_tokens = [*kept, *range(tokens, len(embeddings.weight))] or None
        return embeddings

    @torch.no_grad()
    def _get_resized_lm_head(self, old_lm_head: nn.Linear, new_num_tokens=None, transposed=False, mean_resizing=True) -> nn.Linear:
        """The head on the sphere, and with it the logits' scales, an entry a row. With `mean_resizing` `transformers` draws added rows
        close to a mean, which is the mean logit's here if the rows are taken with their scales; their lengths become scales."""
        before, scales, rows = len(old_lm_head.weight), self.logit_scale, old_lm_head.weight.float()
        resized = super()._get_resized_lm_head(old_lm_head, new_num_tokens, transposed, mean_resizing)
        if len(resized.weight) == before:
            return resized
        added, sizes = resized.weight[before:].float(), torch.ones(max(0, len(resized.weight) - before))
        if mean_resizing and len(added):
            s_z = scales.float().to(rows.device)
            added = added - rows.mean(0) + (s_z[:, None] * rows).mean(0) / s_z.mean()
            sizes = s_z.mean() * added.norm(dim=1)
        resized.weight[before:] = unit(added).to(rows.device, resized.weight.dtype)
        self.logit_scale = nn.Parameter(torch.cat((scales[: len(resized.weight)], sizes.to(scales))), requires_grad=scales.requires_grad)
        return resized

    @torch.no_grad()
    def normalize_matrices(self) -> None:
        """Put every weight vector back on the sphere. Training does so after each optimiser step (paper, section 2.6)."""
        for matrix, axis in self._matrices():
            matrix.copy_(F.normalize(matrix.float(), dim=axis))

    def _matrices(self) -> Iterator[tuple[torch.Tensor, int]]:
        """Each matrix with the axis along which its vectors lie: the one that has the hidden state's size."""
        yield self.model.embed_tokens.weight, 1
        yield self.lm_head.weight, 1
        for layer in self.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for proj in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.up_proj, mlp.gate_proj):
                yield proj.weight, 1
            for proj in (attention.o_proj, mlp.down_proj):
                yield proj.weight, 0
