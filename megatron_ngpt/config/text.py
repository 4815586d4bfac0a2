"""YAML as recipes use it: numbers as in YAML 1.2, and a key that is given twice is a mistake, not a silent choice."""

import re
from typing import Any, ClassVar

import yaml

from megatron_ngpt.errors import ConfigError

NULL, TRUTH = re.compile(r"^(?:~|null|Null|NULL|)$"), re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
WHOLE = re.compile(r"^[-+]?[0-9]+$")
REAL = re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$")


class Reader(yaml.SafeLoader):
    """A safe loader with the types of YAML 1.2 (`15e-4` is a number, `no` and `1:30` are strings) that notes repeated keys."""

    yaml_implicit_resolvers: ClassVar[dict] = {}

    def __init__(self, stream: str):
        super().__init__(stream)
        self.repeated: list[tuple[int, str]] = []     # (line, key)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """As SafeLoader's, noting each key that the mapping already has."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    self.repeated.append((key.start_mark.line + 1, key.value))
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class Writer(yaml.SafeDumper):
    """A safe dumper that quotes every string which this reader, or a YAML 1.1 reader, would take for something else."""


Reader.add_implicit_resolver("tag:yaml.org,2002:null", NULL, ["~", "n", "N", ""])
Reader.add_implicit_resolver("tag:yaml.org,2002:bool", TRUTH, list("tTfF"))
Reader.add_implicit_resolver("tag:yaml.org,2002:int", WHOLE, list("-+0123456789"))
for _class in (Reader, Writer):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", REAL, list("-+.0123456789"))
Reader.add_constructor("tag:yaml.org,2002:int", lambda reader, node: int(node.value))
Reader.add_constructor("tag:yaml.org,2002:float", lambda reader, node: float(node.value))


def parse(text: str, source: str) -> Any:
    """The value of the YAML `text`. Raises ConfigError with `source` and the line of a syntax error or of repeated keys."""
    try:
        reader = Reader(text)
        try:
            value = reader.get_single_data()
        finally:
            reader.dispose()
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{source}{line}: not YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: not YAML: {' '.join(str(error).split())}") from None
    if reader.repeated:
        raise ConfigError(*(f"{source}:{line}: key {key!r} is given twice; keep one" for line, key in reader.repeated))
    return value


def write(value: Any) -> str:
    """`value` (dicts, lists, numbers, strings, None) as YAML, keys in their order."""
    return yaml.dump(value, Dumper=Writer, sort_keys=False, allow_unicode=True, width=120)
