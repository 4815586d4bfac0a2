"""What tests of saving share: a store and the run that it saves."""

import pytest

from megatron_ngpt.checkpoint.store import CheckpointStore
from tests.checkpoint.layouts import build, fill
from tests.checkpoint.stores import ONE


@pytest.fixture
def run(tmp_path):
    """A store, the shards and optimizer of its run, and its state."""
    shards, optimizer = build(ONE, 0)
    fill(shards, optimizer, 3, step=1)
    return CheckpointStore(tmp_path, keep=2, keep_every=0), shards, optimizer
