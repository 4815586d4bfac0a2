"""What a run tells of the checkpoints that it saves, and knows of them."""

from megatron_ngpt.checkpoint.saver import Saved
from megatron_ngpt.checkpoint.store import CheckpointStore
from megatron_ngpt.monitor.monitor import Monitor


class Saves:
    """The saves of a run.

    Attributes:
        newest: the newest step of which there is a checkpoint.
    """

    def __init__(self, store: CheckpointStore, monitor: Monitor, newest: int):
        self._store, self._monitor, self.newest = store, monitor, newest

    def tell_finished(self) -> None:
        """Of the save under way, if it is over."""
        self._tell(self._store.finished())

    def wait(self) -> None:
        """Until the save under way is over, if there is one. Failed, it leaves the run alive: there is the checkpoint before it, and will
        be the next."""
        self._tell(self._store.wait())

    def complete(self) -> None:
        """Wait for the last checkpoint. Raises CheckpointError: it could not be written."""
        saved = self._store.wait()
        if saved and saved.error:
            raise saved.error
        self._tell(saved)

    def last_good(self) -> str:
        """Which checkpoint is left, in words."""
        newest = self._store.catalogue.newest()
        return f"the last good checkpoint is {newest}" if newest else "there is no checkpoint yet"

    def _tell(self, saved: Saved | None) -> None:
        if saved is None:
            return
        if saved.error is None:
            self.newest = saved.step
            self._monitor.checkpoint(saved.path, saved.step, saved.seconds, saved.stall)
            return
        self._monitor.event("checkpoint_failed", saved.step, error=str(saved.error))
        self._monitor.message(f"warning: {saved.error}; training goes on, {self.last_good()}")
