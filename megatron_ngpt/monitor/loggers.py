"""The loggers that a recipe names, found, checked, and kept from doing a run any harm."""

import importlib
import importlib.util
import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from megatron_ngpt.errors import ConfigError
from megatron_ngpt.monitor.logger import Logger, RunInfo

log = logging.getLogger(__name__)

ROOM = "megatron_ngpt.monitor"
KNOWN = {  # name: (class, the package that it needs, how that is installed)
    "tensorboard": (f"{ROOM}.tensorboard:TensorBoardLogger", "tensorboard", "pip install tensorboard"),
    "csv": (f"{ROOM}.csv_file:CsvLogger", "csv", ""),
    "wandb": (f"{ROOM}.weights_and_biases:WandbLogger", "wandb", "pip install -e '.[wandb]'"),
}


def problems(names: list[str]) -> list[str]:
    """A line for each of `monitor.loggers` that a run could not have. Imports classes of a user's own, and nothing of the known ones."""
    found = [f"monitor.loggers = {name}: is there twice; once is enough" for name in dict.fromkeys(names) if names.count(name) > 1]
    for name in dict.fromkeys(names):
        try:
            _check(name)
        except ConfigError as error:
            found += error.problems
    return found


def _check(name: str) -> None:
    if name not in KNOWN:
        _load(name)
        return
    _, package, remedy = KNOWN[name]
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"monitor.loggers = {name}: the package {package} is not installed; {remedy}, or leave it out")


def _load(name: str) -> type[Logger]:
    """The class of a known name, or of `package.module:Class`. Raises ConfigError."""
    path = KNOWN[name][0] if name in KNOWN else name
    module, _, kind = path.partition(":")
    choice = f"choose from {', '.join(KNOWN)}, or a class of your own as package.module:Class"
    if not module or not kind:
        raise ConfigError(f"monitor.loggers = {name}: no such logger; {choice}")
    try:
        found: Any = getattr(importlib.import_module(module), kind)
    except Exception as error:
        first = str(error).partition("\n")[0]
        raise ConfigError(
            f"monitor.loggers = {name}: cannot be imported ({type(error).__name__}: {first}); put its directory on PYTHONPATH, or {choice}"
        ) from None
    if not (isinstance(found, type) and issubclass(found, Logger)):
        raise ConfigError(f"monitor.loggers = {name}: is no subclass of {Logger.__module__}:{Logger.__name__}; {choice}")
    return found


class Loggers:
    """The loggers `names` of a run. What goes wrong in one is told once, by `tell`, and neither the others nor the run notice."""

    def __init__(self, names: list[str], run: RunInfo, tell: Callable[[str], None]):
        self._tell, self._told = tell, set()
        self._loggers: dict[str, Logger] = {}
        for name in names:
            logger = self._guarded(name, lambda name=name: _load(name)(run))
            if logger is not None:
                self._loggers[name] = logger

    def scalars(self, step: int, values: dict) -> None:
        """As `Logger.scalars`, of each."""
        self._each(lambda logger: logger.scalars(step, values))

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        """As `Logger.histogram`, of each."""
        self._each(lambda logger: logger.histogram(step, name, values))

    def text(self, step: int, name: str, text: str) -> None:
        """As `Logger.text`, of each."""
        self._each(lambda logger: logger.text(step, name, text))

    def close(self) -> None:
        """As `Logger.close`, of each."""
        self._each(lambda logger: logger.close())

    def _each(self, call: Callable[[Logger], None]) -> None:
        for name, logger in self._loggers.items():
            self._guarded(name, lambda logger=logger: call(logger))

    def _guarded(self, name: str, call: Callable[[], Any]) -> Any:
        """What `call` returns; None where it fails."""
        try:
            return call()
        except Exception as error:
            if name not in self._told:
                self._told.add(name)
                log.warning("the logger %s fails", name, exc_info=True)
                first = str(error).partition("\n")[0] or type(error).__name__
                self._tell(f"warning: monitor.loggers = {name} fails: {first}; training goes on, metrics.jsonl has every value")
            return None
