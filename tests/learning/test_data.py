"""Sources of batches: epochs, parts, positions, prefetching and errors, against lists in Python."""

import copy
import gc
import itertools
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.learning import data
from jaxprob.learning.data._permutation import permuted

batch_of = jax.jit(lambda source, step: source.batch(step))


def rows_of(source, steps):
    """The examples in the batches of these steps, of a source over 0, 1, 2, ..."""
    return np.stack([batch_of(source, step) for step in steps])


@pytest.mark.parametrize(("size", "batch"), [(12, 4), (13, 4), (5, 5), (1, 1), (100, 7)])
def test_an_epoch_has_each_example_at_most_once(size, batch):
    source = data.arrays(jnp.arange(size), batch)
    assert source.num_batches == size // batch
    orders = []
    for epoch in range(3):
        found = rows_of(source, range(epoch * source.num_batches, (epoch + 1) * source.num_batches)).ravel()
        assert len(set(found.tolist())) == (size // batch) * batch
        assert found.min() >= 0
        assert found.max() < size
        orders.append(tuple(found.tolist()))
    assert size < 5 or len(set(orders)) == 3


def test_what_is_left_out_of_an_epoch_comes_in_others():
    source = data.arrays(jnp.arange(13), 4)
    assert set(rows_of(source, range(60)).ravel().tolist()) == set(range(13))


def test_without_shuffle_examples_keep_their_order():
    source = data.arrays(jnp.arange(7), 3, shuffle=False)
    np.testing.assert_array_equal(rows_of(source, range(4)), [[0, 1, 2], [3, 4, 5], [0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("size", "batch"), [(7, 3), (6, 3), (10, 8)])
def test_a_padded_epoch_has_each_example_exactly_once(size, batch, shuffle):
    source = data.arrays({"x": jnp.arange(size)}, batch, remainder="pad", shuffle=shuffle)
    assert source.num_batches == -(-size // batch)
    for epoch in range(2):
        seen = []
        for step in range(source.num_batches):
            found, mask = source.batch(epoch * source.num_batches + step)
            assert found["x"].shape == mask.shape == (batch,)
            assert mask.dtype == jnp.bool_
            seen += np.asarray(found["x"])[np.asarray(mask)].tolist()
        assert sorted(seen) == list(range(size))


@pytest.mark.parametrize("remainder", ["drop", "pad"])
def test_parts_together_are_the_batch_of_one_process(remainder):
    whole = data.arrays(jnp.arange(22), 6, remainder=remainder, seed=3)
    parts = [data.arrays(jnp.arange(22), 6, remainder=remainder, seed=3, shard=(i, 3)) for i in range(3)]
    for step in range(9):
        together = [batch_of(part, step) for part in parts]
        wanted = batch_of(whole, step)
        assert [p.num_batches for p in parts] == [whole.num_batches] * 3
        jax.tree.map(lambda w, *p: np.testing.assert_array_equal(np.concatenate(p), w), wanted, *together)


def test_leaves_stay_together_and_keep_their_dtypes(rng):
    x = rng.normal(size=(9, 2, 3)).astype(np.float32)
    tree = {"x": x, "pair": (np.arange(9, dtype=np.uint8), jnp.arange(9, dtype=jnp.bfloat16))}
    found = data.arrays(tree, 4).batch(5)
    index = np.asarray(found["pair"][0])
    assert found["pair"][0].dtype == jnp.uint8
    assert found["pair"][1].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found["x"], x[index])
    np.testing.assert_array_equal(found["pair"][1].astype(jnp.float32), index)


def test_seeds_give_other_orders_and_equal_seeds_the_same():
    one, same, other = (data.arrays(jnp.arange(50), 50, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.batch(0), same.batch(0))
    assert (np.asarray(one.batch(0)) != np.asarray(other.batch(0))).any()


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_batch_is_traceable_and_its_arrays_are_no_constants(shuffle):
    source = data.arrays(jnp.arange(1_000), 10, shuffle=shuffle)
    batch = jax.jit(lambda source, step: source.batch(step))
    np.testing.assert_array_equal(batch(source, jnp.int32(123)), source.batch(123))
    np.testing.assert_array_equal(jax.vmap(source.batch)(jnp.arange(3)), rows_of(source, range(3)))
    text = batch.lower(source, jnp.int32(0)).as_text()
    assert "dense<[0, 1, 2" not in text
    batch(data.arrays(jnp.arange(1_000), 10, shuffle=shuffle), jnp.int32(5))
    assert batch._cache_size() == 1  # a source made again, as after a restart, compiles nothing


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17, 99, 256, 257, 1_000, 4_099])
def test_permutations_are_permutations(size):
    for seed in range(3):
        found = jax.jit(permuted, static_argnums=2)(jax.random.key(seed), jnp.arange(size), size)
        assert sorted(found.tolist()) == list(range(size))


def test_places_far_up_are_permuted_too():
    size = 2**30 - 35
    places = jnp.asarray([0, 1, 2, size - 2, size - 1, size // 2], jnp.int32)
    found = np.asarray(permuted(jax.random.key(0), places, size))
    assert len(set(found.tolist())) == 6
    assert ((found >= 0) & (found < size)).all()
    assert found.std() > size / 20


@pytest.mark.parametrize("size", [4, 10, 37])
def test_an_example_is_as_likely_in_each_place(size):
    """Chi-squared of (place, example) and of neighbours over 20,000 permutations: false alarms one in 10^6 each."""
    keys = jax.random.split(jax.random.key(7), 20_000)
    found = np.asarray(jax.jit(jax.vmap(lambda key: permuted(key, jnp.arange(size), size)))(keys))
    from scipy import stats

    for a, b in ((np.broadcast_to(np.arange(size), found.shape), found), (found[:, 0:1], found[:, 1:2])):
        counts = np.zeros((size, size))
        np.add.at(counts, (a.ravel(), b.ravel()), 1)
        if b.shape[1] == 1:  # neighbours: any pair but equal ones
            counts, cells = counts[~np.eye(size, dtype=bool)], size * (size - 1)
            freedom = cells - 1
        else:
            freedom = (size - 1) ** 2
        expected = counts.sum() / counts.size
        assert ((counts - expected) ** 2 / expected).sum() < stats.chi2.ppf(1 - 1e-6, freedom)


def test_generated_batches_are_functions_of_the_step_and_the_seed():
    source = data.generated(lambda key: jax.random.uniform(key, (3,)), seed=4)
    wanted = jax.random.uniform(jax.random.fold_in(jax.random.key(4), 7), (3,))
    np.testing.assert_array_equal(source.batch(7), wanted)
    np.testing.assert_array_equal(jax.jit(source.batch)(jnp.int32(7)), wanted)
    assert source.num_batches is None
    assert (np.asarray(source.batch(8)) != np.asarray(wanted)).all()


class Loader:
    """The protocol of grain's iterators, the hardest way: it changes the state that it hands out."""

    def __init__(self, count=10, fails_at=None):
        self.state, self.count, self.fails_at = {"position": 0}, count, fails_at
        self.threads = set()

    def __iter__(self):
        return self

    def __next__(self):
        self.threads.add(threading.current_thread())
        position = self.state["position"]
        if position == self.fails_at:
            raise OSError("disk gone")
        if position >= self.count:
            raise StopIteration
        self.state["position"] += 1
        return {"x": np.full(2, position)}

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = state


def firsts(batches):
    return [int(batch["x"][0]) for batch in batches]


@pytest.mark.parametrize("prefetch", [1, 3, 50])
def test_a_stream_goes_on_from_every_position(prefetch):
    for stop in range(11):
        stream = data.stream(Loader(), prefetch=prefetch)
        head = firsts(itertools.islice(stream, stop))
        saved = copy.deepcopy(stream.get_state())
        assert saved == {"position": stop}  # that of what was taken, whatever was made ready
        again = data.stream(Loader(), prefetch=prefetch)
        again.set_state(saved)
        assert again.get_state() == saved
        assert head + firsts(again) == list(range(10))


def test_a_stream_goes_back_in_place():
    stream = data.stream(Loader(), prefetch=4)
    assert firsts(itertools.islice(stream, 3)) == [0, 1, 2]
    saved = stream.get_state()
    assert firsts(itertools.islice(stream, 4)) == [3, 4, 5, 6]
    for _ in range(3):
        stream.set_state(saved)
        assert firsts(itertools.islice(stream, 4)) == [3, 4, 5, 6]
    assert firsts(stream) == [7, 8, 9]
    stream.set_state(saved)  # after its end too
    assert firsts(stream) == [3, 4, 5, 6, 7, 8, 9]
    assert saved == {"position": 3}


def test_a_closed_stream_loses_nothing():
    for taken in range(5):
        for source in (Loader(), ({"x": np.full(2, i)} for i in range(10))):
            stream = data.stream(source, prefetch=3)
            head = firsts(itertools.islice(stream, taken))
            stream.close()
            stream.close()
            assert head + firsts(stream) == list(range(10))


def test_a_stream_looks_ahead_as_far_as_it_should_and_no_further():
    loader = Loader(count=1_000)
    stream = data.stream(loader, prefetch=3)
    assert loader.state["position"] == 0  # nothing is taken before it is asked for
    next(stream)
    deadline = time.monotonic() + 20
    while loader.state["position"] < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.05)
    assert loader.state["position"] == 4
    assert threading.current_thread() not in loader.threads


def test_a_forgotten_stream_ends_its_thread():
    loader = Loader(count=1_000)
    stream = data.stream(loader)
    next(stream)
    del stream
    gc.collect()
    (thread,) = loader.threads
    thread.join(20)
    assert not thread.is_alive()


def test_the_end_stays_the_end():
    stream = data.stream(iter([{"x": np.zeros(1)}]))
    assert len(list(stream)) == 1
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(stream)


def test_an_error_comes_after_the_batches_before_it_and_can_be_gone_back_from():
    loader = Loader(fails_at=3)
    stream = data.stream(loader, prefetch=8)
    assert firsts(itertools.islice(stream, 3)) == [0, 1, 2]
    for _ in range(2):
        with pytest.raises(OSError, match="disk gone"):
            next(stream)
    assert stream.get_state() == {"position": 3}
    loader.fails_at = None
    stream.set_state({"position": 2})
    assert firsts(stream) == list(range(2, 10))


def test_without_a_position_it_trains_and_says_that_it_cannot_resume():
    stream = data.stream(iter([1, 2, 3]))
    assert not stream.can_resume
    assert list(stream) == [1, 2, 3]
    message = r"Stream\.get_state: the iterator is list_iterator, without get_state\(\) and set_state\(\); expected one"
    with pytest.raises(TypeError, match=message):
        stream.get_state()
    with pytest.raises(TypeError, match=r"Stream\.set_state: the iterator is list_iterator"):
        stream.set_state(3)


def test_grain_works_as_it_is():
    grain = pytest.importorskip("grain")
    dataset = grain.MapDataset.range(20).shuffle(seed=1).batch(3).to_iter_dataset()
    whole = [batch.tolist() for batch in iter(dataset)]
    stream = data.stream(iter(dataset))
    head = [next(stream).tolist() for _ in range(2)]
    again = data.stream(iter(dataset))
    again.set_state(stream.get_state())
    assert head + [batch.tolist() for batch in again] == whole


def test_what_a_user_passes_becomes_a_source():
    source = data.generated(lambda key: key)
    assert data.as_source(source) is source
    stream = data.stream(iter([]))
    assert data.as_source(stream) is stream
    assert data.as_source(Loader()).can_resume
    assert list(data.as_source(i for i in range(3))) == [0, 1, 2]

    class Batches:
        def __iter__(self):
            return iter([1, 2])

    assert list(data.as_source(Batches())) == [1, 2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            (np.zeros((5, 2)), np.zeros(5)),
            r"fit: data is a tuple of arrays \(0 \(5, 2\), 1 \(5,\)\); expected a",
        ),
        (
            {"x": jnp.zeros(3)},
            r"a dict of arrays \(x \(3,\)\).*Wrap arrays: learning\.data\.arrays",
        ),
        (np.zeros((5, 2)), r"a float64 array of shape \(5, 2\).*Wrap arrays"),
        ([1.0, 2.0], "a list of arrays .*Wrap arrays"),
        (None, "data is None; expected a data source or an iterator of batches"),
        ("digits", "data is 'digits'; expected a data source"),
        (3, "data is 3"),
        (lambda key: key, r"Use learning\.data\.generated for a function of a key"),
    ],
)
def test_what_is_no_source(given, message):
    with pytest.raises(TypeError, match=message) as error:
        data.as_source(given, "fit")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tree", "options", "message"),
    [
        ({}, {}, "data.arrays: tree is without arrays; expected a pytree of arrays"),
        (np.zeros((0, 2)), {}, "tree is of no examples; expected one example at least"),
        ({"x": np.zeros(5), "y": np.zeros(4)}, {}, "leaf 'y', is of 4 examples; expected 5, as leaf 'x'"),
        ({"x": np.zeros(5), "n": np.float32(3)}, {}, r"leaf 'n', is 3\.0; expected an array \(example, \.\.\.\)"),
        ([1.0, 2.0], {}, r"leaf '0', is 1\.0; expected an array.*Turn lists into arrays first"),
        (np.array(["a", None], object), {}, "expected an array"),
        (np.array(["a", "b"]), {}, "expected an array"),
        (np.zeros(3), {"batch_size": 4}, "batch_size is 4; expected at most the number of examples, 3"),
        (np.zeros(3), {"batch_size": 0}, "batch_size is 0; expected 1 or more"),
        (np.zeros(3), {"batch_size": 1.5}, r"batch_size is 1\.5; expected an integer"),
        (np.zeros(3), {"remainder": "keep"}, "remainder is 'keep'; expected 'drop' or 'pad'"),
        (np.zeros(3), {"seed": 0.5}, r"seed is 0\.5; expected an integer"),
        (
            np.zeros(3),
            {"shard": (2, 2)},
            r"shard is \(2, 2\); expected \(index, count\) with index from 0",
        ),
        (np.zeros(3), {"shard": 2}, r"shard is 2; expected a pair \(index, count\)"),
        (np.zeros(9), {"batch_size": 4, "shard": (0, 3)}, "expected a count that divides batch_size=4"),
    ],
)
def test_arrays_that_make_no_batches(tree, options, message):
    with pytest.raises((TypeError, ValueError), match=message) as error:
        data.arrays(tree, **({"batch_size": 1} | options))
    assert "\n" not in str(error.value)


def test_other_errors():
    with pytest.raises(TypeError, match=r"data\.generated: function is 3; expected a function of a key"):
        data.generated(3)
    with pytest.raises(TypeError, match=r"data\.stream: iterator is 3; expected an iterator of batches"):
        data.stream(3)
    with pytest.raises(TypeError, match="Call it, and pass what it returns"):
        data.stream(lambda: iter([]))
    with pytest.raises(ValueError, match="prefetch is 0; expected 1 or more"):
        data.stream(iter([]), prefetch=0)
