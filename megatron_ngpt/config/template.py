"""`ngpt init`: a recipe to begin with, every key with its default and its meaning."""

from megatron_ngpt.config.reference import Key, sections

HEAD = """\
# A recipe: one run in one file. What differs from a default is enough; every other line may go.
#   ngpt check FILE --ranks N                      is it right, and what will it need?
#   deepspeed --num_gpus N --module megatron_ngpt train FILE   (ngpt train FILE: one rank)
# Data: ngpt data train-tokenizer, then ngpt data preprocess. Paths are resolved from the working directory.
"""
GIVEN = {
    "data.tokenizer": "data/tokenizer.model",
    "data.train": "\n    - {prefix: data/text, split: 0.98}   # weight: share in the blend",
    "data.valid": "\n    - {prefix: data/text, split: 0.98}   # the documents after them; evaluated where training.eval_every is not 0",
    "training.output": "runs/first",
}
COLUMN = 40


def template() -> str:
    """The recipe as YAML text. It is complete but for the data, which it expects in `data/`."""
    lines = [HEAD]
    for name, (purpose, keys) in sections().items():
        lines += [f"{name}:".ljust(COLUMN) + f"# {purpose}"] if name else []
        above: list[str] = [name] if name else []
        for key in keys:
            if ".N." not in key.name:
                lines += _lines(key, above)
        lines.append("")
    return "\n".join(lines)


def _lines(key: Key, above: list[str]) -> list[str]:
    """The key's line, after those that open the mappings it lies in; `above` is where the line before it was."""
    *path, last = key.name.split(".")
    opened = ["  " * depth + f"{part}:" for depth, part in enumerate(path) if above[: depth + 1] != path[: depth + 1]]
    above[:] = path
    value = GIVEN.get(key.name, key.default)
    if value.startswith("\n"):
        return [*opened, ("  " * len(path) + f"{last}:").ljust(COLUMN) + f"# {key.meaning}{value}"]
    return [*opened, ("  " * len(path) + f"{last}: {value}").ljust(COLUMN - 1) + f" # {key.meaning}"]
