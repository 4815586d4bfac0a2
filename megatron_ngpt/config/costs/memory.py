"""The memory that a rank needs, by component."""

from dataclasses import dataclass

from megatron_ngpt.config.costs.share import Share
from megatron_ngpt.config.costs.traffic import copies
from megatron_ngpt.config.deepspeed_json import DeepSpeedChoice
from megatron_ngpt.config.grid import given_sizes, grid_of
from megatron_ngpt.config.recipe import Recipe

LOGITS_AT_ONCE = 1 << 26  # 128 MiB in bf16, and at a vocabulary of 32,000 the 2,048 tokens that fill a product
_FP32 = 4
_BUCKET = 5 * 10**8  # numbers, where DeepSpeed's JSON leaves it out


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank in a training step, and the part of them that lies in host memory under offload.

    `activations` is what layers keep for backward; `logits` are those that are there at once, and the head's gradients, which are made
    with them; `buffers` are those in which DeepSpeed reduces gradients.
    """

    weights: int
    gradients: int
    optimiser: int
    activations: int
    logits: int
    buffers: int
    offloaded: int

    @property
    def device(self) -> int:
        """Bytes on the device."""
        return self.weights + self.gradients + self.optimiser + self.activations + self.logits + self.buffers - self.offloaded


def memory(recipe: Recipe, choice: DeepSpeedChoice, vocabulary: int, world: int) -> Memory:
    """Of the rank that needs most of `world`."""
    stages = grid_of(world, given_sizes(recipe.parallel)).size("pipeline")
    return max((memory_of(Share(recipe, choice, vocabulary, world, stage)) for stage in range(stages)), key=lambda need: need.device)


def memory_of(share: Share) -> Memory:
    """Of the ranks of a stage.

    DeepSpeed keeps, beside the weights that a forward pass uses, fp32 masters and two Adam moments (12 bytes a parameter,
    divided over the replicas by ZeRO 1 and up; ZeRO-0 in fp32 has no separate masters), and gradients accumulated in fp32
    (divided by ZeRO 2 and up). ZeRO-3 divides the weights too. Padding, the parameters that ZeRO-3 has gathered and what lies about for
    the length of one operation are left out.
    """
    numbers, replicas, stage = share.numbers, share.replicas, share.choice.zero_stage
    weights = numbers * share.width // (replicas if stage == 3 else 1)
    gradients = numbers * _FP32 // (replicas if stage >= 2 else 1)
    optimiser = numbers * (12 if stage else 8) // (replicas if stage else 1)
    offloaded = optimiser + (gradients if stage >= 2 else 0) if share.choice.offload else 0
    logits = share.has_head * _logits(share)
    activations = _activations(share)
    return Memory(weights, gradients, optimiser, activations, logits, _buffers(share, activations + logits), offloaded)


def _buffers(share: Share, left_by_activations: int) -> int:
    """DeepSpeed's bucket for the gradients that are being reduced, two if it overlaps (ZeRO 1 and 2); ZeRO-1 in bf16 has none. ZeRO-0
    makes a flat copy of all gradients (of as many as its own bucket takes) after backward, in the room that the activations left."""
    zero, stage = share.choice.raw.get("zero_optimization", {}), share.choice.zero_stage
    if stage == 0:
        return max(0, _FP32 * min(share.numbers, _BUCKET) - left_by_activations)
    if stage == 1 and share.choice.bf16:
        return 0
    overlaps = stage < 3 and zero.get("overlap_comm", False)
    return int(zero.get("reduce_bucket_size", _BUCKET)) * share.width * (2 if overlaps else 1)


def _activations(share: Share) -> int:
    """Bytes that the stage's layers keep from forward to backward. A stage holds as many micro-batches as there are stages from it to the
    last one. Full recomputation keeps each block's input alone, in host memory if asked, and one block whole while it runs backward.
    Where the feed-forward runs in chunks, one of them is there whole."""
    training, block = share.recipe.training, block_bytes(share)
    chunk = _hidden_bytes(share) // training.ffn_chunks if training.ffn_chunks > 1 else 0
    if training.recompute == "full":
        model = share.recipe.model
        kept = share.blocks * model.hidden * share.residual_width // (share.tensor if share.sequence else 1)
        blocks, extra = 0 if training.offload_activations else kept, block + chunk
    else:
        blocks, extra = share.blocks * block, chunk
    in_flight = min(share.stages - share.stage, share.micro_batches)
    return share.tokens * (in_flight * (blocks + share.has_head * _head_bytes(share) + share.has_embedding * 8) + extra)


def block_bytes(share: Share) -> int:
    """What a block keeps for backward, bytes a token: what autograd saves of `model/blocks.py`, without compilation.

    * Inputs of the four column-parallel products and of their regions, in the weights' dtype, whole on every tensor rank.
    * Of the residual stream, split along the sequence: for nGPT, for each of its two steps, what the part put out, in the weights' dtype,
      with two inverse norms (slerp: and a cosine), and h as the products read it where that is not their input itself; for the baseline
      in fp32 each norm's input and result.
    * Queries, keys, values and the attention's result in the weights' dtype, split over the tensor ranks; the softmax's sum a head. For
      nGPT queries as they were before too, and the inverse norms of queries and keys. Where heads are exchanged between context ranks,
      the result on both sides of that, and for nGPT the keys.
    * u, g and u silu(g); none of them where the feed-forward runs in chunks.

    Selective recomputation leaves out u silu(g), and of the baseline the norms' results.
    """
    model, width = share.recipe.model, share.width
    queries, keys = model.heads * model.head_size, model.groups * model.head_size
    exchanged = share.context > 1 and share.recipe.parallel.context_kind == "ulysses"
    sent = keys * copies(model.groups // share.tensor, share.context) if exchanged else keys
    again, norms = (queries + keys * exchanged, model.heads + model.groups) if model.arch == "ngpt" else (0, 0)
    heads = width * (2 * queries + 2 * sent + queries * exchanged + again) + _FP32 * (model.heads + norms)
    stream = _stream_bytes(share) // (share.tensor if share.sequence else 1)
    return 2 * width * model.hidden + stream + heads // share.tensor + _kept_hidden(share)


def _stream_bytes(share: Share) -> int:
    """Of the residual stream, beside the products' inputs, before it is split."""
    model, width, read = share.recipe.model, share.width, share.residual_width
    if model.arch == "gpt":
        return 2 * model.hidden * read if share.recipe.training.recompute == "selective" else _FP32 * (4 * model.hidden + 2)
    return 2 * width * model.hidden * (2 if share.sequence else 1) + 2 * _FP32 * (3 if model.update == "slerp" else 2)


