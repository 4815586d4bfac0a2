"""The input embedding over tensor ranks: split over the vocabulary, or along its rows' own axis.

The vocabulary is padded so that it divides over the ranks; the padding is looked up by nobody, has no logits and is no part of the model.
Shapes: B batch, T sequence, D hidden.
"""

import torch
import torch.nn.functional as F
from torch import nn

from megatron_ngpt.config.parameters import ParameterRecord
from megatron_ngpt.parallel.grid import Axis
from megatron_ngpt.parallel.placement import parameter
from megatron_ngpt.parallel.regions import gather_hidden, hidden_to_sequence, reduce_from_ranks, reduce_to_sequence


class VocabularyParallelEmbedding(nn.Module):
    """Each tensor rank holds some rows; an all-reduce (or, split along the sequence, a reduce-scatter) joins what they found."""

    def __init__(self, record: ParameterRecord, axis: Axis, sequence: bool):
        super().__init__()
        self.axis, self.sequence = axis, sequence
        self.weight = parameter(record, axis)

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        if self.axis.size == 1:
            return F.embedding(tokens_BT, self.weight)
        rows = self.weight.placement.local[0]
        local = tokens_BT - self.weight.placement.offset[0]
        elsewhere = (local < 0) | (local >= rows)
        found = F.embedding(local.masked_fill(elsewhere, 0), self.weight).masked_fill(elsewhere.unsqueeze(-1), 0)
        return (reduce_to_sequence if self.sequence else reduce_from_ranks)(found, self.axis)


class HiddenParallelEmbedding(nn.Module):
    """Each tensor rank holds a slice of every row: an all-gather of slices (or an all-to-all to slices of the sequence), no masking, an
    even load. The rows' norms are then sums over tensor ranks."""

    def __init__(self, record: ParameterRecord, axis: Axis, sequence: bool):
        super().__init__()
        self.axis, self.sequence = axis, sequence
        self.weight = parameter(record, axis)

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        slices = F.embedding(tokens_BT, self.weight)
        return (hidden_to_sequence if self.sequence else gather_hidden)(slices, self.axis)
