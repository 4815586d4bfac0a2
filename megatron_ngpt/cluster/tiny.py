"""The loss of a known tiny model: what every device of every host must agree on before they train one model together."""

import torch

from megatron_ngpt.config.recipe import Model
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.decoder import Decoder
from megatron_ngpt.model.initial import initialise
from megatron_ngpt.parallel.device import on_gpus
from megatron_ngpt.parallel.grid import RankGrid
from megatron_ngpt.parallel.shards import shards_of
from megatron_ngpt.sphere.renormalise import Renormaliser

SHAPE = {"layers": 2, "hidden": 64, "heads": 4, "context": 64}
VOCABULARY = 256


def losses() -> list[float]:
    """Of an nGPT with fixed weights on fixed tokens, in fp32, in nats a token: on each GPU of this host, or on its CPU."""
    if not on_gpus():
        return [loss(torch.device("cpu"))]
    return [loss(torch.device("cuda", number)) for number in range(torch.cuda.device_count())]


@torch.no_grad()
def loss(device: torch.device) -> float:
    """The same on one device."""
    module = Decoder(Blueprint(Model(arch="ngpt", **SHAPE), VOCABULARY))
    shards = shards_of(module)
    initialise(shards, 1)
    Renormaliser(shards, RankGrid()).renormalise()
    tokens_BT = torch.arange(2 * (SHAPE["context"] + 1)).mul_(37).remainder_(VOCABULARY).view(2, -1).to(device)
    return float(module.to(device)(tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous()))
