"""The shape of an nGPT (arXiv 2410.01131), for `transformers`."""

from transformers import PreTrainedConfig


class NGPTConfig(PreTrainedConfig):
    """What `config.json` says of an nGPT.

    `update` is how a block moves the hidden state on the sphere: `lerp` along the chord, `slerp` along the great circle.
    `rope_parameters` are as Llama's, of `rope_type` default, linear or yarn.
    `document_boundaries` says whether training kept the documents of a sequence apart (`mask`) or not (`ignore`).
    """

    model_type = "ngpt"

    vocab_size: int = 32000
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_key_value_heads: int = 16
    head_dim: int = 64
    intermediate_size: int = 4096
    max_position_embeddings: int = 1024
    rope_parameters: dict | None = None
    update: str = "lerp"
    hidden_act: str = "silu"
    use_cache: bool = True
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    document_boundaries: str = "ignore"
