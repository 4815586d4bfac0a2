"""Records of parameters that no model has, for tests of what reads them."""

from megatron_ngpt.config.parameters import Normal, ParameterRecord

NOTHING_WRONG = {"vetoed": 0, "vetoed_in_a_row": 0, "history": {"losses": [], "norms": []}}  # in a checkpoint's state


def record(shape: tuple[int, ...], cut: int | None = None, pads: bool = False, name: str = "w", spherical: bool = False) -> ParameterRecord:
    """A parameter of `shape`, cut over tensor ranks along `cut`."""
    return ParameterRecord(name, 0, shape, "matrix" if spherical else "scale", Normal(1.0), spherical, cut, pads)
