"""Which layers each pipeline stage has: balanced by their matrix products."""

from megatron_ngpt.config.costs.work import products_per_token
from megatron_ngpt.config.recipe import Model


def stages_of(model: Model, vocabulary: int, stages: int) -> list[int]:
    """Where each stage starts in [embedding, blocks, head], and the end of the last."""
    _, block, *_, head = products_per_token(model, vocabulary)
    return stage_bounds(model.layers, stages, head / block)


def stage_bounds(layers: int, stages: int, head_cost: float) -> list[int]:
    """Where each stage starts in [embedding, blocks, head], and the end of the last: at least one block a stage, the dearest stage as
    cheap as can be. `head_cost` is the head's cost in blocks; looking up embeddings costs nothing."""
    if stages == 1:
        return [0, layers + 2]
    most = layers - (stages - 1)  # blocks the last stage could have

    def dearest(last: int) -> float:
        return max(-(-(layers - last) // (stages - 1)), last + head_cost)

    last = min(range(most, 0, -1), key=dearest)
    others, extra = divmod(layers - last, stages - 1)
    sizes = [others + (stage < extra) for stage in range(stages - 1)]
    bounds = [0]
    for size in sizes:
        bounds.append(max(1, bounds[-1]) + size)
    return [*bounds, layers + 2]
