"""Riemannian gradients: remove from each spherical row's gradient its component along the row, after clipping, before the update.

The same rows as renormalisation, a dot product instead of a sum of squares; the same few floats travel for cut rows.
"""

import torch

from megatron_ngpt.sphere.rows import Rows, SphereRows


@torch.no_grad()
def project(rows: SphereRows, groups: list[int]) -> None:
    """gradient ← gradient − (gradient · row) row, for every spherical row of the groups (collective over the ranks that share rows)."""
    for group in groups:
        if whole := rows.whole.get(group):
            for weights, gradients in zip(whole.pieces, _gradients(whole), strict=True):
                gradients.sub_((gradients * weights).sum(1, keepdim=True) * weights)
        if cut := rows.cut.get(group):
            pieces = list(zip(cut.rows.pieces, _gradients(cut.rows), strict=True))
            along = cut.total(cut.joined([(g * w).sum(1) for w, g in pieces])).split([w.shape[0] for w, _ in pieces])
            for (weights, gradients), radial in zip(pieces, along, strict=True):
                gradients.sub_(radial.unsqueeze(1) * weights)


def _gradients(rows: Rows) -> list[torch.Tensor]:
    """The gradient of each piece, as a view: the piece's place in its master's buffer, in the buffer's `.grad`."""
    return [buffer.grad.view(-1)[start : start + piece.numel()].view(piece.shape) for buffer, start, piece in rows.places()]
