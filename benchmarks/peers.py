"""Models of other projects, built to the sizes of ours: what a step is measured beside.

They are not among the project's own requirements, and want more packages than a model needs:

    pip install --no-deps --target benchmarks/.peers -r benchmarks/peers.txt

What their imports ask for and a model on a CPU never calls is replaced while they are imported, and gone afterwards.
"""

import importlib
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from unittest.mock import MagicMock

import torch
import torch.nn.functional as F

FOLDER = Path(__file__).with_name(".peers")
ABSENT = ("triton", "cached_path", "bettermap", "boto3", "botocore", "google")  # imported by peers, of no use to a model here


@dataclass(frozen=True)
class Size:
    """Of a model and its batch: the feed-forward is four times as wide as the hidden state."""

    hidden: int
    layers: int
    heads: int
    context: int
    sequences: int
    vocabulary: int


@dataclass(frozen=True)
class Peer:
    """A model in fp32, its loss of tokens and targets [B, T], and the names of matrices that its project holds on the sphere, each with
    the axis along which it has unit vectors."""

    module: torch.nn.Module
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    unit_axes: dict[str, int]


class _Absent(types.ModuleType):
    """A module in which every name is there and does nothing."""

    __path__ = ()
    __version__ = "0"

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=name)


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in ABSENT else None

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return _Absent(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


@contextmanager
def _imports() -> Iterator[None]:
    """Peers are found, and what is absent is replaced. torch's own modules that look for Triton must be there before."""
    for name in ("torch._inductor.compile_fx", "torch._functorch.partitioners"):
        importlib.import_module(name)
    before, finder = set(sys.modules), _Finder()
    sys.path.append(str(FOLDER))
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        sys.path.remove(str(FOLDER))
        for name in set(sys.modules) - before:
            if isinstance(sys.modules[name], _Absent):
                del sys.modules[name]


def _mean_of_logits(model: torch.nn.Module) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    return lambda tokens, targets: F.cross_entropy(model(tokens).flatten(0, 1).float(), targets.flatten())


def transformers(size: Size) -> Peer:
    """transformers' Llama, with the loss it computes itself."""
    from transformers import LlamaConfig, LlamaForCausalLM

    module = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=size.hidden, num_hidden_layers=size.layers, num_attention_heads=size.heads, intermediate_size=4 * size.hidden,
            vocab_size=size.vocabulary, max_position_embeddings=size.context, tie_word_embeddings=False, use_cache=False,
            attn_implementation="sdpa",
        )
    )  # fmt: skip
    return Peer(module, lambda tokens, targets: module(input_ids=tokens, labels=targets, shift_labels=targets).loss, {})


def torchtitan(size: Size) -> Peer:
    """torchtitan's Llama 3."""
    with _imports():
        llama3 = importlib.import_module("torchtitan.models.llama3")
        common = importlib.import_module("torchtitan.models.common")
        attention = importlib.import_module("torchtitan.models.common.attention")
        layers = llama3._build_llama3_layers(
            n_layers=size.layers, dim=size.hidden, n_heads=size.heads, hidden_dim=4 * size.hidden, attn_backend="flex",
            rope=common.ComplexRoPE.Config(dim=size.hidden // size.heads, max_seq_len=size.context, theta=10_000.0, scaling="none"),
        )  # fmt: skip
        for layer in layers:  # flex attention has no backward on a CPU; this is what torchtitan's other models use
            layer.attention.inner_attention = attention.ScaledDotProductAttention.Config()
        module = llama3.Llama3Model.Config(
            dim=size.hidden, vocab_size=size.vocabulary, layers=layers,
            tok_embeddings=common.Embedding.Config(num_embeddings=size.vocabulary, embedding_dim=size.hidden,
                                                   param_init=llama3._EMBEDDING_INIT),
            norm=common.RMSNorm.Config(normalized_shape=size.hidden, param_init=llama3._NORM_INIT),
            lm_head=common.Linear.Config(in_features=size.hidden, out_features=size.vocabulary,
                                         param_init=llama3._output_linear_init(size.hidden)),
        ).build()  # fmt: skip
    module.init_states()
    return Peer(module, _mean_of_logits(module), {})


def olmo_core(size: Size) -> Peer:
    """OLMo-core's nGPT; it normalises queries and keys over all heads at once."""
    with _imports():
        config = importlib.import_module("olmo_core.nn.transformer").TransformerConfig.ngpt_like(
            vocab_size=size.vocabulary, d_model=size.hidden, n_layers=size.layers, n_heads=size.heads, hidden_size_multiplier=1.5
        )
        module = config.build(init_device="cpu")
    by_column = ("attention.w_out.weight", "feed_forward.w2.weight")
    axes = {name: 0 if name.endswith(by_column) else -1 for name, p in module.named_parameters() if p.dim() == 2}
    return Peer(module, _mean_of_logits(module), axes)


def ngpt_pytorch(size: Size) -> Peer:
    """nGPT-pytorch without its residual of values, and renormalised after the step, as its own option has it."""
    with _imports():
        importlib.import_module("nGPT_pytorch")
        package = sys.modules["nGPT_pytorch.nGPT"]
        for kind in vars(package).values():  # its modules define equality, and lose the hash that torch asks for
            if isinstance(kind, type) and issubclass(kind, torch.nn.Module):
                kind.__hash__ = torch.nn.Module.__hash__
        module = package.nGPT(
            num_tokens=size.vocabulary, dim=size.hidden, depth=size.layers, heads=size.heads, dim_head=size.hidden // size.heads,
            ff_expand_factor=6, manual_norm_weights=True, add_value_residual=False,
        )  # fmt: skip
        module.rotary_embed.requires_grad_(False)  # frequencies
    axes = {name: 0 if "to_out" in name else -1 for name, p in module.named_parameters() if p.dim() == 2}
    return Peer(module, _mean_of_logits(module), axes)


PEERS = {"llama": transformers, "titan": torchtitan, "olmo": olmo_core, "lucid": ngpt_pytorch}
NEEDED = {"titan": "torchtitan", "olmo": "olmo_core", "lucid": "nGPT_pytorch"}  # folders in FOLDER


def missing(kinds: list[str]) -> list[str]:
    """Those of the peers that are not installed."""
    return [kind for kind in kinds if kind in NEEDED and not (FOLDER / NEEDED[kind]).is_dir()]
