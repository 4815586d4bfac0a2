"""nGPT's learned scales, as they act."""

from dataclasses import dataclass

import numpy as np

from megatron_ngpt.analysis.weights import Weights


@dataclass(frozen=True)
class Scales:
    """All effective, float64.

    Attributes:
        alpha: eigen learning rates, by `attention` and `mlp`: [layers, D].
        qk: s_qk, [layers, key/value heads, K].
        units: s_u and s_g of the feed-forward, by `up` and `gate`: [layers, F].
        logit: s_z, [V].
    """

    alpha: dict[str, np.ndarray]
    qk: np.ndarray
    units: dict[str, np.ndarray]
    logit: np.ndarray


def scales(weights: Weights) -> Scales | None:
    """None for the baseline, which has none."""
    if weights.model.arch != "ngpt":
        return None

    def of_layers(name: str) -> np.ndarray:
        names = [f"model.layers.{layer}.{name}" for layer in range(weights.model.layers)]
        return np.stack([weights.effective(name).double().numpy() for name in names])

    return Scales(
        {"attention": of_layers("self_attn.alpha"), "mlp": of_layers("mlp.alpha")},
        of_layers("self_attn.qk_scale"),
        {"up": of_layers("mlp.up_scale"), "gate": of_layers("mlp.gate_scale")},
        weights.effective("logit_scale").double().numpy(),
    )
