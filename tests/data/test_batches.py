"""Batches: every window once an epoch whatever the slices, document numbers, blends, splits, fingerprints."""

import pickle
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import header, numbered_documents, recipe, write_dataset

from megatron_ngpt.data.batches import train_names, training_batches, validation_batches
from megatron_ngpt.errors import DataError


def slices_of(source, step, ranks):
    """The rows of a step, read by `ranks` ranks, each its own share."""
    edges = np.linspace(0, source.global_batch, ranks + 1).astype(int)
    return np.concatenate([source.rows(step, a, b).tokens for a, b in pairwise(edges) if a < b])


@settings(deadline=None, max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12), context=st.integers(1, 9), batch=st.integers(1, 7),
    seed=st.integers(0, 99), ranks=st.integers(1, 4), shards=st.integers(1, 3),
)
def test_each_epoch_has_every_window_once(tmp_path_factory, lengths, context, batch, seed, ranks, shards):
    lengths[0] += context
    folder, documents = tmp_path_factory.mktemp("epoch"), numbered_documents(lengths)
    for shard in range(shards):
        if chosen := documents[shard::shards]:
            write_dataset(folder / f"{shard}", chosen)
    source = training_batches(recipe([{"prefix": f"{folder}/*"}], context=context, global_batch=batch, seed=seed))
    tape = [token for shard in range(shards) for document in documents[shard::shards] for token in document]
    place = {token: position for position, token in enumerate(tape)}
    count = source.samples_per_epoch
    assert count == (len(tape) - 1) // context
    rows = np.concatenate([slices_of(source, step, ranks) for step in range(1, -(-2 * count // batch) + 1)])
    for epoch in range(2):
        samples = rows[epoch * count : (epoch + 1) * count]
        starts = sorted(place[first] for first in samples[:, 0].tolist())
        assert len({start % context for start in starts}) == 1 and np.all(np.diff(starts) == context)
        for sample in samples.tolist():
            assert sample == tape[place[sample[0]] : place[sample[0]] + context + 1]


def test_epochs_and_seeds_differ(tmp_path):
    prefix = write_dataset(tmp_path / "d", numbered_documents([805]))
    orders = [training_batches(recipe([{"prefix": prefix}], global_batch=100, seed=seed)).rows(step, 0, 100).tokens
              for seed in (0, 1) for step in (1, 2)]
    assert len({order[:, 0].tobytes() for order in orders}) == 4
    assert len({int(order[:, 0].min()) for order in orders}) > 1


@settings(deadline=None, max_examples=30)
@given(lengths=st.lists(st.integers(1, 15), min_size=1, max_size=20), context=st.integers(1, 30), shards=st.integers(1, 3))
def test_document_numbers_come_from_the_index(tmp_path_factory, lengths, context, shards):
    lengths[0] += context
    folder, documents = tmp_path_factory.mktemp("documents"), numbered_documents(lengths)
    for shard in range(shards):
        if chosen := documents[shard::shards]:
            write_dataset(folder / f"{shard}", chosen)
    owner = {token: number for number, document in enumerate(documents) for token in document}
    rows = training_batches(recipe([{"prefix": f"{folder}/*"}], context=context, global_batch=5)).rows(1, 0, 5)
    for tokens, numbers in zip(rows.tokens.tolist(), rows.documents.tolist(), strict=True):
        owners = [owner[token] for token in tokens]
        changes = np.cumsum([0] + [a != b for a, b in pairwise(owners)])
        assert numbers == changes.tolist()
    assert rows.documents.dtype == rows.tokens.dtype == np.int32


def test_origins_name_document_and_offset(tmp_path):
    prefix = write_dataset(tmp_path / "d", numbered_documents([5, 7, 30]))
    rows = training_batches(recipe([{"prefix": prefix}], global_batch=4)).rows(1, 0, 4)
    begins = [0, 5, 12]
    for tokens, (name, document, offset) in zip(rows.tokens, rows.origins(), strict=True):
        assert name == prefix and begins[document] + offset == tokens[0]


def test_a_blend_takes_from_each_entry_by_weight(tmp_path):
    first = write_dataset(tmp_path / "a", numbered_documents([400]))
    second = write_dataset(tmp_path / "b", numbered_documents([400], 500))
    source = training_batches(recipe([{"prefix": first, "weight": 3.0}, {"prefix": second, "weight": 1.0}], global_batch=8))
    for step in (1, 2, 77):
        assert (source.rows(step, 0, 8).tokens[:, 0] < 500).sum() == 6
    whole = source.rows(77, 0, 8).tokens
    assert np.array_equal(whole[3:5], source.rows(77, 3, 5).tokens)


def test_without_weights_shares_follow_tokens(tmp_path):
    first = write_dataset(tmp_path / "a", numbered_documents([600]))
    second = write_dataset(tmp_path / "b", numbered_documents([200], 700))
    source = training_batches(recipe([{"prefix": first}, {"prefix": second}], global_batch=8))
    assert (source.rows(1, 0, 8).tokens[:, 0] < 700).sum() == 6


@pytest.mark.parametrize("split", [0.5, 0.98, 0.05])
def test_a_split_parts_the_documents(tmp_path, split):
    documents = numbered_documents([20] * 40)
    prefix = write_dataset(tmp_path / "d", documents)
    entry = {"prefix": prefix, "split": split}
    both = recipe([entry], [entry], vocab=1000, context=8, global_batch=100)
    cut = round(split * 40) * 20
    train = training_batches(both).rows(1, 0, 100).tokens
    valid = validation_batches(both)["d"].rows(1, 0, 100).tokens
    assert train.max() < cut <= valid.min()
    assert cut - train.max() <= 16 and valid.max() >= 800 - 16


def test_ninety_nine_percent_of_forty_documents_leaves_one(tmp_path):
    prefix = write_dataset(tmp_path / "d", numbered_documents([20] * 40))
    entry = {"prefix": prefix, "split": 0.99}
    valid = validation_batches(recipe([entry], [entry], global_batch=2))["d"]
    assert valid.rows(1, 0, 2).tokens.min() >= 39 * 20


def test_validation_order_ignores_the_seed_and_begins_anew(tmp_path):
    prefix = write_dataset(tmp_path / "d", numbered_documents([81]))
    entries = [{"prefix": prefix}], [{"prefix": prefix, "name": "held"}]
    sources = [validation_batches(recipe(*entries, seed=seed, global_batch=5))["held"] for seed in (0, 1)]
    passes = [[source.rows(step, 0, 5).tokens for step in (1, 2, 3, 4)] for source in sources]
    assert np.array_equal(passes[0], passes[1])
    assert sorted(np.concatenate(passes[0][:2])[:, 0].tolist()) == list(range(0, 80, 8))
    assert np.array_equal(passes[0][0], passes[0][2]) and np.array_equal(passes[0][1], passes[0][3])


def test_the_fingerprint_follows_what_the_order_depends_on(tmp_path):
    prefix = write_dataset(tmp_path / "d", numbered_documents([50] * 10))
    same = write_dataset(tmp_path / "same", numbered_documents([50] * 10))
    other = write_dataset(tmp_path / "other", numbered_documents([50] * 10, 1))
    entry = {"prefix": prefix}

    def made(train, **keys):
        return training_batches(recipe(train, **keys)).fingerprint
    known = made([entry])
    assert known == made([entry]) == made([{"prefix": same}])
    assert known == made([entry], context=9, global_batch=9), "these are judged by themselves"
    different = [made([{"prefix": other}]), made([entry], seed=1), made([{**entry, "split": 0.5}]),
                 made([{**entry, "weight": 1.0}, {**entry, "weight": 2.0}]),
                 made([{**entry, "weight": 2.0}, {**entry, "weight": 1.0}])]
    assert len({known, *different}) == 6


@given(after=st.integers(1, 50), batch=st.integers(1, 7), context=st.integers(3, 9), seed=st.integers(0, 9))
def test_a_phase_has_each_window_once_an_epoch_in_an_order_of_its_own(tmp_path_factory, after, batch, context, seed):
    entry = {"prefix": write_dataset(tmp_path_factory.mktemp("phase") / "d", numbered_documents([300]))}
    whole = training_batches(recipe([entry], context=context, global_batch=batch, seed=seed))
    phase, count = whole.after(after), whole.samples_per_epoch
    read = [np.concatenate([source.rows(first + step, 0, batch).tokens for step in range(1, count + 1)])[:count, 0]
            for source, first in ((whole, 0), (phase, after))]
    for starts in read:
        assert len(set(starts.tolist())) == count and len(set((starts % context).tolist())) == 1
    assert not np.array_equal(*read) and not np.array_equal(read[1], whole.after(after + 1).rows(after + 2, 0, batch).tokens)
    assert whole.after(0).rows(1, 0, batch).tokens.tolist() == whole.rows(1, 0, batch).tokens.tolist()
    with pytest.raises(ValueError, match=f"steps count from {after + 1}"):
        phase.rows(after, 0, batch)


def test_a_source_survives_pickling_and_holds_no_maps(tmp_path):
    source = training_batches(recipe([{"prefix": write_dataset(tmp_path / "d", numbered_documents([500]))}]))
    before = source.rows(3, 0, 4).tokens
    pickled = pickle.dumps(source)
    assert len(pickled) < 1_000_000
    assert np.array_equal(pickle.loads(pickled).rows(3, 0, 4).tokens, before)


def test_a_token_past_the_vocabulary_stops_the_step(tmp_path):
    prefix = write_dataset(tmp_path / "d", [[1] * 40, [2, 3, 999] + [1] * 40])
    source = training_batches(recipe([{"prefix": prefix}], vocab=999, global_batch=10))
    with pytest.raises(DataError, match="token 999 at offset 2 of document 1 is outside the vocabulary of 999"):
        source.rows(1, 0, 10)


def test_impossible_rows_are_refused(tmp_path):
    source = training_batches(recipe([{"prefix": write_dataset(tmp_path / "d", numbered_documents([50]))}]))
    for bad in ((0, 0, 4), (1, 0, 5), (1, 3, 2)):
        with pytest.raises(ValueError, match="steps count from 1"):
            source.rows(*bad)
    assert source.rows(1, 2, 2).tokens.shape == (0, 9)


def test_no_sample_is_lost_at_ten_to_the_eight_tokens(tmp_path):
    from test_indexed import sparse_dataset
    source = training_batches(recipe([{"prefix": sparse_dataset(tmp_path / "d", 100, 1_000_001)}], context=1))
    assert source.samples_per_epoch == 100_000_099


def test_starting_does_not_read_the_index(tmp_path):
    """An index of 10^9 documents, 20 GB of holes on disk: only its ends are described, and opening touches nothing else."""
    documents, tokens = 10**9, 1000
    with open(tmp_path / "d.idx", "wb") as file:
        file.write(header(sequences=documents, indices=documents + 1))
        file.seek(34 + 4 * (documents - 1))
        file.write(np.array([tokens], "<i4").tobytes())
        file.seek(34 + 20 * documents)
        file.write(np.array([documents], "<i8").tobytes())
    (tmp_path / "d.bin").write_bytes(np.arange(tokens, dtype="<u2").tobytes())
    began = time.monotonic()
    source = training_batches(recipe([{"prefix": f"{tmp_path}/d"}]))
    assert source.rows(1, 0, 4).documents.max() == 0
    assert time.monotonic() - began < 2 and source.samples_per_epoch == (tokens - 1) // 8


def test_rows_say_their_source_and_sources_how_often_they_were_read(tmp_path):
    entries = [{"prefix": write_dataset(tmp_path / name, numbered_documents([tokens])), "weight": weight}
               for name, tokens, weight in (("a", 41, 3.0), ("b", 161, 1.0))]
    made = recipe(entries)
    source = training_batches(made)
    windows, read = (5, 20), np.zeros(2, int)
    for step in range(1, 8):
        rows = source.rows(step, 0, 4)
        prefixes = [origin[0] for origin in rows.origins()]
        assert [entries[number]["prefix"] for number in rows.sources] == prefixes
        counts = np.bincount(rows.sources, minlength=2)
        assert source.rows_by_source(step) == counts.tolist()
        read += counts
        assert source.epochs(step) == pytest.approx([read[0] / windows[0], read[1] / windows[1]])
    assert source.after(7).epochs(7) == [0.0, 0.0] and source.after(7).rows_by_source(8) == source.rows_by_source(1)


@pytest.mark.parametrize("entries, names", [
    ([{"prefix": "x/a"}, {"prefix": "x/b"}], ["a", "b"]), ([{"prefix": "x/a"}, {"prefix": "y/a"}], ["a (0)", "a (1)"]),
    ([{"prefix": "x/a"}, {"prefix": "y/a", "name": "web"}], ["a", "web"])])
def test_names_of_training_sources(entries, names):
    assert train_names(recipe(entries)) == names
