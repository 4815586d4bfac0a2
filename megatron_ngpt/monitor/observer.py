"""The dear values, at the steps of `monitor.every`: gradients and weights around the update, hidden states in a forward pass after it.

Every rank adds its share of all of them to one vector, which is reduced once over the world and read once; nothing is gathered, and no
rank needs to know which layers the others have.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn

from megatron_ngpt.config.parameters import ParameterRecord
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.monitor.probe import OF_BLOCKS, Probe, probe_shapes
from megatron_ngpt.monitor.sums import Sums
from megatron_ngpt.monitor.table import Value
from megatron_ngpt.monitor.weights import WeightWatch, matrix_kind, weight_shapes
from megatron_ngpt.parallel.collectives import reduce_vector
from megatron_ngpt.parallel.shards import Shard

QUANTILES = {"low": 0.1, "high": 0.9}
SCALES = {"qk_scale": "s_qk", "up_scale": "s_u", "gate_scale": "s_g"}  # of blocks, told by their means


class Observer:
    """Watches one step at a time; between them it costs nothing.

    Args:
        shards: what this rank holds of every parameter.
        partitioned: replicas hold different numbers (ZeRO), not the same.
        sequences: how many the probe looks at.
    """

    def __init__(
        self, module: nn.Module, shards: dict[str, Shard], blueprint: Blueprint, partitioned: bool, sequences: int, device: torch.device
    ):
        self._weights = WeightWatch(shards, blueprint.grid, partitioned)
        self._probe = Probe(module, blueprint, sequences)
        self._records, self._grid, self._device = blueprint.parameters, blueprint.grid, device
        self._shapes = weight_shapes(self._records), probe_shapes(blueprint)
        self._sums: Sums | None = None

    def begin(self) -> None:
        """The step to come is watched."""
        self._sums = Sums(self._shapes[0], self._weights.device or self._device)

    def leave(self) -> None:
        """The step that was watched is not told of."""
        self._sums = None

    def before(self, base: torch.optim.Optimizer) -> None:
        """The base optimiser is about to step, with gradients that nothing has changed yet."""
        if self._sums is not None:
            self._weights.before(base, self._sums)

    def after(self, base: torch.optim.Optimizer) -> None:
        """It has stepped, and weights are on the sphere."""
        if self._sums is not None:
            self._weights.after(base, self._sums)

    @torch.no_grad()
    def finish(self, forward: Callable[[], None]) -> "Observed":
        """What the step has shown, with what a `forward` pass over the sequences shows (collective; the host waits for the device)."""
        sums, probed = self._sums, Sums(self._shapes[1], self._device)
        self._sums = None
        self._weights.scales(sums)
        with self._probe.watching(probed):
            forward()
        whole = torch.cat([sums.vector.to(self._device), probed.vector])
        if self._grid.world.size > 1:
            whole = reduce_vector(whole, self._grid.world)
        return Observed(whole.cpu().numpy(), {**self._shapes[0], **self._shapes[1]}, self._records)


class Observed:
    """The numbers of one watched step."""

    def __init__(self, whole: np.ndarray, shapes: Mapping[str, tuple[int, ...]], records: dict[str, ParameterRecord]):
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
        parts = np.split(whole.astype(np.float64), ends[:-1])
        self._found = {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        self._records = records

    def scales(self) -> dict[str, np.ndarray]:
        """The learned scales as they act, by parameter name; float64, without padding."""
        found = {}
        for name, record in self._records.items():
            if record.kind == "scale":
                acts = self._found[name] * record.factor
                found[name] = np.abs(acts) if record.absolute else acts
        return found

    def values(self) -> dict[str, Value]:
        """By the names of the table of metrics; those by layer are lists, and what a GPT does not have is not there."""
        found: dict[str, Value] = {name: self._found[name].tolist() for name in OF_BLOCKS}
        found["entropy_predictions"] = self._found["entropy_predictions"].item()
        gradients = {name.removeprefix("gradient "): x.item() for name, x in self._found.items() if name.startswith("gradient ")}
        found["grad_norm_by_kind"] = {kind: square**0.5 for kind, square in gradients.items()}
        return found | self._angles() | self._of_scales()

    def _angles(self) -> dict[str, Value]:
        """Mean angles between rows before the update and after it: of each kind of matrix by layer, of the two ends alone."""
        by_kind: dict[str, list[float]] = {}
        for name, record in self._records.items():
            if record.spherical:
                chords = np.sqrt(self._found[f"moved {name}"])
                by_kind.setdefault(matrix_kind(record), []).append(float((2 * np.arcsin(np.minimum(chords / 2, 1))).mean()))
        ends = {matrix_kind(record) for record in self._records.values() if ".layers." not in record.name}
        return {"step_angle": {kind: of[0] if kind in ends else of for kind, of in by_kind.items()}} if by_kind else {}

    def _of_scales(self) -> dict[str, Value]:
        found: dict[str, list[float]] = {}
        for name, acts in self.scales().items():
            *path, last = name.split(".")
            if last == "alpha":
                part = {"self_attn": "attention", "mlp": "mlp"}[path[-1]]
                found.setdefault(f"alpha_{part}", []).append(acts.mean())
                for end, share in QUANTILES.items():
                    found.setdefault(f"alpha_{part}_{end}", []).append(np.quantile(acts, share))
            elif last in SCALES:
                found.setdefault(SCALES[last], []).append(acts.mean())
        told: dict[str, Value] = {name: [float(x) for x in by_layer] for name, by_layer in found.items()}
        if (s_z := self.scales().get("logit_scale")) is not None:
            told |= {"s_z": float(s_z.mean())} | {f"s_z_{end}": float(np.quantile(s_z, share)) for end, share in QUANTILES.items()}
        return told
