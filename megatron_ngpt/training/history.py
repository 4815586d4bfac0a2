"""What the last updates learnt, on the device, and the verdict on the next one: robust, so that what it is to find does not move it."""

import torch

STEPS = 128  # applied updates that are remembered; before there are so many, only what is not finite is vetoed
NORMAL = 1.4826  # standard deviations of a normal distribution in its median absolute deviation
LEAST = 0.01  # of the median: no deviation is smaller, or a loss that stands still would veto its own rounding

NOTHING: dict[str, list[float]] = {"losses": [], "norms": []}  # what a new one tells


class History:
    """Losses and gradient norms of the last `STEPS` updates that were applied, fp32 [2, STEPS], oldest first, NaN before there were any.

    Every rank has the same numbers, since losses and norms reach all ranks through one reduction. Nothing here waits for the device.

    Args:
        deviations: a loss or norm so many robust deviations above its median is vetoed; 0: only one that is not finite.
    """

    def __init__(self, deviations: float, device: torch.device):
        self.deviations = deviations
        self.values = torch.full((2, STEPS), torch.nan, device=device)

    def limits(self) -> torch.Tensor:
        """What loss and norm may be at most: median + deviations · max(1.4826 · MAD, 1% of the median), fp32 [2]; NaN before the history
        is full."""
        median = self.values.median(dim=1, keepdim=True).values  # NaN where one of the values is
        spread = NORMAL * (self.values - median).abs().median(dim=1).values
        return median[:, 0] + self.deviations * torch.maximum(spread, LEAST * median[:, 0])

    def judge(self, loss: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        """The verdict that vetoes (a true scalar), on fp32 scalars: one of them is infinite or NaN, or too far above its history."""
        found = torch.stack([loss, norm])
        vetoed = ~torch.isfinite(found).all()
        return vetoed | (found > self.limits()).any() if self.deviations else vetoed

    def add(self, loss: torch.Tensor, norm: torch.Tensor, vetoed: torch.Tensor) -> None:
        """Remember an update, unless it was vetoed."""
        longer = torch.cat([self.values[:, 1:], torch.stack([loss, norm])[:, None]], dim=1)
        self.values = torch.where(vetoed, self.values, longer)

    def state(self) -> dict[str, list[float]]:
        """For a checkpoint: the values there are, each exact in fp32; waits for the device."""
        losses, norms = self.values[:, ~self.values.isnan().any(0)].tolist()
        return {"losses": losses, "norms": norms}

    def load(self, state: dict[str, list[float]]) -> None:
        """Take up what `state` told."""
        held = torch.tensor([state["losses"], state["norms"]], dtype=torch.float32)[:, -STEPS:]
        empty = torch.full((2, STEPS - held.shape[1]), torch.nan)
        self.values = torch.cat([empty, held], dim=1).to(self.values.device)
