"""Keys: typed inside, legacy at the edge, told apart by global indices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob import core


def data(keys):
    return np.asarray(jax.random.key_data(keys))


def test_typed_and_legacy_keys_give_the_same_draws():
    legacy = jax.random.PRNGKey(3)
    want = jax.random.normal(jax.random.key(3), (2,))
    for key in (jax.random.key(3), legacy, np.asarray(legacy)):
        typed = core.as_key(key)
        assert core.is_key(typed)
        assert typed.shape == ()
        np.testing.assert_array_equal(jax.random.normal(typed, (2,)), want)
    np.testing.assert_array_equal(jax.jit(lambda k: jax.random.normal(core.as_key(k), (2,)))(legacy), want)


def test_keys_of_another_generator_are_kept():
    key = jax.random.key(0, impl="rbg")
    assert core.as_key(key) is key


@pytest.mark.parametrize(
    "value",
    [3, 1.5, None, "0", np.zeros(2), np.zeros(5, np.uint32), np.zeros((3, 2), np.uint32), np.uint32(1), (0, 1)],
)
def test_what_is_no_key(value):
    with pytest.raises(TypeError, match=r"^sample: key is .*; expected one random key. Make one with jax.random.key"):
        core.as_key(value, "sample")
    assert not core.is_key(value)


def test_several_keys_are_not_one():
    with pytest.raises(TypeError, match=r"as_key: key is a key<fry> array of shape \(3,\)"):
        core.as_key(jax.random.split(jax.random.key(0), 3))


def test_fold_is_repeated_fold_in():
    want = jax.random.fold_in(jax.random.fold_in(jax.random.key(1), 4), 7)
    np.testing.assert_array_equal(data(core.fold(jax.random.key(1), 4, jnp.int32(7))), data(want))
    assert core.is_key(core.fold(jax.random.key(1)))
    np.testing.assert_array_equal(data(jax.jit(core.fold)(jax.random.key(1), 4, 7)), data(want))


def test_a_key_may_be_folded_often_and_each_stream_used_once():
    """Key-reuse checking is on in the tests: it accepts what the runtime does, and rejects a second draw."""
    key = jax.random.key(0)
    draws = [jax.random.normal(core.fold(key, i)) for i in range(4)]
    assert len({float(x) for x in draws}) == 4
    stream = core.fold(key, 9)
    jax.random.normal(stream)
    with pytest.raises(jax.errors.KeyReuseError):
        jax.random.normal(stream)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_a_chain_has_the_key_of_its_global_index(impl):
    """Eight chains on one device have the keys of two times four, and of any subset."""
    key = jax.random.key(5, impl=impl)
    together = data(core.chain_keys(key, jnp.arange(8)))
    halves = np.concatenate([data(core.chain_keys(key, range_)) for range_ in (np.arange(4), np.arange(4, 8))])
    np.testing.assert_array_equal(together, halves)
    np.testing.assert_array_equal(data(core.chain_keys(key, [6])), together[6:7])
    np.testing.assert_array_equal(data(core.fold(key, 6)), together[6])
    assert len({tuple(row) for row in together}) == 8


def test_chain_keys_in_shard_map():
    """Each of eight devices makes the key of its own chain from the replicated key."""
    mesh = jax.make_mesh((8,), ("chain",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("chain")
    sharded = jax.jit(
        jax.shard_map(
            lambda key, index: jax.random.key_data(core.chain_keys(key, index)),
            mesh=mesh,
            in_specs=(jax.sharding.PartitionSpec(), spec),
            out_specs=spec,
        )
    )
    key = jax.random.key(2)
    np.testing.assert_array_equal(sharded(key, jnp.arange(8)), data(core.chain_keys(key, jnp.arange(8))))
