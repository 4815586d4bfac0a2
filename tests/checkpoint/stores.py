"""A save of one rank, and what it leaves."""

from megatron_ngpt.checkpoint import dcp
from tests.checkpoint.layouts import Layout, build, differences

ONE = Layout()


def names(store):
    return sorted(path.name for path in store.catalogue.directory.iterdir())


def saved(store, step, shards, optimizer, state=None):
    """The directory of a finished save; fails with what kept it from being written."""
    store.save(step, shards, optimizer, state or {})
    result = store.wait()
    if result.error:
        raise result.error
    return result.path


def check_readable(path):
    shards, optimizer = build(ONE, 0)
    dcp.load(path, shards, optimizer)
    assert differences(shards, optimizer, 3, ONE, 0) == []
