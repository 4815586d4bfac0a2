"""TensorBoard's files: two runs of one training, `training` and `validation`, whose losses share a chart.

They lie in the run directory, so that `tensorboard --logdir runs` calls them `NAME/training` and `NAME/validation`. Written through
tensorboard's own event writer (torch's wrapper adds nothing that this needs).
"""

import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.histogram.summary_v2 import histogram_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from megatron_ngpt.monitor.board_page import IN_TRAINING, front_matter, verbatim
from megatron_ngpt.monitor.logger import Logger, RunInfo
from megatron_ngpt.monitor.table import VALIDATION, tagged

TRAINED, VALIDATED = "training", "validation"
FLUSH_SECONDS = 10  # a person who looks sees what is at most so old
VALIDATION_NAMES = {metric.name for metric in VALIDATION}


class TensorBoardLogger(Logger):
    """Event files for the steps after the one that the run goes on from; TensorBoard drops what older files say of those steps."""

    def __init__(self, run: RunInfo):
        self._files = {name: EventFile(run.output / name, run.start_step) for name in (TRAINED, VALIDATED)}
        for summary in front_matter(run):
            self._files[TRAINED].write(run.start_step, summary)

    def scalars(self, step: int, values: dict) -> None:
        """Those of the values that have a tag."""
        for name, file in self._files.items():
            own = {key: value for key, value in values.items() if (key in VALIDATION_NAMES) == (name == VALIDATED)}
            numbers = tagged(own)
            if name == TRAINED and values.get("valid_loss") is not None:
                numbers[IN_TRAINING] = values["valid_loss"]
            if numbers:
                file.write(step, Summary(value=[Summary.Value(tag=tag, simple_value=number) for tag, number in numbers.items()]))

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        """Under the tab Histograms."""
        self._files[TRAINED].write(step, histogram_pb(f"scales/{name}", values))

    def text(self, step: int, name: str, text: str) -> None:
        """As it is, under the tab Text."""
        self._files[TRAINED].write(step, text_pb(name, verbatim(text)))

    def close(self) -> None:
        """Write out what is still in memory and close the files."""
        for file in self._files.values():
            file.close()


class EventFile:
    """An event file in `folder`, begun with the first event.

    Raises OSError where the disk is full: events are lost to TensorBoard then, and a new file begins when it can.
    """

    def __init__(self, folder: Path, start_step: int):
        self._folder = str(folder)
        self._writer: EventFileWriter | None = None
        self._voids: int | None = start_step + 1  # the first step of which older files tell no more

    def write(self, step: int, summary: Summary) -> None:
        """Add what is known of a step."""
        try:
            self._writer = self._writer or EventFileWriter(self._folder, flush_secs=FLUSH_SECONDS)
            if self._voids is not None:  # also in a run's first file: TensorBoard takes the first such word for no restart
                session = SessionLog(status=SessionLog.START)
                self._writer.add_event(Event(wall_time=time.time(), step=self._voids, session_log=session))
                self._voids = None
            self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))
        except OSError:
            self._writer = None
            raise

    def close(self) -> None:
        """Close the file."""
        if self._writer:
            with suppress(OSError):
                self._writer.close()