def _kept_hidden(share: Share) -> int:
    return 0 if share.recipe.training.ffn_chunks > 1 else _hidden_bytes(share)


def _hidden_bytes(share: Share) -> int:
    """What the feed-forward keeps of its hidden vectors, bytes a token."""
    kept = 2 if share.recipe.training.recompute == "selective" else 3
    return kept * share.width * share.recipe.model.ffn_size // share.tensor


def _logits(share: Share) -> int:
    """A chunk of logits, over which their gradient is written; the folded weight; and the gradient of that, of many chunks in fp32."""
    entries = -(-share.vocabulary // share.tensor)
    tokens = min(share.tokens, max(1, LOGITS_AT_ONCE // entries))
    matrix = entries * share.recipe.model.hidden
    folded = matrix * share.width if share.recipe.model.arch == "ngpt" else 0
    return tokens * entries * share.width + folded + matrix * (share.width if tokens == share.tokens else _FP32)


def _head_bytes(share: Share) -> int:
    """What the head and the loss keep, bytes a token: the gradient of the head's input, and for the baseline what its norm keeps."""
    hidden = share.recipe.model.hidden
    norm = 0 if share.recipe.model.arch == "ngpt" else _FP32 * (2 * hidden + 1) // (share.tensor if share.sequence else 1)
    return share.width * hidden + norm
