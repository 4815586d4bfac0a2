"""Scalars for TensorBoard, through tensorboard's own event writer (torch's wrapper adds nothing that scalars need)."""

import logging
import time
from contextlib import suppress
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

log = logging.getLogger(__name__)


class TensorBoardLog:
    """An event file in `folder` for the steps after `start_step`; TensorBoard drops what older files say of those steps.

    Where the disk is full, scalars are lost to TensorBoard (metrics.jsonl has them too), and a new file begins when it can.
    """

    def __init__(self, folder: Path, start_step: int):
        self._folder = str(folder)
        self._writer: EventFileWriter | None = None
        if start_step:
            session = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=start_step + 1, session_log=session))

    def scalars(self, step: int, values: dict[str, float | None]) -> None:
        """Write each of `values` (tag to number) that is not None."""
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=v) for tag, v in values.items() if v is not None])
        self._write(Event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        """Write out what is still in memory and close the file."""
        if self._writer:
            with suppress(OSError):
                self._writer.close()

    def _write(self, event: Event) -> None:
        try:
            self._writer = self._writer or EventFileWriter(self._folder)
            self._writer.add_event(event)
        except OSError as error:
            log.warning("TensorBoard's file cannot be written: %s", error)
            self._writer = None
